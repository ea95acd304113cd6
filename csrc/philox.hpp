// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, section 3.3).
//
// A number is a pure function of (seed, replica, step, atom, domain): no state, so neither batching, nor
// threads, nor a restart can change a trajectory's noise.
//   key     = (seed low, seed high)
//   counter = (atom, replica, step low, step high 24 bits | domain << 24)
// The four words of one call give the three components of one atom's noise by two Box-Muller transforms
// (the fourth normal is not used). Twins: reference/em_step.py and kernels/triton/philox.py, which tests
// compare word by word; kernels/cuda/ includes this file.
#pragma once
#include <cmath>

#include "levels.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr int kLanes = 16;  // sites computed together; every lane runs the same instructions, so a site's
                            // noise does not depend on its place in the block

struct PhiloxKey {
  std::uint32_t seed_low, seed_high, step_low, step_high_and_domain;
};

DIFFMD_HOST_DEVICE DIFFMD_INLINE PhiloxKey philox_key(std::uint64_t seed, std::uint64_t step, std::uint32_t domain) {
  return {std::uint32_t(seed), std::uint32_t(seed >> 32), std::uint32_t(step),
          (std::uint32_t(step >> 32) & 0xffffffu) | (domain << 24)};
}

// The four words of one site.
DIFFMD_HOST_DEVICE DIFFMD_INLINE void philox_words(const PhiloxKey& key, std::uint32_t atom, std::uint32_t replica,
                                                   std::uint32_t (&words)[4]) {
  std::uint32_t c0 = atom, c1 = replica, c2 = key.step_low, c3 = key.step_high_and_domain;
  std::uint32_t k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c0;
    const std::uint64_t p1 = std::uint64_t(0xCD9E8D57u) * c2;
    c0 = std::uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = std::uint32_t(p1);
    c2 = std::uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = std::uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// words[k][lane] for the sites (replica[lane], atom[lane]).
DIFFMD_INLINE void philox_words(const PhiloxKey& key, const std::uint32_t* DIFFMD_RESTRICT atom,
                                const std::uint32_t* DIFFMD_RESTRICT replica,
                                std::uint32_t (*DIFFMD_RESTRICT words)[kLanes]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    std::uint32_t site[4];
    philox_words(key, atom[lane], replica[lane], site);
    for (int k = 0; k < 4; ++k) words[k][lane] = site[k];
  }
}

// Series long enough that the first dropped term is under half an ulp on the reduced range.
template <typename T> struct Series;
template <> struct Series<float> {
  static constexpr int log_terms = 6, sine_terms = 5, cosine_terms = 6;
};
template <> struct Series<double> {
  static constexpr int log_terms = 12, sine_terms = 9, cosine_terms = 10;
};

// log(u) for u = n * 2^-24, n in 1..2^24: exponent and mantissa in [1/sqrt 2, sqrt 2), then
// log m = 2 artanh((m-1)/(m+1)).
template <typename T> DIFFMD_HOST_DEVICE DIFFMD_INLINE T log_uniform(std::int32_t n) {
  union { float f; std::int32_t i; } bits;
  bits.f = float(n);  // exact, n has at most 25 bits and 2^24 is a power of two
  std::int32_t exponent = (bits.i >> 23) - 127;
  bits.i = (bits.i & 0x007fffff) | 0x3f800000;
  const bool high = bits.f > 1.41421356f;
  const T m = high ? T(0.5f * bits.f) : T(bits.f);
  exponent += (high ? 1 : 0) - 24;
  const T s = (m - T(1)) / (m + T(1));
  const T s2 = s * s;
  T sum = T(1) / T(2 * Series<T>::log_terms - 1);
  for (int k = Series<T>::log_terms - 2; k >= 0; --k) sum = sum * s2 + T(1) / T(2 * k + 1);
  return T(exponent) * T(0.693147180559945309417232) + T(2) * s * sum;
}

// One Box-Muller pair from two words: radius from `a`, angle from `b`.
template <typename T>
DIFFMD_HOST_DEVICE DIFFMD_INLINE void box_muller(std::uint32_t a, std::uint32_t b, T* cosine_part, T* sine_part) {
  const T radius = std::sqrt(T(-2) * log_uniform<T>(std::int32_t(a >> 8) + 1));
  // The angle is v turns, v = n * 2^-24. The nearest quarter turn is taken off in integers, exactly.
  const std::int32_t n = std::int32_t(b >> 8);
  const std::int32_t quarter = (n + (1 << 21)) >> 22;
  const T x = T(n - (quarter << 22)) * T(6.283185307179586476925287 / 16777216.0);
  const T x2 = x * x;
  T sine = T(1), cosine = T(1);
  for (int k = Series<T>::sine_terms; k >= 1; --k) sine = T(1) - sine * x2 * (T(1) / T(2 * k * (2 * k + 1)));
  for (int k = Series<T>::cosine_terms; k >= 1; --k) cosine = T(1) - cosine * x2 * (T(1) / T((2 * k - 1) * 2 * k));
  sine *= x;
  const bool swap = quarter & 1;
  const T c = swap ? sine : cosine, s = swap ? cosine : sine;
  *cosine_part = radius * (((quarter + 1) & 2) ? -c : c);
  *sine_part = radius * ((quarter & 2) ? -s : s);
}

// Normals of kLanes sites: noise[component][lane].
template <typename T>
DIFFMD_INLINE void philox_normals(const PhiloxKey& key, const std::uint32_t* atom, const std::uint32_t* replica,
                                  T (*DIFFMD_RESTRICT noise)[kLanes]) {
  std::uint32_t words[4][kLanes];
  philox_words(key, atom, replica, words);
  for (int lane = 0; lane < kLanes; ++lane) {
    T unused;
    box_muller<T>(words[0][lane], words[1][lane], &noise[0][lane], &noise[1][lane]);
    box_muller<T>(words[2][lane], words[3][lane], &noise[2][lane], &unused);
  }
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
