// Linked cells (Allen and Tildesley, Computer Simulation of Liquids, 2nd ed., section 5.3.2) as one counting sort of
// all atoms of all replicas, and the mirrors of the finished list.
#include "neighbor_cells.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

DIFFMD_INLINE int cell_along(double x, double origin, double scale, int n) {
  const double c = (x - origin) * scale;
  return c > 0 ? (c < n - 1 ? int(c) : n - 1) : 0;  // NaN gives 0
}

// Squared distances in float32 that settle a pair. Coordinates are local: nm from the centre of a cell, moved by up to
// one cell, so none exceeds `largest`. With u = 2^-24 a component of a difference is off by at most 6 u largest (three
// roundings on either side, counted generously), a squared distance near reach^2 by at most
// 2 sqrt(3) reach 6 u largest + 3 (6 u largest)^2 + 4 u reach^2, and beyond reach it grows faster than its error.
// Twice that is allowed, and the error of the double precision expression, at most 2^-45 of the box.
void settle_by_float32(double reach, double largest, double extent, Grid& grid) {
  constexpr double u = 1.0 / 16777216.0, v = 1.0 / 35184372088832.0;
  const double reach2 = reach * reach;
  const double margin = u * (48 * largest * reach + 8 * reach2) + 400 * u * u * largest * largest +
                        v * (extent + largest) * (reach + v * extent);
  const bool usable = reach > 1e-15 && reach < 1e15 && largest < 1e15 && margin < 1e30;
  grid.sure = usable ? float(reach2 - margin) : 0.0f;
  grid.maybe = usable ? float(reach2 + margin) : 0.0f;
  grid.all = usable ? 0 : ~0u;
}

// Cells at least `reach` wide, at most n_atoms of them, whatever the spread of the positions.
template <typename T>
void choose_grid(const NeighborSearch<T>& call, std::int64_t r, const double* low, const double* high, Grid& grid) {
  const double* box = call.box_of(r);
  const double* inverse = call.inverse_of(r);
  const double most = double(call.n_atoms);
  double count[3], length[3];
  for (int k = 0; k < 3; ++k) {
    const double* m = inverse ? inverse + k : nullptr;
    grid.origin[k] = m ? 0.0 : low[k];
    length[k] = m ? 1.0 : high[k] - low[k];
    const double width = m ? 1.0 / std::sqrt(m[0] * m[0] + m[3] * m[3] + m[6] * m[6]) : length[k];
    count[k] = std::floor(width / (call.reach * 1.000001));  // the margin outweighs all rounding
    if (!(count[k] >= 1) || !(length[k] < 1e300)) count[k] = 1;
    if (count[k] > most) count[k] = most;
  }
  while (count[0] * count[1] * count[2] > most) {
    int largest = count[1] > count[0] ? 1 : 0;
    if (count[2] > count[largest]) largest = 2;
    count[largest] = std::floor(0.5 * (count[largest] + 1));
  }
  double side[3][3], largest = 0, extent = 0;  // nm: what one cell along each axis amounts to
  for (int k = 0; k < 3; ++k) {
    grid.n[k] = std::int32_t(count[k]);
    grid.scale[k] = length[k] > 0 ? count[k] / length[k] : 0.0;
    grid.width[k] = length[k] / count[k];
    for (int c = 0; c < 3; ++c) side[k][c] = (box ? box[3 * k + c] : c == k ? length[k] : 0.0) / count[k];
  }
  for (int c = 0; c < 3; ++c) {
    double sum = 0;
    for (int k = 0; k < 3; ++k) {
      sum += std::fabs(side[k][c]);
      extent += box ? std::fabs(box[3 * k + c]) : c == k ? std::fabs(low[k]) + std::fabs(high[k]) : 0.0;
    }
    if (!(sum <= largest)) largest = sum;
    for (int at = 0; at < 27; ++at)
      grid.offset[at][c] = float((at / 9 - 1) * side[0][c] + (at / 3 % 3 - 1) * side[1][c] + (at % 3 - 1) * side[2][c]);
  }
  grid.metric = Metric(box, call.reach);
  settle_by_float32(call.reach, 1.6 * largest, extent + largest, grid);
}

// Least and greatest coordinates of each replica without a box, piece by piece; the first bad node or n_nodes.
template <typename T> std::int64_t find_bounds(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n = call.n_atoms, n_pieces = parts.n_pieces;
  std::int64_t bad = parts.n_nodes;
#pragma omp parallel for reduction(min : bad) schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && parts.n_nodes > kWorthThreads)
  for (std::int64_t at = 0; at < call.n_replicas * n_pieces; ++at) {
    const std::int64_t r = at / n_pieces, from = (at - r * n_pieces) * CellParts<T>::kPiece;
    const std::int64_t to = from + CellParts<T>::kPiece < n ? from + CellParts<T>::kPiece : n;
    double x[3], low[3] = {}, high[3] = {};
    for (std::int64_t a = from; a < to; ++a) {
      const std::int64_t node = r * n + a;
      if (!wrap_atom(nullptr, call.positions + 3 * node, x, nullptr)) bad = node < bad ? node : bad;
      for (int k = 0; k < 3; ++k) {
        low[k] = a == from || x[k] < low[k] ? x[k] : low[k];
        high[k] = a == from || x[k] > high[k] ? x[k] : high[k];
      }
    }
    for (int k = 0; k < 3; ++k) parts.bounds[6 * at + k] = low[k], parts.bounds[6 * at + 3 + k] = high[k];
  }
  return bad;
}

template <typename T> void choose_grids(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  std::int64_t n_cells = 0;
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    double low[3] = {}, high[3] = {};
    for (std::int64_t p = 0; p < parts.n_pieces && !call.box; ++p) {
      const double* bounds = parts.bounds + 6 * (r * parts.n_pieces + p);
      for (int k = 0; k < 3; ++k) {
        low[k] = p == 0 || bounds[k] < low[k] ? bounds[k] : low[k];
        high[k] = p == 0 || bounds[3 + k] > high[k] ? bounds[3 + k] : high[k];
      }
    }
    Grid& grid = parts.grids[r];
    choose_grid(call, r, low, high, grid);
    grid.first_cell = n_cells;
    n_cells += std::int64_t(grid.n[0]) * grid.n[1] * grid.n[2];
  }
}

template <typename T> std::int64_t find_cells(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  std::int64_t bad = parts.n_nodes;
#pragma omp parallel for reduction(min : bad) schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && parts.n_nodes > kWorthThreads)
  for (std::int64_t node = 0; node < parts.n_nodes; ++node) {
    const std::int64_t r = node / call.n_atoms;
    const Grid& grid = parts.grids[r];
    double x[3];
    std::int32_t wraps[3];
    if (!wrap_atom(call.inverse_of(r), call.positions + 3 * node, x, wraps)) bad = node < bad ? node : bad;
    std::int64_t index = 0;
    for (int k = 0; k < 3; ++k)
      index = index * grid.n[k] + cell_along(x[k], grid.origin[k], grid.scale[k], grid.n[k]);
    parts.cell[node] = std::int32_t(grid.first_cell + index);
  }
  return bad;
}

// Counting sort of all atoms by cell. Each sorter takes a range of atoms; the order does not depend on how many.
template <typename T> void sort_atoms(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n_cells = parts.n_cells(call), n_nodes = parts.n_nodes, n_sorters = parts.n_sorters;
#pragma omp parallel for schedule(static) num_threads(int(n_sorters)) if (n_sorters > 1)
  for (std::int64_t s = 0; s < n_sorters; ++s) {
    std::int32_t* count = parts.histogram + s * n_cells;
    for (std::int64_t c = 0; c < n_cells; ++c) count[c] = 0;
    for (std::int64_t a = n_nodes * s / n_sorters; a < n_nodes * (s + 1) / n_sorters; ++a) ++count[parts.cell[a]];
  }
  std::int32_t place = 0;
  for (std::int64_t c = 0; c < n_cells; ++c) {
    parts.first[c] = place;
    for (std::int64_t s = 0; s < n_sorters; ++s) {
      std::int32_t& count = parts.histogram[s * n_cells + c];
      const std::int32_t begin = place;
      place += count;
      count = begin;
    }
  }
  parts.first[n_cells] = place;
#pragma omp parallel for schedule(static) num_threads(int(n_sorters)) if (n_sorters > 1)
  for (std::int64_t s = 0; s < n_sorters; ++s) {
    std::int32_t* next = parts.histogram + s * n_cells;
    for (std::int64_t a = n_nodes * s / n_sorters; a < n_nodes * (s + 1) / n_sorters; ++a)
      parts.node[next[parts.cell[a]]++] = std::int32_t(a);
  }
}

// What the search reads, in the order of the cells: atoms near in space are near in memory.
template <typename T> void place_atoms(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n_cells = parts.n_cells(call), stride = parts.stride;
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && parts.n_nodes > kWorthThreads)
  for (std::int64_t cell = 0; cell < n_cells; ++cell) {
    const std::int64_t r = parts.replica_of(call.n_replicas, cell);
    const Grid& grid = parts.grids[r];
    int c[3];
    parts.coordinates_of(grid, cell, c);
    double centre[3];
    for (int k = 0; k < 3; ++k) centre[k] = grid.origin[k] + (c[k] + 0.5) * grid.width[k];
    for (std::int64_t place = parts.first[cell]; place < parts.first[cell + 1]; ++place) {
      const std::int64_t node = parts.node[place];
      const T* from = call.positions + 3 * node;
      Atom<T>& atom = parts.atoms[place];
      double* x = parts.exact + 3 * place;
      atom.node = std::int32_t(node);
      for (int k = 0; k < 4; ++k) atom.wraps[k] = 0;
      wrap_atom(call.inverse_of(r), from, x, atom.wraps);
      double d[3];
      for (int k = 0; k < 3; ++k) atom.x[k] = from[k], d[k] = x[k] - centre[k];
      const double* b = grid.metric.b;
      const bool open = grid.metric.space == Space::open;
      for (int k = 0; k < 3; ++k)
        parts.local[k * stride + place] = float(open ? d[k] : (d[0] * b[k] + d[1] * b[3 + k]) + d[2] * b[6 + k]);
    }
  }
  for (std::int64_t pad = parts.n_nodes; pad < stride; ++pad) {
    for (int k = 0; k < 3; ++k) parts.local[k * stride + pad] = 0;
    parts.node[pad] = 0;
  }
}

// Places of the mirrors: where the numbers of row `node` reach `from`.
DIFFMD_INLINE std::int64_t first_from(const std::int32_t* col, std::int64_t begin, std::int64_t end,
                                      std::int64_t from) {
  while (begin < end) {
    const std::int64_t middle = begin + (end - begin) / 2;
    if (col[middle] < from) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// Rows are visited in ascending order and each row is sorted, so the k-th edge that leads to a node is the mirror of
// the node's own k-th edge. Each part takes a range of rows, and begins in the row of every node at the first edge
// that leads into its range.
template <typename T> void find_reverse(const NeighborSearch<T>& call, const CellParts<T>& parts) {
  const std::int64_t n_parts = parts.n_sorters, n_nodes = parts.n_nodes;
#pragma omp parallel for schedule(static) num_threads(int(n_parts)) if (n_parts > 1)
  for (std::int64_t part = 0; part < n_parts; ++part) {
    const std::int64_t from = n_nodes * part / n_parts, to = n_nodes * (part + 1) / n_parts;
    std::int64_t* mirror = parts.mirror + part * n_nodes;
    const std::int64_t lowest = from / call.n_atoms * call.n_atoms;  // rows lead to atoms of their replicas only
    const std::int64_t highest = (to + call.n_atoms - 1) / call.n_atoms * call.n_atoms;
    for (std::int64_t node = lowest; node < highest; ++node)
      mirror[node] = first_from(call.col, call.row_ptr[node], from == lowest ? call.row_ptr[node]
                                                                             : call.row_ptr[node + 1], from);
    for (std::int64_t e = call.row_ptr[from]; e < call.row_ptr[to]; ++e) call.reverse[e] = mirror[call.col[e]]++;
  }
}

}  // namespace

template <typename T> std::size_t cells_scratch_bytes(const NeighborSearch<T>& call) {
  return CellParts<T>(call).bytes;
}

template <typename T> std::int64_t count_cells(const NeighborSearch<T>& call) {
  const CellParts<T> parts(call);
  if (!call.box) {
    const std::int64_t bad = find_bounds(call, parts);
    if (bad < parts.n_nodes) return bad;
  }
  choose_grids(call, parts);
  const std::int64_t bad = find_cells(call, parts);
  if (bad < parts.n_nodes) return bad;
  sort_atoms(call, parts);
  place_atoms(call, parts);
  count_rows(call, parts);
  return -1;
}

template <typename T> bool fill_cells(const NeighborSearch<T>& call) {
  const CellParts<T> parts(call);
  if (!fill_rows(call, parts)) return false;
  if (call.reverse) find_reverse(call, parts);
  return true;
}

template std::size_t cells_scratch_bytes<float>(const NeighborSearch<float>&);
template std::size_t cells_scratch_bytes<double>(const NeighborSearch<double>&);
template std::int64_t count_cells<float>(const NeighborSearch<float>&);
template std::int64_t count_cells<double>(const NeighborSearch<double>&);
template bool fill_cells<float>(const NeighborSearch<float>&);
template bool fill_cells<double>(const NeighborSearch<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
