// One register of the level being compiled, as a type that + - * / < and ?: work on, where GCC's vectorizer would not
// keep sums in registers. Other compilers get registers of one lane: the same source, the same results. So does nvcc,
// and who defines DIFFMD_ONE_LANE.
#pragma once
#include <string.h>

#include "levels.hpp"

#if defined(__GNUC__) && !defined(__CUDACC__) && !defined(DIFFMD_ONE_LANE)
#define DIFFMD_VECTORS  // the compiler has types of many lanes
#endif

namespace diffmd {
namespace DIFFMD_LEVEL {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32, kRegisters = 16;
#else
constexpr int kRegisterBytes = 16, kRegisters = 16;
#endif

template <typename T> struct Simd;
#if defined(DIFFMD_VECTORS)
template <> struct Simd<float> {
  typedef float Pack __attribute__((vector_size(kRegisterBytes)));
  typedef std::uint32_t Bits __attribute__((vector_size(kRegisterBytes)));
  static constexpr int lanes = kRegisterBytes / 4;
};
template <> struct Simd<double> {
  typedef double Pack __attribute__((vector_size(kRegisterBytes)));
  typedef std::uint64_t Bits __attribute__((vector_size(kRegisterBytes)));
  static constexpr int lanes = kRegisterBytes / 8;
};
#else
template <> struct Simd<float> {
  typedef float Pack;
  typedef std::uint32_t Bits;
  static constexpr int lanes = 1;
};
template <> struct Simd<double> {
  typedef double Pack;
  typedef std::uint64_t Bits;
  static constexpr int lanes = 1;
};
#endif
template <typename T> using Pack = typename Simd<T>::Pack;

template <typename T> DIFFMD_INLINE Pack<T> load(const T* from) {
  Pack<T> value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <typename T> DIFFMD_INLINE void store(T* to, Pack<T> value) { memcpy(to, &value, sizeof value); }

template <typename T> DIFFMD_INLINE Pack<T> fill(T value) { return value - Pack<T>{}; }

// Sum of the lanes, in one order at every place.
template <typename T> DIFFMD_INLINE T sum_of(Pack<T> value) {
  T lane[Simd<T>::lanes];
  memcpy(lane, &value, sizeof value);
  for (int width = Simd<T>::lanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// ---- exp --------------------------------------------------------------------------------------------------
// x = n log 2 + r with |r| <= log(2)/2, exp(x) = 2^n exp(r), exp(r) by its Taylor series up to the last term that
// half an ulp notices. Relative error below 1 epsilon of T (largest of 3 million arguments: 0.84) on [-limit, limit],
// to which x is clamped; NaN stays NaN.
template <typename T> struct ExpConstants;
template <> struct ExpConstants<float> {
  static constexpr int terms = 7, mantissa = 23, bias = 127;
  static constexpr float limit = 87.0f, round = 12582912.0f;                    // 1.5 * 2^23
  static constexpr float log2_high = 0.693359375f, log2_low = -2.12194440e-4f;  // high part: 9 bits
};
template <> struct ExpConstants<double> {
  static constexpr int terms = 13, mantissa = 52, bias = 1023;
  static constexpr double limit = 708.0, round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double log2_high = 6.93147180369123816490e-01, log2_low = 1.90821492927058770002e-10;
};

template <typename T> DIFFMD_INLINE Pack<T> exp_of(Pack<T> x) {
  using C = ExpConstants<T>;
  x = x > fill<T>(C::limit) ? fill<T>(C::limit) : x;
  x = x < fill<T>(-C::limit) ? fill<T>(-C::limit) : x;
  // Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the low bits, a NaN included.
  const Pack<T> shifted = x * T(1.442695040888963407359925) + C::round;
  const Pack<T> n = shifted - C::round;
  const Pack<T> r = (x - n * C::log2_high) - n * C::log2_low;
  T over_factorial[C::terms + 1] = {T(1)};
  for (int k = 1; k <= C::terms; ++k) over_factorial[k] = over_factorial[k - 1] / T(k);
  Pack<T> sum = fill<T>(over_factorial[C::terms]);
  for (int k = C::terms - 1; k >= 0; --k) sum = sum * r + over_factorial[k];
  typename Simd<T>::Bits bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + C::bias) << C::mantissa;
  Pack<T> power;
  memcpy(&power, &bits, sizeof power);
  return sum * power;
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
