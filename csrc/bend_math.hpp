// The cosine of a bond angle and its gradient, shared by csrc/schnet.cpp and kernels/cuda/block_schnet.hpp; the twin of
// bend_cosines in python/diffmd_fast/models/bonded.py.
#pragma once
#include "torsion_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

template <typename T> struct Bend {
  T cosine;
  Vector<T> by_a, by_c;  // 1/nm; by the centre: minus both
};

// Of the bonds centre->a and centre->c, whatever their length: a floor keeps the gradient finite at length 0.
template <typename T> DIFFMD_INLINE Bend<T> bend_of(Vector<T> u, Vector<T> v) {
  const T over_u = inverse(square_root(dot(u, u) + T(kTorsionLengthFloor)));
  const T over_v = inverse(square_root(dot(v, v) + T(kTorsionLengthFloor)));
  u = over_u * u;
  v = over_v * v;
  const T cosine = dot(u, v);
  return {cosine, over_u * (v + (-cosine) * u), over_v * (u + (-cosine) * v)};
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
