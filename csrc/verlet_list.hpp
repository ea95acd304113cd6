// What keeps a neighbor list for more than one step: how far atoms have moved since it was made, and lists of single
// replicas put together into one. See python/diffmd_fast/ops/verlet_list.py.
#pragma once
#include "levels.hpp"

namespace diffmd {

template <typename T> struct Moves {
  static constexpr std::int64_t kPiece = 4096;  // atoms looked at together
  std::int64_t n_replicas, n_atoms;
  const T* positions;       // [n_replicas, n_atoms, 3] nm
  const T* anchors;         // same shape: where the list was made
  const double* transform;  // [n_replicas, 3, 3] anchor box^-1 @ box: what the box alone has done; null for nothing
  double* pieces;           // [n_replicas, ceil(n_atoms / kPiece), 2] scratch
  double* furthest;         // [n_replicas] out, nm: sum of the two largest |position - anchor @ transform|, rounded up;
                            // NaN where a position is not finite
  int n_threads;
};

// One neighbor list in compressed sparse rows, fields as in neighbor_list.hpp; shift null without a box.
struct Rows {
  std::int64_t* row_ptr;
  std::int32_t *col, *shift;
  std::int64_t* reverse;
};

// Replica r of `out` is replica source[r] of `fresh`, or where that is negative replica r of `kept`.
struct Splice {
  std::int64_t n_replicas, n_atoms;
  const std::int64_t* source;  // [n_replicas], below the number of replicas of `fresh`
  Rows kept, fresh, out;
  int n_threads;
};

}  // namespace diffmd

// splice_count writes out.row_ptr, splice_fill the rest once the caller has allocated out.row_ptr[n_nodes] edges.
DIFFMD_DECLARE(template <typename T> void largest_moves(const Moves<T>& call);
               void splice_count(const Splice& call);
               void splice_fill(const Splice& call))
