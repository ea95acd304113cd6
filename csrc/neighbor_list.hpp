// Neighbor lists in two phases, so that the caller owns all memory: count (writes row_ptr), then fill (col, shift,
// reverse, and vectors and distances where asked for) once the caller has allocated row_ptr[n_nodes] edges.
//
// A node is an atom of a replica: node = replica * n_atoms + atom; n_nodes < 2^31. Rows hold each neighbor once,
// sorted by col. Whether a pair is listed is decided in double precision by one expression that is exactly
// antisymmetric in the pair and is compiled without fused multiply-adds (neighbor_metric.hpp): the same list comes
// out of every SIMD level, any number of threads, any number of cells, and both sides of a pair agree. Cheaper
// arithmetic may only settle pairs that are further from the cutoff than its error.
#pragma once
#include "levels.hpp"

namespace diffmd {

template <typename T> struct NeighborSearch {
  std::int64_t n_replicas, n_atoms;  // both at least 1
  const T* positions;      // [n_nodes, 3] nm
  const double* box;       // [1 or n_replicas, 3, 3] nm, rows are the box vectors; null without a box
  const double* inverse;   // same shape, 1/nm: fraction = position @ inverse
  bool box_per_replica;
  double reach;            // cutoff + skin, nm; with a box at most half of its smallest perpendicular width
  bool cells;              // linked cells (neighbor_cells.cpp), or every pair of a replica (neighbor_pairs.cpp)
  char* scratch;           // neighbor_scratch_bytes of this call, written by count and read by fill
  // results
  std::int64_t* row_ptr;   // [n_nodes + 1]
  std::int32_t* col;       // [n_edges] node
  std::int32_t* shift;     // [n_edges, 3] box vectors to add to the neighbor; null without a box
  std::int64_t* reverse;   // [n_edges] edge of the same pair seen from the other side; null with `cells` only,
                           // when not asked for
  T* vectors;              // [n_edges, 3] nm: x_col + shift @ box - x_row; null when not asked for
  T* distances;            // [n_edges] nm; null when not asked for
  int n_threads;

  // Edges of a replica are counted in 32 bits where every pair is looked at.
  bool in_cells() const { return cells || n_atoms > 32768; }
  std::int64_t n_nodes() const { return n_replicas * n_atoms; }
  const double* box_of(std::int64_t r) const { return box ? box + (box_per_replica ? 9 * r : 0) : nullptr; }
  const double* inverse_of(std::int64_t r) const { return box ? inverse + (box_per_replica ? 9 * r : 0) : nullptr; }
};

// Vectors and distances along an existing list.
template <typename T> struct NeighborVectors {
  std::int64_t n_replicas, n_atoms, n_edges;
  const T* positions;           // [n_nodes, 3] nm
  const double* box;            // as above
  bool box_per_replica;
  const std::int64_t* row_ptr;  // [n_nodes + 1]
  const std::int32_t* col;      // [n_edges]
  const std::int32_t* shift;    // [n_edges, 3]; null without a box
  T* vectors;                   // [n_edges, 3] out, nm; null when not asked for
  T* distances;                 // [n_edges] out, nm; null when not asked for
  bool* consistent;             // out: false when rows do not cover the edges or col points outside; the results
                                // are then void
  int n_threads;
};

// What a batch of boxes comes to.
struct Boxes {
  std::int64_t n;
  const double* box;       // [n, 3, 3] nm, rows are the box vectors
  double* inverse;         // [n, 3, 3] out, 1/nm; null when not asked for
  std::int64_t first_bad;  // out: the first that is not finite, left-handed or flat, else -1
  double width;            // out: the smallest perpendicular width, nm
};

// Parts of one scratch, each on a cache line of its own. With a null base it only adds up what is needed.
struct Arena {
  char* base;
  std::size_t used = 0;

  template <typename X> X* take(std::int64_t n) {
    char* part = base ? base + used : nullptr;
    used += (std::size_t(n) * sizeof(X) + 63) / 64 * 64;
    return reinterpret_cast<X*>(part);
  }
};

}  // namespace diffmd

// neighbor_list_count writes to *bad the first node that is not finite or is 2^29 box vectors away, else -1; then
// nothing may be filled. neighbor_list_fill writes false to *enough_memory when it ran out, and the results are void.
DIFFMD_DECLARE(template <typename T> void neighbor_scratch_bytes(const NeighborSearch<T>& call, std::size_t* bytes);
               template <typename T> void neighbor_list_count(const NeighborSearch<T>& call, std::int64_t* bad);
               template <typename T> void neighbor_list_fill(const NeighborSearch<T>& call, bool* enough_memory);
               void neighbor_list_all_pairs(std::int64_t n_replicas, std::int64_t n_atoms, std::int64_t* row_ptr,
                                            std::int32_t* col, std::int64_t* reverse, int n_threads);
               template <typename T> void neighbor_vectors(const NeighborVectors<T>& call);
               void inverse_boxes(Boxes& call);
               // the two searches, called by the three above; they do not add up row_ptr
               template <typename T> std::size_t pairs_scratch_bytes(const NeighborSearch<T>& call);
               template <typename T> std::int64_t count_pairs(const NeighborSearch<T>& call);
               template <typename T> void fill_pairs(const NeighborSearch<T>& call);
               template <typename T> std::size_t cells_scratch_bytes(const NeighborSearch<T>& call);
               template <typename T> std::int64_t count_cells(const NeighborSearch<T>& call);
               template <typename T> bool fill_cells(const NeighborSearch<T>& call))
