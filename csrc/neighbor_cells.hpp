// What the two halves of the cell list share: neighbor_cells.cpp sorts atoms into cells, neighbor_rows.cpp searches.
#pragma once
#include "neighbor_list.hpp"
#include "neighbor_metric.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

// The cells of one replica, in nm without a box and in fractions with one.
struct Grid {
  std::int32_t n[3];                    // cells along each axis
  std::int64_t first_cell;              // number of its cell (0, 0, 0) among the cells of all replicas
  double origin[3], width[3], scale[3]; // of the axes: lower end, width of a cell, cells per unit length
  float offset[27][3];                  // nm: centres of the cells around one, from its own
  float sure, maybe;                    // squared distances in float32: listed below, not listed from there on
  unsigned all;                         // ~0 where float32 settles nothing
  Metric metric;
};

// What is needed of an atom once it is listed, in two quads for float: they travel as two registers.
template <typename T> struct Atom {
  T x[3];
  std::int32_t node;
  std::int32_t wraps[4];  // box vectors taken off; among the candidates of a cell, those and its image's to put on
};

template <typename T> struct CellParts {
  static constexpr std::int64_t kPiece = 4096;  // atoms whose bounds are found together
  static constexpr std::int64_t kPad = 16;      // places read behind the last
  std::int64_t n_nodes, n_sorters, n_pieces;    // threads that sort; pieces per replica
  std::int64_t stride;       // n_nodes + kPad
  Grid* grids;               // [n_replicas]
  std::int32_t* cell;        // [n_nodes] of each atom; the cells of all replicas are numbered through
  std::int32_t* first;       // [n_nodes + 1] place of each cell's first atom
  std::int32_t* histogram;   // [n_sorters, n_cells]
  std::int32_t* node;        // [stride] at each place; atoms of a cell are in ascending order
  double* exact;             // [n_nodes, 3] by place: wrapped fractions with a box, nm without
  float* local;              // [3, stride] by place: nm from the centre of the atom's cell
  Atom<T>* atoms;            // [n_nodes] by place
  double* bounds;            // [n_replicas, n_pieces, 6]: least and greatest coordinates; null with a box
  std::int64_t* mirror;      // [n_sorters, n_nodes]: where the next edge that leads to an atom has its mirror
  std::size_t bytes;

  explicit CellParts(const NeighborSearch<T>& call) : n_nodes(call.n_nodes()), stride(n_nodes + kPad) {
    const std::int64_t most = n_nodes / kWorthThreads + 1, threads = call.n_threads < 16 ? call.n_threads : 16;
    n_sorters = threads < most ? threads : most;
    n_pieces = (call.n_atoms + kPiece - 1) / kPiece;
    Arena scratch{call.scratch};
    grids = scratch.take<Grid>(call.n_replicas);
    cell = scratch.take<std::int32_t>(n_nodes);
    first = scratch.take<std::int32_t>(n_nodes + 1);
    node = scratch.take<std::int32_t>(stride);
    exact = scratch.take<double>(3 * n_nodes);
    local = scratch.take<float>(3 * stride);
    atoms = scratch.take<Atom<T>>(n_nodes);
    bounds = scratch.take<double>(call.box ? 0 : call.n_replicas * n_pieces * 6);
    mirror = scratch.take<std::int64_t>(n_sorters * n_nodes);
    histogram = reinterpret_cast<std::int32_t*>(mirror);  // the one is done with before the other begins
    bytes = scratch.used;
  }

  std::int64_t n_cells(const NeighborSearch<T>& call) const {
    const Grid& last = grids[call.n_replicas - 1];
    return last.first_cell + std::int64_t(last.n[0]) * last.n[1] * last.n[2];
  }

  // The replica that a cell belongs to.
  std::int64_t replica_of(std::int64_t n_replicas, std::int64_t cell) const {
    std::int64_t low = 0, high = n_replicas;  // grids[low].first_cell <= cell < grids[high].first_cell
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (grids[middle].first_cell <= cell ? low : high) = middle;
    }
    return low;
  }

  // Its place (c[0], c[1], c[2]) in the grid.
  static void coordinates_of(const Grid& grid, std::int64_t cell, int* c) {
    const std::int64_t index = cell - grid.first_cell;
    c[2] = int(index % grid.n[2]);
    c[1] = int(index / grid.n[2] % grid.n[1]);
    c[0] = int(index / grid.n[2] / grid.n[1]);
  }
};

// neighbor_rows.cpp, once the atoms are sorted: row lengths into row_ptr[node + 1], then the rows themselves; false
// when memory ran out.
template <typename T> void count_rows(const NeighborSearch<T>& call, const CellParts<T>& parts);
template <typename T> bool fill_rows(const NeighborSearch<T>& call, const CellParts<T>& parts);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
