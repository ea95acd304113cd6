#include "neighbor_list.hpp"

#include <cmath>

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr int kBlock = 256;                   // candidates examined together
constexpr int kLanes = 8;                     // of them in one go, all the same way
constexpr double kFarthest = 536870912.0;     // 2^29 box vectors: sums of two wraps and a shift fit in 32 bits
constexpr std::int64_t kWorthThreads = 2048;  // nodes; below, starting threads costs more than it saves

// Nearest integer, halves to even, exactly antisymmetric; for |x| < 2^51. Vectorizes on every SIMD level.
DIFFMD_INLINE double nearest(double x) {
  constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
  return (x + magic) - magic;
}

// The one expression that decides whether a pair is listed. With a box (d0, d1, d2) is a difference of fractions,
// and an image nearer than half of each perpendicular width has all of its fractions within +-1/2, so rounding
// finds it also in a triclinic box. The orthorhombic form drops products with zero, which changes no bit.
enum class Space { open, orthorhombic, triclinic };

struct Metric {
  double b[9], reach2;

  bool diagonal() const { return !(b[1] != 0 || b[2] != 0 || b[3] != 0 || b[5] != 0 || b[6] != 0 || b[7] != 0); }

  template <Space space> DIFFMD_INLINE double squared(double d0, double d1, double d2) const {
    if (space == Space::open) return (d0 * d0 + d1 * d1) + d2 * d2;
    const double f0 = d0 - nearest(d0), f1 = d1 - nearest(d1), f2 = d2 - nearest(d2);
    if (space == Space::orthorhombic) {
      const double x = f0 * b[0], y = f1 * b[4], z = f2 * b[8];
      return (x * x + y * y) + z * z;
    }
    const double x = (f0 * b[0] + f1 * b[3]) + f2 * b[6];
    const double y = (f0 * b[1] + f1 * b[4]) + f2 * b[7];
    const double z = (f0 * b[2] + f1 * b[5]) + f2 * b[8];
    return (x * x + y * y) + z * z;
  }
};

Metric metric_of(const NeighborSearch& call, std::int64_t r) {
  Metric metric{};
  metric.reach2 = call.reach * call.reach;
  const double* box = call.box ? call.box + (call.box_per_replica ? 9 * r : 0) : nullptr;
  for (int k = 0; box && k < 9; ++k) metric.b[k] = box[k];
  return metric;
}

// ---- cells ----------------------------------------------------------------------------------------------

DIFFMD_INLINE int cell_along(double x, double origin, double scale, int n) {
  const double c = (x - origin) * scale;
  return c > 0 ? (c < n - 1 ? int(c) : n - 1) : 0;  // NaN gives 0
}

// Cells at least `reach` wide, at most max_cells of them, whatever the spread of the positions.
void choose_grid(const NeighborSearch& call, std::int64_t r, const double* low, const double* high) {
  std::int32_t* cells = call.cells + 3 * r;
  double* grid = call.grid + 6 * r;
  double count[3], length[3];
  for (int k = 0; k < 3; ++k) {
    const double* m = call.inverse ? call.inverse + (call.box_per_replica ? 9 * r : 0) + k : nullptr;
    grid[k] = m ? 0.0 : low[k];
    length[k] = m ? 1.0 : high[k] - low[k];
    const double width = m ? 1.0 / std::sqrt(m[0] * m[0] + m[3] * m[3] + m[6] * m[6]) : length[k];
    count[k] = std::floor(width / (call.reach * 1.000001));  // the margin outweighs all rounding
    if (!(count[k] >= 1) || !(length[k] < 1e300)) count[k] = 1;
    if (count[k] > double(call.max_cells)) count[k] = double(call.max_cells);
  }
  while (count[0] * count[1] * count[2] > double(call.max_cells)) {
    int largest = count[1] > count[0] ? 1 : 0;
    if (count[2] > count[largest]) largest = 2;
    count[largest] = std::floor(0.5 * (count[largest] + 1));
  }
  for (int k = 0; k < 3; ++k) {
    cells[k] = std::int32_t(count[k]);
    grid[3 + k] = length[k] > 0 ? count[k] / length[k] : 0.0;
  }
}

DIFFMD_INLINE void cell_of(const NeighborSearch& call, std::int64_t r, const double* x, int* c) {
  const double* grid = call.grid + 6 * r;
  for (int k = 0; k < 3; ++k) c[k] = cell_along(x[k], grid[k], grid[3 + k], call.cells[3 * r + k]);
}

// Wrap one atom into the box; false when it is not finite or too far away to count the wraps.
template <typename T>
DIFFMD_INLINE bool load_atom(const NeighborSearch& call, std::int64_t r, std::int64_t node, const T* position) {
  const double x = double(position[0]), y = double(position[1]), z = double(position[2]);
  double* out = call.coordinates + 3 * node;
  bool good = x - x == 0 && y - y == 0 && z - z == 0;
  if (!call.box) {
    out[0] = x, out[1] = y, out[2] = z;
    return good;
  }
  const double* m = call.inverse + (call.box_per_replica ? 9 * r : 0);
  for (int k = 0; k < 3; ++k) {
    const double fraction = (x * m[k] + y * m[3 + k]) + z * m[6 + k];
    const double whole = std::floor(fraction);
    const bool near = whole > -kFarthest && whole < kFarthest;
    call.wraps[3 * node + k] = near ? std::int32_t(whole) : 0;
    out[k] = near ? fraction - whole : 0.0;
    good = good && near;
  }
  return good;
}

// Counting sort of a replica's atoms by cell; the place of the first bad node, or n_nodes.
template <typename T> std::int64_t bin_replica(const NeighborSearch& call, std::int64_t r, const T* positions) {
  const std::int64_t n = call.n_atoms, base = r * n;
  std::int64_t bad = call.n_replicas * n;
  double low[3], high[3];
  for (std::int64_t a = n - 1; a >= 0; --a) {
    if (!load_atom(call, r, base + a, positions + 3 * (base + a))) bad = base + a;
    const double* x = call.coordinates + 3 * (base + a);
    for (int k = 0; k < 3; ++k) {
      low[k] = a == n - 1 || x[k] < low[k] ? x[k] : low[k];
      high[k] = a == n - 1 || x[k] > high[k] ? x[k] : high[k];
    }
  }
  if (bad < call.n_replicas * n) return bad;
  choose_grid(call, r, low, high);
  const std::int32_t* cells = call.cells + 3 * r;
  const std::int64_t n_cells = std::int64_t(cells[0]) * cells[1] * cells[2];
  std::int32_t* first = call.first + r * (call.max_cells + 1);
  for (std::int64_t c = 0; c <= n_cells; ++c) first[c] = 0;
  const auto cell_index = [&](std::int64_t a) {
    int c[3];
    cell_of(call, r, call.coordinates + 3 * (base + a), c);
    return (std::int64_t(c[0]) * cells[1] + c[1]) * cells[2] + c[2];
  };
  for (std::int64_t a = 0; a < n; ++a) ++first[cell_index(a) + 1];
  for (std::int64_t c = 0; c < n_cells; ++c) first[c + 1] += first[c];
  double* sorted = call.sorted + 3 * base;
  for (std::int64_t a = n - 1; a >= 0; --a) {  // backwards, so that first[c + 1] ends as the start of cell c
    const std::int32_t place = --first[cell_index(a) + 1];
    call.order[base + place] = std::int32_t(a);
    for (int k = 0; k < 3; ++k) sorted[k * n + place] = call.coordinates[3 * (base + a) + k];
  }
  for (std::int64_t c = 0; c < n_cells; ++c) first[c] = first[c + 1];
  first[n_cells] = std::int32_t(n);
  return bad;
}

// Distinct cells along one axis within one cell of c.
DIFFMD_INLINE int around(int c, int n, bool periodic, int* out) {
  int m = 0;
  if (!periodic || n <= 3) {
    const int from = periodic ? 0 : (c > 0 ? c - 1 : 0), to = periodic ? n - 1 : (c < n - 1 ? c + 1 : n - 1);
    for (int k = from; k <= to; ++k) out[m++] = k;
    return m;
  }
  for (int d = -1; d <= 1; ++d) out[m++] = (c + d + n) % n;
  return m;
}

// The runs [begin, end) of places that hold all candidates of a cell; at most 27.
struct Runs {
  int n = 0;
  std::int32_t begin[27], end[27];
};

void find_runs(const NeighborSearch& call, std::int64_t r, const int* c, Runs& runs) {
  const std::int32_t* cells = call.cells + 3 * r;
  const std::int32_t* first = call.first + r * (call.max_cells + 1);
  int near[3][3], n_near[3];
  for (int k = 0; k < 3; ++k) n_near[k] = around(c[k], cells[k], call.box != nullptr, near[k]);
  runs.n = 0;
  for (int i = 0; i < n_near[0]; ++i) {
    for (int j = 0; j < n_near[1]; ++j) {
      const std::int64_t line = (std::int64_t(near[0][i]) * cells[1] + near[1][j]) * cells[2];
      for (int k = 0; k < n_near[2]; ++k) {
        const std::int32_t begin = first[line + near[2][k]], end = first[line + near[2][k] + 1];
        if (runs.n > 0 && runs.end[runs.n - 1] == begin) {
          runs.end[runs.n - 1] = end;  // cells side by side are one run
        } else if (begin < end) {
          runs.begin[runs.n] = begin;
          runs.end[runs.n++] = end;
        }
      }
    }
  }
}

// ---- rows -----------------------------------------------------------------------------------------------

// near[i] = 1 where candidate from + i is within reach of the atom at `place`, for i < size rounded up to kLanes:
// the rest of the last group belongs to whatever lies behind the run and is not to be used.
template <Space space> struct Candidates {
  const double *x, *y, *z;
  double x0, y0, z0;
  Metric m;

  Candidates(const NeighborSearch& call, std::int64_t r, std::int64_t place, const Metric& metric)
      : x(call.sorted + 3 * r * call.n_atoms), y(x + call.n_atoms), z(y + call.n_atoms), x0(x[place]), y0(y[place]),
        z0(z[place]), m(metric) {}

  DIFFMD_INLINE void examine(std::int64_t from, int size, std::int32_t* DIFFMD_RESTRICT near) const {
    const double *xs = x + from, *ys = y + from, *zs = z + from;
    const int padded = (size + kLanes - 1) & -kLanes;
    for (int i = 0; i < padded; ++i)
      near[i] = m.template squared<space>(xs[i] - x0, ys[i] - y0, zs[i] - z0) < m.reach2;
  }
};

template <Space space>
std::int64_t count_row(const NeighborSearch& call, std::int64_t r, std::int64_t place, const Metric& metric,
                       const Runs& runs) {
  const Candidates<space> candidates(call, r, place, metric);
  std::int64_t count = 0;
  std::int32_t near[kBlock];
  for (int k = 0; k < runs.n; ++k) {
    for (std::int64_t from = runs.begin[k]; from < runs.end[k]; from += kBlock) {
      const int size = int(runs.end[k] - from < kBlock ? runs.end[k] - from : kBlock);
      candidates.examine(from, size, near);
      std::int32_t hits = 0;
      for (int i = 0; i < size; ++i) hits += near[i];
      count += hits;
    }
  }
  return count - (0.0 < metric.reach2);  // the atom itself, at distance 0
}

// The atoms of one row, unsorted, into `found`, which has room for one more than the row has.
template <Space space>
void find_row(const NeighborSearch& call, std::int64_t r, std::int64_t place, const Metric& metric,
                      const Runs& runs, std::int32_t* DIFFMD_RESTRICT found) {
  const Candidates<space> candidates(call, r, place, metric);
  const std::int32_t* order = call.order + r * call.n_atoms;
  std::int64_t n = 0;
  std::int32_t near[kBlock];
  for (int k = 0; k < runs.n; ++k) {
    for (std::int64_t from = runs.begin[k]; from < runs.end[k]; from += kBlock) {
      const int size = int(runs.end[k] - from < kBlock ? runs.end[k] - from : kBlock);
      candidates.examine(from, size, near);
      if (place >= from && place < from + size) near[place - from] = 0;
      for (int i = 0; i < size; ++i) {  // without branches: hits are too irregular to predict
        found[n] = order[from + i];
        n += near[i];
      }
    }
  }
}

// `found`, n distinct numbers, in ascending order into `row`; `found` is used up. Short rows by rank, which
// vectorizes, long ones by merging.
void sort_into(std::int32_t* DIFFMD_RESTRICT row, std::int32_t* DIFFMD_RESTRICT found, std::int64_t n) {
  constexpr int kShort = 96;
  if (n <= kShort) {
    std::int32_t keys[kShort + kLanes];
    for (std::int64_t i = 0; i < n; ++i) keys[i] = found[i];
    for (std::int64_t i = n; i < n + kLanes; ++i) keys[i] = 0;
    for (std::int64_t i = 0; i < n; i += kLanes) {
      std::int32_t rank[kLanes] = {};
      for (std::int64_t j = 0; j < n; ++j)
        for (int lane = 0; lane < kLanes; ++lane) rank[lane] += keys[j] < keys[i + lane];
      for (int lane = 0; lane < kLanes && i + lane < n; ++lane) row[rank[lane]] = keys[i + lane];
    }
    return;
  }
  const std::int64_t half = n / 2;
  sort_into(row, found, half);
  sort_into(row + half, found + half, n - half);
  for (std::int64_t i = 0; i < n; ++i) found[i] = row[i];
  for (std::int64_t i = 0, a = 0, b = half; i < n; ++i)
    row[i] = b == n || (a < half && found[a] < found[b]) ? found[a++] : found[b++];
}

template <Space space>
void fill_row(const NeighborSearch& call, std::int64_t r, std::int64_t place, const Metric& metric,
              const Runs& runs) {
  const std::int64_t base = r * call.n_atoms, node = base + call.order[base + place];
  const std::int64_t begin = call.row_ptr[node], n = call.row_ptr[node + 1] - begin;
  if (n == 0) return;
  std::int32_t* row = call.col + begin;
  std::int32_t* found = reinterpret_cast<std::int32_t*>(call.reverse + begin);  // 2 n places, free until the end
  find_row<space>(call, r, place, metric, runs, found);
  sort_into(row, found, n);
  for (std::int64_t e = 0; e < n; ++e) row[e] += std::int32_t(base);
  if (space == Space::open) return;
  const double* DIFFMD_RESTRICT mine = call.coordinates + 3 * node;
  const std::int32_t* DIFFMD_RESTRICT my_wraps = call.wraps + 3 * node;
  std::int32_t* DIFFMD_RESTRICT shift = call.shift + 3 * begin;
  for (std::int64_t e = 0; e < n; ++e) {
    const std::int64_t other = 3 * std::int64_t(row[e]);
    for (int k = 0; k < 3; ++k)
      shift[3 * e + k] =
          my_wraps[k] - call.wraps[other + k] - std::int32_t(nearest(call.coordinates[other + k] - mine[k]));
  }
}

template <bool fill>
void one_row(const NeighborSearch& call, std::int64_t r, std::int64_t place, std::int64_t node, const Metric& metric,
             const Runs& runs, Space space) {
  if (fill) {
    if (space == Space::open) fill_row<Space::open>(call, r, place, metric, runs);
    if (space == Space::orthorhombic) fill_row<Space::orthorhombic>(call, r, place, metric, runs);
    if (space == Space::triclinic) fill_row<Space::triclinic>(call, r, place, metric, runs);
  } else {
    std::int64_t& count = call.row_ptr[node + 1];
    if (space == Space::open) count = count_row<Space::open>(call, r, place, metric, runs);
    if (space == Space::orthorhombic) count = count_row<Space::orthorhombic>(call, r, place, metric, runs);
    if (space == Space::triclinic) count = count_row<Space::triclinic>(call, r, place, metric, runs);
  }
}

// Rows in the order of the cells, so that neighbors in space share the cache and runs are found once per cell.
template <bool fill> void all_rows(const NeighborSearch& call) {
  const std::int64_t n = call.n_atoms, n_nodes = call.n_replicas * n;
#pragma omp parallel num_threads(call.n_threads) if (call.n_threads > 1 && n_nodes > kWorthThreads)
  {
    Metric metric{};
    Runs runs;
    Space space = Space::open;
    std::int64_t replica = -1;
    int last[3] = {-1, -1, -1};
#pragma omp for schedule(static)
    for (std::int64_t at = 0; at < n_nodes; ++at) {
      const std::int64_t r = at / n, place = at - r * n, node = r * n + call.order[at];
      int c[3];
      cell_of(call, r, call.coordinates + 3 * node, c);
      if (r != replica) {
        metric = metric_of(call, r);
        space = !call.box ? Space::open : metric.diagonal() ? Space::orthorhombic : Space::triclinic;
      }
      if (r != replica || c[0] != last[0] || c[1] != last[1] || c[2] != last[2]) find_runs(call, r, c, runs);
      replica = r;
      for (int k = 0; k < 3; ++k) last[k] = c[k];
      one_row<fill>(call, r, place, node, metric, runs, space);
    }
  }
}

// Rows are visited in ascending order and each row is sorted, so the k-th edge that leads to a node is the mirror
// of the node's own k-th edge.
void find_reverse(const NeighborSearch& call, std::int64_t r) {
  const std::int64_t from = r * call.n_atoms, to = from + call.n_atoms;
  for (std::int64_t node = from; node < to; ++node) call.order[node] = 0;
  for (std::int64_t e = call.row_ptr[from]; e < call.row_ptr[to]; ++e) {
    const std::int32_t node = call.col[e];
    call.reverse[e] = call.row_ptr[node] + call.order[node]++;
  }
}

}  // namespace

template <typename T>
void neighbor_list_count(const NeighborSearch& call, const T* positions, std::int64_t* bad) {
  const std::int64_t n_nodes = call.n_replicas * call.n_atoms;
  std::int64_t first_bad = n_nodes;
  const int n_threads = call.n_threads;
#pragma omp parallel for reduction(min : first_bad) schedule(static) num_threads(n_threads) \
    if (n_threads > 1 && n_nodes > kWorthThreads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    const std::int64_t found = call.n_atoms > 0 ? bin_replica(call, r, positions) : n_nodes;
    first_bad = found < first_bad ? found : first_bad;
  }
  *bad = first_bad < n_nodes ? first_bad : -1;
  if (*bad >= 0) return;
  call.row_ptr[0] = 0;
  all_rows<false>(call);
  for (std::int64_t node = 0; node < n_nodes; ++node) call.row_ptr[node + 1] += call.row_ptr[node];
}

void neighbor_list_fill(const NeighborSearch& call) {
  all_rows<true>(call);
  const bool threads = call.n_threads > 1 && call.n_replicas * call.n_atoms > kWorthThreads;
#pragma omp parallel for schedule(static) num_threads(call.n_threads) if (threads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) find_reverse(call, r);
}

void neighbor_list_all_pairs(const NeighborSearch& call) {
  const std::int64_t n = call.n_atoms, n_nodes = call.n_replicas * n;
  for (std::int64_t node = 0; node <= n_nodes; ++node) call.row_ptr[node] = node * (n - 1);
#pragma omp parallel for schedule(static) num_threads(call.n_threads) if (call.n_threads > 1 && n_nodes > kWorthThreads)
  for (std::int64_t node = 0; node < n_nodes; ++node) {
    const std::int64_t base = node / n * n, i = node - base;
    std::int32_t* row = call.col + node * (n - 1);
    std::int64_t* mirror = call.reverse + node * (n - 1);
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
    const double* box = call.box ? call.box + (call.box_per_replica ? node / call.n_atoms * 9 : 0) : nullptr;
    const T* mine = call.positions + 3 * node;
    good = good && begin >= 0 && begin <= end && end <= call.n_edges;
    for (std::int64_t e = begin; good && e < end; ++e) {
      const std::int32_t other = call.col[e];
      if (other < 0 || other >= n_nodes) {
        good = false;
        break;
      }
      double d[3];
      for (int k = 0; k < 3; ++k) d[k] = double(call.positions[3 * std::int64_t(other) + k]) - double(mine[k]);
      for (int j = 0; box && j < 3; ++j)
        for (int k = 0; k < 3; ++k) d[k] += call.shift[3 * e + j] * box[3 * j + k];
      for (int k = 0; k < 3; ++k) call.vectors[3 * e + k] = T(d[k]);
      call.distances[e] = T(std::sqrt((d[0] * d[0] + d[1] * d[1]) + d[2] * d[2]));
    }
  }
  *call.consistent = good;
}

template void neighbor_list_count<float>(const NeighborSearch&, const float*, std::int64_t*);
template void neighbor_list_count<double>(const NeighborSearch&, const double*, std::int64_t*);
template void neighbor_vectors<float>(const NeighborVectors<float>&);
template void neighbor_vectors<double>(const NeighborVectors<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
