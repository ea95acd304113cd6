// Philox words and the normals made of them, a register of sites at a time.
//
// Every lane runs the same instructions, so a site's noise does not depend on its place in a block. Only IEEE
// additions, multiplications and square roots, in the order of the twin kernels/triton/philox.py; a file that includes
// this one is compiled without fused multiply-adds, so both give the same bits, at every SIMD level.
#pragma once
#include <cmath>
#include <utility>

#include "philox.hpp"
#include "simd.hpp"
#if defined(__x86_64__) && defined(DIFFMD_VECTORS)
#include <immintrin.h>
#endif

namespace diffmd {
namespace DIFFMD_LEVEL {

// ---- what GCC's vector extensions lack ---------------------------------------------------------------------
typedef Simd<float>::Bits Words;  // one 32-bit word of each of kWordLanes sites
constexpr int kWordLanes = Simd<float>::lanes;
template <typename T> using Bits = typename Simd<T>::Bits;

template <typename To, typename From> DIFFMD_INLINE To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bits are neither added nor lost");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

#if defined(DIFFMD_VECTORS)
typedef Simd<double>::Bits Wide;  // a word in the low half of each lane; what the high half holds does not matter
typedef std::int32_t Signed __attribute__((vector_size(kRegisterBytes)));

// The 64-bit products of the low halves; GCC does not see that a multiplication of masked lanes is this instruction.
DIFFMD_INLINE Wide product(Wide word, std::uint32_t factor) {
#if defined(__AVX512F__)
  return Wide(_mm512_mul_epu32(__m512i(word), _mm512_set1_epi64(factor)));
#elif defined(__AVX2__)
  return Wide(_mm256_mul_epu32(__m256i(word), _mm256_set1_epi64x(factor)));
#elif defined(__SSE2__)
  return Wide(_mm_mul_epu32(__m128i(word), _mm_set1_epi64x(factor)));
#else
  return (word & 0xffffffffu) * factor;
#endif
}

#if defined(__clang__)
#define DIFFMD_SHUFFLE(Mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DIFFMD_SHUFFLE(Mask, a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif

// Low (part 0) or high (part 1) halves of the lanes of `even` and `odd`, in turns: the words of all sites in order.
template <int part, int... lane>
DIFFMD_INLINE Words in_turns(Wide even, Wide odd, std::integer_sequence<int, lane...>) {
  const Words a = Words(even), b = Words(odd);
  return DIFFMD_SHUFFLE(Words, a, b, (lane % 2 * kWordLanes + lane / 2 * 2 + part)...);
}
template <int part> DIFFMD_INLINE Words in_turns(Wide even, Wide odd) {
  return in_turns<part>(even, odd, std::make_integer_sequence<int, kWordLanes>());
}

// Register `part` of 0, 1, 2 of x0 y0 z0 x1 y1 z1 ...: x and y first, then z into the gaps.
template <typename T, int part, int... lane>
DIFFMD_INLINE Pack<T> in_memory_order(Pack<T> x, Pack<T> y, Pack<T> z, std::integer_sequence<int, lane...>) {
  constexpr int n = Simd<T>::lanes, first = part * n;
  const Pack<T> xy = DIFFMD_SHUFFLE(Bits<T>, x, y, ((first + lane) % 3 % 2 * n + (first + lane) / 3)...);
  return DIFFMD_SHUFFLE(Bits<T>, xy, z, ((first + lane) % 3 == 2 ? n + (first + lane) / 3 : lane)...);
}
template <typename T, int part> DIFFMD_INLINE Pack<T> in_memory_order(Pack<T> x, Pack<T> y, Pack<T> z) {
  return in_memory_order<T, part>(x, y, z, std::make_integer_sequence<int, Simd<T>::lanes>());
}

DIFFMD_INLINE Pack<float> as_numbers(Words integer) {  // below 2^31
  return __builtin_convertvector(Signed(integer), Pack<float>);
}
DIFFMD_INLINE Pack<double> as_numbers(Wide integer) {  // below 2^52: they become the mantissa of a number in 2^52 ...
  return same_bits<Pack<double>>(integer | 0x4330000000000000u) - 4503599627370496.0;
}

// Compared as signed numbers, which every level can.
DIFFMD_INLINE Words all_bits_where_at_least(Words word, std::uint32_t bound) {
  return Words(Signed(word) >= std::int32_t(bound));
}

template <typename T> DIFFMD_INLINE Bits<T> load_words(const std::uint32_t* words);
template <> DIFFMD_INLINE Words load_words<float>(const std::uint32_t* words) {
  Words value;
  memcpy(&value, words, sizeof value);
  return value;
}
template <> DIFFMD_INLINE Wide load_words<double>(const std::uint32_t* words) {
  std::uint64_t lane[Simd<double>::lanes];
  for (int i = 0; i < Simd<double>::lanes; ++i) lane[i] = words[i];
  return same_bits<Wide>(lane);
}
#else
template <typename T, int part> DIFFMD_INLINE T in_memory_order(T x, T y, T z) {
  return part == 0 ? x : part == 1 ? y : z;
}
DIFFMD_INLINE float as_numbers(std::uint32_t integer) { return float(std::int32_t(integer)); }
DIFFMD_INLINE double as_numbers(std::uint64_t integer) { return double(std::int64_t(integer)); }
template <typename T> DIFFMD_INLINE Bits<T> load_words(const std::uint32_t* words) { return *words; }
DIFFMD_INLINE Words all_bits_where_at_least(Words word, std::uint32_t bound) { return word >= bound ? ~0u : 0u; }
#endif

template <typename T> DIFFMD_INLINE void in_memory_order(Pack<T> x, Pack<T> y, Pack<T> z, Pack<T> (&out)[3]) {
  out[0] = in_memory_order<T, 0>(x, y, z);
  out[1] = in_memory_order<T, 1>(x, y, z);
  out[2] = in_memory_order<T, 2>(x, y, z);
}

template <typename T> DIFFMD_INLINE Pack<T> square_root(Pack<T> x) {
  T lane[Simd<T>::lanes];
  memcpy(lane, &x, sizeof x);
  for (T& value : lane) value = std::sqrt(value);
  return same_bits<Pack<T>>(lane);
}
#if defined(DIFFMD_VECTORS) && defined(__AVX512F__)
template <> DIFFMD_INLINE Pack<float> square_root<float>(Pack<float> x) { return _mm512_maskz_sqrt_ps(0xffff, x); }
template <> DIFFMD_INLINE Pack<double> square_root<double>(Pack<double> x) { return _mm512_maskz_sqrt_pd(0xff, x); }
#elif defined(DIFFMD_VECTORS) && defined(__AVX2__)
template <> DIFFMD_INLINE Pack<float> square_root<float>(Pack<float> x) { return _mm256_sqrt_ps(x); }
template <> DIFFMD_INLINE Pack<double> square_root<double>(Pack<double> x) { return _mm256_sqrt_pd(x); }
#elif defined(DIFFMD_VECTORS) && defined(__SSE2__)
template <> DIFFMD_INLINE Pack<float> square_root<float>(Pack<float> x) { return _mm_sqrt_ps(x); }
template <> DIFFMD_INLINE Pack<double> square_root<double>(Pack<double> x) { return _mm_sqrt_pd(x); }
#endif

// ---- words -------------------------------------------------------------------------------------------------
// Atom and replica of kWordLanes consecutive sites (a site is an atom of a replica), and of the sites after them.
struct Sites {
  Words atom, replica;
  std::uint32_t n_atoms, more_atoms, more_replicas;  // kWordLanes = more_replicas * n_atoms + more_atoms
};

inline Sites sites_from(std::int64_t first, std::int64_t n_atoms, std::uint32_t first_replica) {
  std::uint32_t atom[kWordLanes], replica[kWordLanes];
  std::int64_t a = first % n_atoms;
  std::uint32_t r = first_replica + std::uint32_t(first / n_atoms);
  for (int lane = 0; lane < kWordLanes; ++lane) {
    atom[lane] = std::uint32_t(a);
    replica[lane] = r;
    if (++a == n_atoms) {
      a = 0;
      ++r;
    }
  }
  return {same_bits<Words>(atom), same_bits<Words>(replica), std::uint32_t(n_atoms),
          std::uint32_t(kWordLanes % n_atoms), std::uint32_t(kWordLanes / n_atoms)};
}

// For n_atoms < 2^31 - kWordLanes.
DIFFMD_INLINE void advance(Sites* sites) {
  sites->atom += sites->more_atoms;
  const Words beyond = all_bits_where_at_least(sites->atom, sites->n_atoms);  // as a number, -1
  sites->atom -= beyond & sites->n_atoms;
  sites->replica += sites->more_replicas - beyond;
}

#if defined(DIFFMD_VECTORS)
// The four words of n registers of sites. Products need 64-bit lanes, so even and odd sites have a register each; a
// word is left with a product's other half above it, which the next multiplication ignores. All n go through a round
// together: the processor looks no further ahead than one register's ten rounds, and each waits for the one before.
template <int n>
DIFFMD_INLINE void philox_words(const PhiloxKey& key, const Sites (&sites)[n], Words (&words)[n][4]) {
  Wide c0[2 * n], c1[2 * n], c2[2 * n], c3[2 * n];
  for (int i = 0; i < 2 * n; ++i) {
    c0[i] = Wide(sites[i / 2].atom) >> (i % 2 * 32);
    c1[i] = Wide(sites[i / 2].replica) >> (i % 2 * 32);
    c2[i] = Wide{} + key.step_low;
    c3[i] = Wide{} + key.step_high_and_domain;
  }
  std::uint32_t k0 = key.seed_low, k1 = key.seed_high;
  DIFFMD_UNROLL(9)
  for (int round = 0; round < 9; ++round) {
    for (int i = 0; i < 2 * n; ++i) {
      const Wide p0 = product(c0[i], 0xD2511F53u), p1 = product(c2[i], 0xCD9E8D57u);
      c0[i] = (p1 >> 32) ^ c1[i] ^ std::uint64_t(k0);
      c2[i] = (p0 >> 32) ^ c3[i] ^ std::uint64_t(k1);
      c1[i] = p1;
      c3[i] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < n; ++i) {  // the tenth round
    const Wide p0[2] = {product(c0[2 * i], 0xD2511F53u), product(c0[2 * i + 1], 0xD2511F53u)};
    const Wide p1[2] = {product(c2[2 * i], 0xCD9E8D57u), product(c2[2 * i + 1], 0xCD9E8D57u)};
    words[i][0] = in_turns<1>(p1[0], p1[1]) ^ in_turns<0>(c1[2 * i], c1[2 * i + 1]) ^ k0;
    words[i][1] = in_turns<0>(p1[0], p1[1]);
    words[i][2] = in_turns<1>(p0[0], p0[1]) ^ in_turns<0>(c3[2 * i], c3[2 * i + 1]) ^ k1;
    words[i][3] = in_turns<0>(p0[0], p0[1]);
  }
}
#else
template <int n>
DIFFMD_INLINE void philox_words(const PhiloxKey& key, const Sites (&sites)[n], Words (&words)[n][4]) {
  for (int i = 0; i < n; ++i) philox_words(key, sites[i].atom, sites[i].replica, words[i]);
}
#endif

// ---- normals -----------------------------------------------------------------------------------------------
// Polynomials of least greatest relative error, by Remez' exchange in 50 digits, lowest power first; the same numbers
// stand in kernels/triton/philox.py:
//   log    -2 log(1 + f) / f, powers of f, on [1/sqrt 2 - 1, sqrt 2 - 1]; relative error 2.6e-8 and 7.7e-18
//   sine   sin(pi x / 2) / x, powers of x^2, on [0, 1];                   relative error 5.3e-9 and 2.6e-19
template <typename T> struct Series;
template <> struct Series<float> {
  static constexpr int mantissa = 23, n_log = 9, n_sine = 5;
  static constexpr std::uint32_t root_half = 0x3f3504f3u, two = 0x40000000u;
  DIFFMD_HOST_DEVICE static constexpr float log(int power) {
    constexpr float of[n_log] = {
        -1.99999994838f, 0.999999759599f, -0.666683713811f, 0.500041458765f, -0.399136602593f, 0.331248266469f,
        -0.299046396795f, 0.287334779174f, -0.174441934406f};
    return of[power];
  }
  DIFFMD_HOST_DEVICE static constexpr float sine(int power) {
    constexpr float of[n_sine] = {
        1.57079631845f, -0.645963710605f, 0.0796896789617f, -0.00467376662385f, 0.000151485132629f};
    return of[power];
  }
};
template <> struct Series<double> {
  static constexpr int mantissa = 52, n_log = 21, n_sine = 9;
  static constexpr std::uint64_t root_half = 0x3fe6a09e667f3bcdu, two = 0x4000000000000000u;
  DIFFMD_HOST_DEVICE static constexpr double log(int power) {
    constexpr double of[n_log] = {
        -2.000000000000000005, 1.000000000000000888, -0.6666666666666584316, 0.4999999999994562439,
        -0.4000000000019800374, 0.3333333334319920678, -0.2857142855773485663, 0.2499999918113519158,
        -0.2222222223198285335, 0.2000003676959436375, -0.1818185488232809793, 0.1666571143703189618,
        -0.1538285158344021206, 0.1430005599688726847, -0.1337215866625896542, 0.1238771812158808116,
        -0.1131556213701623532, 0.1135809057748299002, -0.1306678418800545347, 0.120153554631054074,
        -0.05232168200103143038};
    return of[power];
  }
  DIFFMD_HOST_DEVICE static constexpr double sine(int power) {
    constexpr double of[n_sine] = {
        1.570796326794896619, -0.6459640975062461911, 0.07969262624616543557, -0.004681754135302642315,
        0.000160441184706821503, -3.598843007208232908e-6, 5.692134872719403751e-8, -6.684321722657890861e-10,
        5.870611059804375073e-12};
    return of[power];
  }
};

// n registers side by side, so that no chain of additions and multiplications waits for itself.
//
// -2 log u with u = ((word >> 8) + 1) * 2^-24: u 2^24 = 2^e (1 + f), 1 + f in [1/sqrt 2, sqrt 2), exactly. Even and odd
// powers of f have a chain each.
template <typename T, int n> DIFFMD_INLINE void squared_radii(const Bits<T> (&words)[n], Pack<T> (&out)[n]) {
  using S = Series<T>;
  Pack<T> f[n], square[n], even[n], odd[n], whole[n];
  for (int i = 0; i < n; ++i) {
    const Bits<T> bits = same_bits<Bits<T>>(as_numbers((words[i] >> 8) + 1u));
    const Bits<T> e = (bits - S::root_half) >> S::mantissa;
    whole[i] = (T(24) - as_numbers(e)) * T(1.386294361119890618834464);
    f[i] = same_bits<Pack<T>>(bits - (e << S::mantissa)) - T(1);
    square[i] = f[i] * f[i];
    even[i] = fill<T>(S::log(S::n_log - 1));
    odd[i] = fill<T>(S::log(S::n_log - 2));
  }
  static_assert(S::n_log % 2 == 1, "the highest power is an even one");
  DIFFMD_UNROLL(32)
  for (int k = S::n_log - 3; k >= 0; k -= 2) {
    for (int i = 0; i < n; ++i) even[i] = even[i] * square[i] + S::log(k);
    for (int i = 0; i < n && k > 0; ++i) odd[i] = odd[i] * square[i] + S::log(k - 1);
  }
  for (int i = 0; i < n; ++i) out[i] = whole[i] + (odd[i] * f[i] + even[i]) * f[i];
}

// cos of (word >> 8) * 2^-24 turns, which are q half turns and a part h of one: (-1)^q sin(pi/2 (1 - 2 h)). h becomes
// the mantissa of 2 + 2 h, and the lowest bit of q, which is the word's highest, the sign: nothing is rounded.
template <typename T, int n> DIFFMD_INLINE void cosines(const Bits<T> (&words)[n], Pack<T> (&out)[n]) {
  using S = Series<T>;
  Pack<T> x[n], square[n], sum[n];
  for (int i = 0; i < n; ++i) {
    const Bits<T> h = ((words[i] >> 8) & 0x7fffffu) << (S::mantissa - 23);
    x[i] = T(3) - same_bits<Pack<T>>(h | S::two);
    square[i] = x[i] * x[i];
    sum[i] = fill<T>(S::sine(S::n_sine - 1));
  }
  DIFFMD_UNROLL(32)
  for (int k = S::n_sine - 2; k >= 0; --k)
    for (int i = 0; i < n; ++i) sum[i] = sum[i] * square[i] + S::sine(k);
  for (int i = 0; i < n; ++i) {
    const Bits<T> sign = (words[i] & 0x80000000u) << (8 * sizeof(T) - 32);
    out[i] = same_bits<Pack<T>>(same_bits<Bits<T>>(x[i] * sum[i]) ^ sign);
  }
}

// The three components of each site's noise. A sine is the cosine of a quarter turn less.
template <typename T> DIFFMD_INLINE void normals_of(const Bits<T> (&words)[4], Pack<T>* x, Pack<T>* y, Pack<T>* z) {
  Pack<T> squares[2], of_angle[3];
  squared_radii<T>({words[0], words[2]}, squares);
  const Pack<T> radius = square_root<T>(squares[0]), radius_z = square_root<T>(squares[1]);
  cosines<T>({words[1], words[1] + 0xc0000000u, words[3]}, of_angle);
  *x = radius * of_angle[0];
  *y = radius * of_angle[1];
  *z = radius_z * of_angle[2];
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
