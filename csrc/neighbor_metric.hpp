// The arithmetic that neighbor lists rest on, each expression once. Only files compiled without fused multiply-adds
// (CMakeLists.txt) may include this: then every SIMD level and every caller gets the same bits.
#pragma once
#include <cmath>

#include "levels.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr double kFarthest = 536870912.0;     // 2^29 box vectors: sums of two wraps and a shift fit in 32 bits
constexpr std::int64_t kWorthThreads = 2048;  // nodes; below, starting threads costs more than it saves

// Nearest integer, halves to even, exactly antisymmetric; for |x| < 2^51. X is double or a register of doubles.
template <typename X> DIFFMD_INLINE X nearest(X x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + magic) - magic;
}

enum class Space { open, orthorhombic, triclinic };

// The one expression that decides whether a pair is listed. With a box (d0, d1, d2) is a difference of fractions,
// and an image nearer than half of each perpendicular width has all of its fractions within +-1/2, so rounding
// finds it also in a triclinic box. The orthorhombic form drops products with zero, which changes no bit.
struct Metric {
  double b[9], reach2;
  Space space;

  Metric() = default;
  Metric(const double* box, double reach) : reach2(reach * reach), space(Space::open) {
    for (int k = 0; k < 9; ++k) b[k] = box ? box[k] : 0.0;
    if (!box) return;
    const bool diagonal = !(b[1] != 0 || b[2] != 0 || b[3] != 0 || b[5] != 0 || b[6] != 0 || b[7] != 0);
    space = diagonal ? Space::orthorhombic : Space::triclinic;
  }

  template <Space form, typename X> DIFFMD_INLINE X squared(X d0, X d1, X d2) const {
    if constexpr (form == Space::open) return (d0 * d0 + d1 * d1) + d2 * d2;
    else return periodic<form>(d0, d1, d2);
  }

  template <Space form, typename X> DIFFMD_INLINE X periodic(X d0, X d1, X d2) const {
    const X f0 = d0 - nearest(d0), f1 = d1 - nearest(d1), f2 = d2 - nearest(d2);
    if (form == Space::orthorhombic) {
      const X x = f0 * b[0], y = f1 * b[4], z = f2 * b[8];
      return (x * x + y * y) + z * z;
    }
    const X x = (f0 * b[0] + f1 * b[3]) + f2 * b[6];
    const X y = (f0 * b[1] + f1 * b[4]) + f2 * b[7];
    const X z = (f0 * b[2] + f1 * b[5]) + f2 * b[8];
    return (x * x + y * y) + z * z;
  }

  bool lists(const double* mine, const double* other) const {
    const double d0 = other[0] - mine[0], d1 = other[1] - mine[1], d2 = other[2] - mine[2];
    if (space == Space::open) return squared<Space::open>(d0, d1, d2) < reach2;
    if (space == Space::orthorhombic) return squared<Space::orthorhombic>(d0, d1, d2) < reach2;
    return squared<Space::triclinic>(d0, d1, d2) < reach2;
  }
};

// One position as fractions within [0, 1] and the box vectors taken off it, or as it is without a box (inverse null).
// False when it is not finite or too far away to count the wraps.
template <typename T>
DIFFMD_INLINE bool wrap_atom(const double* inverse, const T* position, double* out, std::int32_t* wraps) {
  const double x = double(position[0]), y = double(position[1]), z = double(position[2]);
  bool good = x - x == 0 && y - y == 0 && z - z == 0;
  if (!inverse) {
    out[0] = x, out[1] = y, out[2] = z;
    return good;
  }
  for (int k = 0; k < 3; ++k) {
    const double fraction = (x * inverse[k] + y * inverse[3 + k]) + z * inverse[6 + k];
    const double whole = std::floor(fraction);
    const bool near = whole > -kFarthest && whole < kFarthest;
    wraps[k] = near ? std::int32_t(whole) : 0;
    out[k] = near ? fraction - whole : 0.0;
    good = good && near;
  }
  return good;
}

DIFFMD_INLINE bool any_of(const std::int32_t* const* s, int from, int size) {
  std::int32_t any = 0;
  for (int k = 0; k < 3; ++k)
    for (int e = from; e < from + size; ++e) any |= s[k][e];
  return any != 0;
}

// Edges of one row: atoms at x (three arrays), shifted by s (three arrays; unused without a box). The vector
// x + s @ box - mine is rounded to T once, the distance is its norm in T. Either result may be null.
template <typename T>
DIFFMD_INLINE void measure_edges(int n, const T* const* x, const std::int32_t* const* s, const T* mine,
                                 const double* box, T* vectors, T* distances) {
  constexpr int kBlock = 64;
  T v[3][kBlock];
  for (int from = 0; from < n; from += kBlock) {
    const int size = n - from < kBlock ? n - from : kBlock;
    // Without shifts the difference is rounded once, too, and without detour: T rounds a double of two T as it would
    // their exact difference, since a double has more than twice the digits of a float.
    const bool shifted = box && any_of(s, from, size);
    for (int k = 0; k < 3; ++k) {
      const T* DIFFMD_RESTRICT there = x[k] + from;
      if (!shifted) {
        for (int e = 0; e < size; ++e) v[k][e] = there[e] - mine[k];
        continue;
      }
      const std::int32_t *s0 = s[0] + from, *s1 = s[1] + from, *s2 = s[2] + from;
      const double b0 = box[k], b1 = box[3 + k], b2 = box[6 + k], here = double(mine[k]);
      for (int e = 0; e < size; ++e)
        v[k][e] = T((double(there[e]) - here) + ((s0[e] * b0 + s1[e] * b1) + s2[e] * b2));
    }
    if (vectors)
      for (int e = 0; e < size; ++e)
        for (int k = 0; k < 3; ++k) vectors[3 * (from + e) + k] = v[k][e];
    if (distances)
      for (int e = 0; e < size; ++e)
        distances[from + e] = std::sqrt((v[0][e] * v[0][e] + v[1][e] * v[1][e]) + v[2][e] * v[2][e]);
  }
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
