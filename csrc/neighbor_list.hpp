// Neighbor lists in two phases, so that the caller owns all memory: count (bins the atoms, writes row_ptr), then
// fill (col, shift, reverse) once the caller has allocated row_ptr[n_nodes] edges.
//
// A node is an atom of a replica: node = replica * n_atoms + atom; n_nodes < 2^31. Rows hold each neighbor once,
// sorted by col. Whether a pair is listed is decided in double precision by one expression that is exactly
// antisymmetric in the pair and is compiled without fused multiply-adds (CMakeLists.txt): the same list comes out of
// every SIMD level, any number of threads, any number of cells, and both sides of a pair agree.
#pragma once
#include "levels.hpp"

namespace diffmd {

struct NeighborSearch {
  std::int64_t n_replicas, n_atoms;
  const double* box;       // [1 or n_replicas, 3, 3] nm, rows are the box vectors; null without a box
  const double* inverse;   // same shape, 1/nm: fraction = position @ inverse
  bool box_per_replica;
  double reach;            // cutoff + skin, nm; with a box at most half of its smallest perpendicular width
  std::int64_t max_cells;  // cells per replica, 1 (brute force) .. n_atoms
  // scratch, written by count and read by fill
  double* coordinates;     // [n_nodes, 3] by atom: wrapped fractions with a box, nm without
  double* sorted;          // [n_replicas, 3, n_atoms] the same, atoms in the order of their cells; 8 more places
                           // behind the last are read (and may hold anything)
  std::int32_t* order;     // [n_nodes] atom at each place of that order; fill overwrites it
  std::int32_t* wraps;     // [n_nodes, 3] box vectors taken off each atom; null without a box
  std::int32_t* first;     // [n_replicas, max_cells + 1] place of each cell's first atom
  std::int32_t* cells;     // [n_replicas, 3] cells along each axis
  double* grid;            // [n_replicas, 6] origin and cells per unit length of each axis
  // results
  std::int64_t* row_ptr;   // [n_nodes + 1]
  std::int32_t* col;       // [n_edges] node
  std::int32_t* shift;     // [n_edges, 3] box vectors to add to the neighbor; null without a box
  std::int64_t* reverse;   // [n_edges] edge of the same pair seen from the other side
  int n_threads;
};

// Distances along an existing list.
template <typename T> struct NeighborVectors {
  std::int64_t n_replicas, n_atoms, n_edges;
  const T* positions;           // [n_nodes, 3] nm
  const double* box;            // as above
  bool box_per_replica;
  const std::int64_t* row_ptr;  // [n_nodes + 1]
  const std::int32_t* col;      // [n_edges]
  const std::int32_t* shift;    // [n_edges, 3]; null without a box
  T* vectors;                   // [n_edges, 3] out, nm: x_col + shift @ box - x_row
  T* distances;                 // [n_edges] out, nm
  bool* consistent;             // out: false when rows do not cover the edges or col points outside; the results
                                // are then void
  int n_threads;
};

}  // namespace diffmd

// neighbor_list_count writes to *bad the first node that is not finite or is 2^29 box vectors away, else -1; then
// nothing may be filled.
DIFFMD_DECLARE(template <typename T>
               void neighbor_list_count(const NeighborSearch& call, const T* positions, std::int64_t* bad);
               void neighbor_list_fill(const NeighborSearch& call);
               void neighbor_list_all_pairs(const NeighborSearch& call);
               template <typename T> void neighbor_vectors(const NeighborVectors<T>& call))
