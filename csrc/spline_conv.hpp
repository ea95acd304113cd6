// Continuous-filter convolution with a cubic B-spline filter, m_i = sum_j h_j * W(r_ij) for every feature, with its
// first and second derivatives (SchNet's interaction, arXiv 1706.08566 eq. 2; the filter is a spline, see
// docs/theory.md). W_f(r) = sum_k C[k, f] B_k(r), uniform knots of spacing cutoff / (n_knots - 3).
//
// The neighbor list is full and symmetric: edge i<-j has its twin j<-i at the same distance. So every sum "over the
// edges that touch i" is a sum over row i, each row is written by one thread, and no atomics are needed.
#pragma once
#include "levels.hpp"

namespace diffmd {

// What went wrong, as the kernels report it; nothing is computed then.
enum SplineStatus : int { kSplineFine = 0, kSplineBadRows = 1, kSplineBadColumns = 2, kSplineAsymmetric = 3, kSplineNoMemory = 4 };

template <typename T> struct SplineGraph {
  std::int64_t n_nodes, n_edges;
  std::int64_t n_features;   // at least 1
  std::int64_t n_knots;      // K, at least 4
  double cutoff;             // nm, above 0; edges at or beyond it contribute nothing
  const T* features;         // h [n_nodes, n_features]
  const T* positions;        // [n_nodes, 3] nm
  const T* coefficients;     // C [n_knots, n_features]
  const std::int64_t* row_ptr;  // [n_nodes + 1]; checked here: from 0, never falling, to n_edges
  const std::int32_t* col;      // [n_edges]; checked here: 0 .. n_nodes - 1
  const T* offsets;          // [n_edges, 3] nm, added to the position of `col`; or null: no periodic box
  int n_threads;
};

template <typename T> struct SplineConv {
  SplineGraph<T> graph;
  T* out;                    // m [n_nodes, n_features] out
};

template <typename T> struct SplineConvBackward {
  SplineGraph<T> graph;
  const T* grad;             // g = dL/dm [n_nodes, n_features]
  T* grad_features;          // [n_nodes, n_features] out, or null when nobody asked; so are the next two
  T* grad_positions;         // [n_nodes, 3] out
  T* grad_coefficients;      // [n_knots, n_features] out
};

// Derivatives of S = <grad_features, along_features> + <grad_positions, along_positions>
//                    + <grad_coefficients, along_coefficients>.
template <typename T> struct SplineConvDoubleBackward {
  SplineGraph<T> graph;
  const T* grad;                // g [n_nodes, n_features]
  const T* along_features;      // [n_nodes, n_features], or null for zero; so are the next two
  const T* along_positions;     // [n_nodes, 3]
  const T* along_coefficients;  // [n_knots, n_features]
  T* grad_grad;                 // dS/dg [n_nodes, n_features] out, always
  T* grad_features;             // dS/dh [n_nodes, n_features] out, always
  T* grad_positions;            // dS/dx [n_nodes, 3] out, or null when nobody asked
  T* grad_coefficients;         // dS/dC [n_knots, n_features] out, or null when nobody asked
};

// The offsets of a list's edges: shift @ box.
template <typename T> struct EdgeOffsets {
  std::int64_t n_edges;
  const std::int32_t* shift;  // [n_edges, 3] box vectors to add to the neighbor
  const double* box;          // [3, 3] nm, rows are the box vectors
  T* offsets;                 // [n_edges, 3] nm out; may be the memory of shift where T has 32 bits
  int n_threads;
};

}  // namespace diffmd

DIFFMD_DECLARE(template <typename T> void edge_offsets(const EdgeOffsets<T>& call))
DIFFMD_DECLARE(template <typename T> void spline_conv(const SplineConv<T>& call, int* status))
DIFFMD_DECLARE(template <typename T> void spline_conv_backward(const SplineConvBackward<T>& call, int* status))
DIFFMD_DECLARE(template <typename T> void spline_conv_double_backward(const SplineConvDoubleBackward<T>& call, int* status))
