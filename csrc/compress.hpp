// Comparisons as bit masks, one bit a lane, and the lanes of a mask packed together: what a search keeps of the
// candidates it looks at. Where the level has no instruction for it, a loop over the set bits does the same.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "simd.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

// Bit i: a[i] < b[i]; false for NaN.
DIFFMD_INLINE unsigned less(Pack<float> a, Pack<float> b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
#elif defined(__AVX__)
  return unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_ps(_mm_cmplt_ps(a, b)));
#else
  float left[Simd<float>::lanes], right[Simd<float>::lanes];
  memcpy(left, &a, sizeof a);
  memcpy(right, &b, sizeof b);
  unsigned mask = 0;
  for (int i = 0; i < Simd<float>::lanes; ++i) mask |= unsigned(left[i] < right[i]) << i;
  return mask;
#endif
}

DIFFMD_INLINE unsigned less(Pack<double> a, Pack<double> b) {
#if defined(__AVX512F__)
  return _mm512_cmp_pd_mask(a, b, _CMP_LT_OQ);
#elif defined(__AVX__)
  return unsigned(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_LT_OQ)));
#elif defined(__SSE2__)
  return unsigned(_mm_movemask_pd(_mm_cmplt_pd(a, b)));
#else
  double left[Simd<double>::lanes], right[Simd<double>::lanes];
  memcpy(left, &a, sizeof a);
  memcpy(right, &b, sizeof b);
  unsigned mask = 0;
  for (int i = 0; i < Simd<double>::lanes; ++i) mask |= unsigned(left[i] < right[i]) << i;
  return mask;
#endif
}

#if defined(__GNUC__)
#define DIFFMD_NOINLINE __attribute__((noinline))
DIFFMD_INLINE int count_bits(unsigned mask) { return __builtin_popcount(mask); }
DIFFMD_INLINE int lowest_bit(unsigned mask) { return __builtin_ctz(mask); }
#else
#define DIFFMD_NOINLINE
DIFFMD_INLINE int count_bits(unsigned mask) {
  int n = 0;
  for (; mask; mask &= mask - 1) ++n;
  return n;
}
DIFFMD_INLINE int lowest_bit(unsigned mask) { return count_bits((mask & (0u - mask)) - 1); }
#endif

typedef std::int32_t Numbers __attribute__((vector_size(kRegisterBytes)));

// count + (number < bound), lane by lane.
DIFFMD_INLINE Numbers count_less(Numbers count, std::int32_t number, Numbers bound) {
#if defined(__AVX512F__)
  const __m512i old = (__m512i)count, one = _mm512_set1_epi32(1);
  return (Numbers)_mm512_mask_add_epi32(old, _mm512_cmplt_epi32_mask(_mm512_set1_epi32(number), (__m512i)bound), old, one);
#else
  return count - (number < bound);
#endif
}

#if defined(__AVX512F__)
// first + (numbers of the mask's bits), packed together. Storing through a mask would be many times slower.
DIFFMD_INLINE __m512i packed_lanes(std::int32_t first, unsigned mask) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_maskz_compress_epi32(__mmask16(mask), _mm512_add_epi32(_mm512_set1_epi32(first), lane));
}
#endif

// out[0..] = first + (numbers of the mask's bits); one register behind them may be overwritten, so `out` needs that
// much room.
DIFFMD_INLINE void append_lanes(std::int32_t* out, std::int32_t first, unsigned mask) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(out, packed_lanes(first, mask));
#else
  for (; mask; mask &= mask - 1) *out++ = first + lowest_bit(mask);
#endif
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
