// Sine and cosine of torsion angles with first and second derivatives, smooth at every geometry.
//
//   b1 = x_b - x_a, b2 = x_c - x_b, b3 = x_d - x_c, n1 = b1 x b2, n2 = b2 x b3
//   X = n1 . n2,  Y = sqrt(|b2|^2 + kTorsionLengthFloor) (b1 . n2)
//   (sin, cos) = (Y, X) / sqrt(X^2 + Y^2 + kTorsionAreaFloor)
//
// The same formula, the same floors: python/diffmd_fast/reference/torsions.py, which says what they change.
#pragma once
#include "levels.hpp"

namespace diffmd {

constexpr double kTorsionLengthFloor = 1e-8;  // nm^2
constexpr double kTorsionAreaFloor = 1e-13;   // nm^8: the square of X and Y, which are nm^4

template <typename T> struct Torsions {
  std::int64_t n_replicas, n_atoms, n_torsions;
  const T* positions;             // [n_replicas, n_atoms, 3] nm
  const std::int64_t* quadruples; // [n_torsions, 4], checked by first_bad_quadruple
  const T* grad_output;           // [n_replicas, n_torsions, 2]; backward and double backward
  const T* cotangent;             // [n_replicas, n_atoms, 3], of the backward's result; double backward
  T* output;                      // [n_replicas, n_torsions, 2] out: (sin, cos), in the double backward their
                                  // derivative along `cotangent`; the backward leaves it alone
  T* grad_positions;              // [n_replicas, n_atoms, 3] out: the gradient, in the double backward its
                                  // derivative along `cotangent`; the forward leaves it alone
  int n_threads;
};

// Row of the first quadruple that has an atom out of range or twice; -1 when all are good. bindings.cpp alone
// calls it, before a kernel reads or writes: it belongs to no SIMD level.
inline std::int64_t first_bad_quadruple(const std::int64_t* atoms, std::int64_t n_rows,
                                        std::int64_t n_atoms) {
  for (std::int64_t row = 0; row < n_rows; ++row) {
    const std::int64_t* q = atoms + 4 * row;
    for (int i = 0; i < 4; ++i) {
      if (q[i] < 0 || q[i] >= n_atoms) return row;
      for (int j = 0; j < i; ++j)
        if (q[i] == q[j]) return row;
    }
  }
  return -1;
}

}  // namespace diffmd

DIFFMD_DECLARE(template <typename T> void torsions(const Torsions<T>& call);
               template <typename T> void torsions_backward(const Torsions<T>& call);
               template <typename T> void torsions_double_backward(const Torsions<T>& call))
