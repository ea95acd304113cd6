#include "verlet_list.hpp"

#include <string.h>

#include <cmath>

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr std::int64_t kWorthThreads = 16384;  // nodes
constexpr double kRounding = 1e-14;            // of a coordinate: what the subtraction, and the list itself, may err

// The two largest moves among some atoms; NaN where one is not finite.
template <typename T, bool moved_box>
void two_largest(const T* x, const T* x0, const double* a, std::int64_t n, double* out) {
  double largest = 0, second = 0, extent = 0, good = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    double squared = 0;
    for (int k = 0; k < 3; ++k) {
      double was = double(x0[3 * i + k]);
      if (moved_box)
        was = (double(x0[3 * i]) * a[k] + double(x0[3 * i + 1]) * a[3 + k]) + double(x0[3 * i + 2]) * a[6 + k];
      const double here = double(x[3 * i + k]), u = here - was, size = std::fabs(here);
      squared += u * u;
      extent = size > extent ? size : extent;
    }
    good += squared * 0;  // NaN from the first one on that is not finite
    const double smaller = squared < largest ? squared : largest;
    largest = squared > largest ? squared : largest;
    second = smaller > second ? smaller : second;
  }
  out[0] = (std::sqrt(largest) + kRounding * extent) + good;
  out[1] = (std::sqrt(second) + kRounding * extent) + good;
}

const Rows& rows_from(const Splice& call, std::int64_t r) { return call.source[r] < 0 ? call.kept : call.fresh; }

}  // namespace

template <typename T> void largest_moves(const Moves<T>& call) {
  const std::int64_t n = call.n_atoms, size = Moves<T>::kPiece, n_pieces = (n + size - 1) / size;
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_replicas * n > kWorthThreads)
  for (std::int64_t at = 0; at < call.n_replicas * n_pieces; ++at) {
    const std::int64_t r = at / n_pieces, first = (at - r * n_pieces) * size;
    const std::int64_t count = n - first < size ? n - first : size, begin = 3 * (r * n + first);
    const T *x = call.positions + begin, *x0 = call.anchors + begin;
    if (call.transform) two_largest<T, true>(x, x0, call.transform + 9 * r, count, call.pieces + 2 * at);
    else two_largest<T, false>(x, x0, nullptr, count, call.pieces + 2 * at);
  }
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    double largest = 0, second = 0, good = 0;
    for (std::int64_t p = 2 * r * n_pieces; p < 2 * (r + 1) * n_pieces; ++p) {
      const double move = call.pieces[p];
      good += move * 0;
      const double smaller = move < largest ? move : largest;
      largest = move > largest ? move : largest;
      second = smaller > second ? smaller : second;
    }
    call.furthest[r] = (largest + second) + good;
  }
}

void splice_count(const Splice& call) {
  const std::int64_t n = call.n_atoms;
  call.out.row_ptr[0] = 0;
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    const std::int64_t from = call.source[r] < 0 ? r : call.source[r];
    const std::int64_t* row_ptr = rows_from(call, r).row_ptr + from * n;
    std::int64_t* out = call.out.row_ptr + r * n;
    for (std::int64_t a = 1; a <= n; ++a) out[a] = out[0] + (row_ptr[a] - row_ptr[0]);
  }
}

void splice_fill(const Splice& call) {
  const std::int64_t n = call.n_atoms;
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_replicas * n > kWorthThreads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    const std::int64_t from = call.source[r] < 0 ? r : call.source[r];
    const Rows& rows = rows_from(call, r);
    const std::int64_t begin = rows.row_ptr[from * n], n_edges = rows.row_ptr[(from + 1) * n] - begin;
    const std::int64_t to = call.out.row_ptr[r * n], moved = to - begin;
    const std::int32_t nodes = std::int32_t((r - from) * n);
    for (std::int64_t e = 0; e < n_edges; ++e) call.out.col[to + e] = rows.col[begin + e] + nodes;
    for (std::int64_t e = 0; e < n_edges; ++e) call.out.reverse[to + e] = rows.reverse[begin + e] + moved;
    if (call.out.shift && n_edges > 0)
      memcpy(call.out.shift + 3 * to, rows.shift + 3 * begin, std::size_t(n_edges) * 3 * sizeof(std::int32_t));
  }
}

template void largest_moves<float>(const Moves<float>&);
template void largest_moves<double>(const Moves<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
