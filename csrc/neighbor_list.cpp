#include "neighbor_list.hpp"

#include "neighbor_metric.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr int kEdges = 128;  // of a row, measured together

// The edges of one row; false when one points outside.
template <typename T> bool measure_row(const NeighborVectors<T>& call, std::int64_t node) {
  const std::int64_t n_nodes = call.n_replicas * call.n_atoms, end = call.row_ptr[node + 1];
  const double* box = call.box ? call.box + (call.box_per_replica ? node / call.n_atoms * 9 : 0) : nullptr;
  T x[3][kEdges];
  std::int32_t s[3][kEdges];
  const T* const atoms[3] = {x[0], x[1], x[2]};
  const std::int32_t* const shifts[3] = {s[0], s[1], s[2]};
  for (std::int64_t from = call.row_ptr[node]; from < end; from += kEdges) {
    const int size = int(end - from < kEdges ? end - from : kEdges);
    for (int e = 0; e < size; ++e) {
      const std::int64_t other = call.col[from + e];
      if (other < 0 || other >= n_nodes) return false;
      for (int k = 0; k < 3; ++k) x[k][e] = call.positions[3 * other + k];
    }
    for (int e = 0; box && e < size; ++e)
      for (int k = 0; k < 3; ++k) s[k][e] = call.shift[3 * (from + e) + k];
    measure_edges(size, atoms, shifts, call.positions + 3 * node, box, call.vectors ? call.vectors + 3 * from : nullptr,
                  call.distances ? call.distances + from : nullptr);
  }
  return true;
}

}  // namespace

template <typename T> void neighbor_scratch_bytes(const NeighborSearch<T>& call, std::size_t* bytes) {
  *bytes = call.in_cells() ? cells_scratch_bytes(call) : pairs_scratch_bytes(call);
}

template <typename T> void neighbor_list_count(const NeighborSearch<T>& call, std::int64_t* bad) {
  *bad = call.in_cells() ? count_cells(call) : count_pairs(call);
  if (*bad >= 0) return;
  call.row_ptr[0] = 0;
  for (std::int64_t node = 0; node < call.n_nodes(); ++node) call.row_ptr[node + 1] += call.row_ptr[node];
}

template <typename T> void neighbor_list_fill(const NeighborSearch<T>& call, bool* enough_memory) {
  *enough_memory = true;
  if (call.in_cells()) {
    *enough_memory = fill_cells(call);  // measures as it goes
    return;
  }
  fill_pairs(call);  // measures distances only, and these without a box only: they are what it compares
  T* distances = call.box ? call.distances : nullptr;
  if (!call.vectors && !distances) return;
  bool consistent = true;
  neighbor_vectors(NeighborVectors<T>{call.n_replicas, call.n_atoms, call.row_ptr[call.n_nodes()], call.positions,
                                      call.box, call.box_per_replica, call.row_ptr, call.col, call.shift,
                                      call.vectors, distances, &consistent, call.n_threads});
}

void neighbor_list_all_pairs(std::int64_t n_replicas, std::int64_t n_atoms, std::int64_t* row_ptr, std::int32_t* col,
                             std::int64_t* reverse, int n_threads) {
  const std::int64_t n = n_atoms, n_nodes = n_replicas * n;
  for (std::int64_t node = 0; node <= n_nodes; ++node) row_ptr[node] = node * (n - 1);
#pragma omp parallel for schedule(static) num_threads(n_threads) if (n_threads > 1 && n_nodes > kWorthThreads)
  for (std::int64_t node = 0; node < n_nodes; ++node) {
    const std::int64_t base = node / n * n, i = node - base;
    std::int32_t* row = col + node * (n - 1);
    std::int64_t* mirror = reverse + node * (n - 1);
    for (std::int64_t j = 0; j < i; ++j) {
      row[j] = std::int32_t(base + j);
      mirror[j] = (base + j) * (n - 1) + i - 1;
    }
    for (std::int64_t j = i + 1; j < n; ++j) {
      row[j - 1] = std::int32_t(base + j);
      mirror[j - 1] = (base + j) * (n - 1) + i;
    }
  }
}

template <typename T> void neighbor_vectors(const NeighborVectors<T>& call) {
  const std::int64_t n_nodes = call.n_replicas * call.n_atoms;
  bool good = call.row_ptr[0] == 0 && call.row_ptr[n_nodes] == call.n_edges;  // each edge belongs to one row
#pragma omp parallel for reduction(&& : good) schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && n_nodes > kWorthThreads)
  for (std::int64_t node = 0; node < n_nodes; ++node) {
    const std::int64_t begin = call.row_ptr[node], end = call.row_ptr[node + 1];
    good = good && begin >= 0 && begin <= end && end <= call.n_edges && measure_row(call, node);
  }
  *call.consistent = good;
}

// In the order of operations of reference/neighbor_list.py, since fractions decide what is listed.
void inverse_boxes(Boxes& call) {
  call.first_bad = -1;
  call.width = HUGE_VAL;
  for (std::int64_t at = 0; at < call.n; ++at) {
    const double* b = call.box + 9 * at;
    double normal[3][3], edges = 1, width = HUGE_VAL;
    for (int k = 0; k < 3; ++k) {
      const double *u = b + 3 * ((k + 1) % 3), *v = b + 3 * ((k + 2) % 3);
      for (int c = 0; c < 3; ++c) {
        const int d = (c + 1) % 3, e = (c + 2) % 3;
        normal[k][c] = u[d] * v[e] - u[e] * v[d];
      }
      edges *= std::sqrt((b[3 * k] * b[3 * k] + b[3 * k + 1] * b[3 * k + 1]) + b[3 * k + 2] * b[3 * k + 2]);
    }
    const double volume = (b[0] * normal[0][0] + b[1] * normal[0][1]) + b[2] * normal[0][2];
    for (int k = 0; k < 3; ++k) {
      const double* n = normal[k];
      const double w = volume / std::sqrt((n[0] * n[0] + n[1] * n[1]) + n[2] * n[2]);
      width = w < width ? w : width;
      for (int c = 0; c < 3 && call.inverse; ++c) call.inverse[9 * at + 3 * c + k] = n[c] / volume;
    }
    const bool good = volume > 1e-6 * edges && edges < HUGE_VAL;  // false for NaN, too
    if (!good && call.first_bad < 0) call.first_bad = at;
    call.width = width < call.width ? width : call.width;
  }
}

#define DIFFMD_INSTANTIATE(T)                                                      \
  template void neighbor_scratch_bytes<T>(const NeighborSearch<T>&, std::size_t*); \
  template void neighbor_list_count<T>(const NeighborSearch<T>&, std::int64_t*);   \
  template void neighbor_list_fill<T>(const NeighborSearch<T>&, bool*);            \
  template void neighbor_vectors<T>(const NeighborVectors<T>&);
DIFFMD_INSTANTIATE(float)
DIFFMD_INSTANTIATE(double)

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
