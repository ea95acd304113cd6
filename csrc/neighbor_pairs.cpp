// The search that looks at every pair of a replica, for molecules. Candidates come in the order of their numbers, so
// rows come out sorted; rows are filled in ascending order, so the k-th edge that leads to an atom is the mirror of
// the atom's own k-th edge. One thread takes whole replicas.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "compress.hpp"
#include "neighbor_list.hpp"
#include "neighbor_metric.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr std::int64_t kPad = 16;  // lanes of the widest register, so that the scratch is the same on every level

DIFFMD_INLINE int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Candidates are compared in T without a box (differences of float32 positions are good enough, see Limits) and as
// fractions in double with one.
template <typename T> struct Parts {
  std::int64_t padded;   // n_atoms rounded up to kPad
  T* open;               // [n_replicas, 3, padded] positions; null with a box
  double* fractions;     // [n_replicas, 3, padded] wrapped fractions; null without
  std::int32_t* wraps;   // [n_nodes, 3] box vectors taken off
  std::int32_t* mirror;  // [n_threads, padded]: where the next edge that leads to each atom has its mirror, counted
                         // from the replica's first edge
  std::size_t bytes;

  explicit Parts(const NeighborSearch<T>& call) : padded((call.n_atoms + kPad - 1) / kPad * kPad) {
    Scratch scratch{call.scratch};
    open = scratch.take<T>(call.box ? 0 : 3 * call.n_replicas * padded);
    fractions = scratch.take<double>(call.box ? 3 * call.n_replicas * padded : 0);
    wraps = scratch.take<std::int32_t>(call.box ? 3 * call.n_nodes() : 0);
    mirror = scratch.take<std::int32_t>(call.n_threads * padded);
    bytes = scratch.used;
  }
};

// Squared distances below `sure` are neighbors, those not below `maybe` are not, what lies between is decided by
// Metric. A squared distance in float32 is off by at most 6 roundings of 2^-24; out of the range where nothing over-
// or underflows `all` makes every candidate a maybe.
template <typename V> struct Limits {
  V sure, maybe;
  unsigned all;

  explicit Limits(double reach) {
    const bool exact = sizeof(V) == sizeof(double), usable = exact || (reach > 1e-15 && reach < 1e15);
    const double reach2 = reach * reach, margin = exact ? 0.0 : 1e-6;
    sure = usable ? V(reach2 * (1 - margin)) : V(-1);
    maybe = usable ? V(reach2 * (1 + margin)) : V(0);
    all = usable ? 0 : ~0u;
  }
};

// The candidates of one atom, a register at a time: V is what coordinates are compared in.
template <typename T, Space space, typename V> struct Row {
  static constexpr int lanes = Simd<V>::lanes;
  const V* x;  // [3, padded]
  std::int64_t padded;
  int n, i;
  Pack<V> mine[3];
  const Metric& metric;
  const Limits<V>& limits;

  Row(const V* x, std::int64_t padded, int n, int i, const Metric& metric, const Limits<V>& limits)
      : x(x), padded(padded), n(n), i(i), metric(metric), limits(limits) {
    for (int k = 0; k < 3; ++k) mine[k] = fill<V>(x[k * padded + i]);
  }

  // Which of the candidates from `first` are neighbors; `squared` are their squared distances.
  DIFFMD_INLINE unsigned examine(int first, Pack<V>* squared) const {
    const Pack<V> d0 = load(x + first) - mine[0], d1 = load(x + padded + first) - mine[1],
                  d2 = load(x + 2 * padded + first) - mine[2];
    *squared = metric.template squared<space>(d0, d1, d2);
    unsigned valid = ~0u >> (32 - lanes);
    if (n - first < lanes) valid >>= lanes - (n - first);
    if (unsigned(i - first) < unsigned(lanes)) valid &= ~(1u << (i - first));
    const unsigned sure = less(*squared, fill<V>(limits.sure)) & valid;
    if (sizeof(V) == sizeof(double)) return sure;
    const unsigned maybe = (less(*squared, fill<V>(limits.maybe)) | limits.all) & valid;
    return maybe == sure ? sure : decide(first, sure, maybe);
  }

  unsigned decide(int first, unsigned sure, unsigned maybe) const {
    const double here[3] = {double(x[i]), double(x[padded + i]), double(x[2 * padded + i])};
    for (unsigned open = maybe & ~sure; open; open &= open - 1) {
      const int j = first + lowest_bit(open);
      const double there[3] = {double(x[j]), double(x[padded + j]), double(x[2 * padded + j])};
      if (metric.lists(here, there)) sure |= 1u << (j - first);
    }
    return sure;
  }
};

template <typename T> bool load_replica(const NeighborSearch<T>& call, const Parts<T>& parts, std::int64_t r) {
  const std::int64_t n = call.n_atoms, padded = parts.padded;
  const T* from = call.positions + 3 * r * n;
  if (!call.box) {
    T* to = parts.open + 3 * r * padded;
    bool good = true;
    for (std::int64_t a = 0; a < n; ++a)
      for (int k = 0; k < 3; ++k) to[k * padded + a] = from[3 * a + k];
    for (std::int64_t a = 0; a < 3 * n; ++a) good &= from[a] - from[a] == 0;
    for (int k = 0; k < 3; ++k)
      for (std::int64_t a = n; a < padded; ++a) to[k * padded + a] = 0;
    return good;
  }
  double* to = parts.fractions + 3 * r * padded;
  bool good = true;
  for (std::int64_t a = 0; a < n; ++a) {
    double x[3];
    good &= wrap_atom(call.inverse_of(r), from + 3 * a, x, parts.wraps + 3 * (r * n + a));
    for (int k = 0; k < 3; ++k) to[k * padded + a] = x[k];
  }
  for (int k = 0; k < 3; ++k)
    for (std::int64_t a = n; a < padded; ++a) to[k * padded + a] = 0;
  return good;
}

template <typename T> std::int64_t first_bad_atom(const NeighborSearch<T>& call, std::int64_t r) {
  double x[3];
  std::int32_t wraps[3];
  std::int64_t node = r * call.n_atoms;
  while (wrap_atom(call.inverse_of(r), call.positions + 3 * node, x, wraps)) ++node;
  return node;
}

template <typename T, Space space, typename V>
void count_replica(const NeighborSearch<T>& call, const V* x, std::int64_t padded, std::int64_t r,
                   const Metric& metric) {
  const Limits<V> limits(call.reach);
  const int n = int(call.n_atoms);
  for (int i = 0; i < n; ++i) {
    const Row<T, space, V> row(x, padded, n, i, metric, limits);
    std::int64_t count = 0;
    Pack<V> squared;
    for (int first = 0; first < n; first += row.lanes) count += count_bits(row.examine(first, &squared));
    call.row_ptr[r * n + i + 1] = count;
  }
}

// The edges of one replica being written: nodes and edges are counted from its first ones.
template <typename T> struct Output {
  std::int32_t base;                 // node
  std::int64_t begin, end;           // edges
  std::int32_t *col, *mirror;
  std::int64_t* reverse;
  T* distances;                      // null when not asked for
};

// Writes the neighbors among the candidates from `first` to the places from `at` on, and advances their mirrors. While
// it fits in front of the replica's end, a whole register is stored.
template <typename T, typename V>
DIFFMD_INLINE void write_edges(const Output<T>& out, std::int32_t first, unsigned mask, Pack<V> squared,
                               std::int64_t at) {
#if defined(__AVX512F__)
  if (sizeof(V) == sizeof(float) && out.end - at >= 16) {
    const __mmask16 hits = __mmask16(mask);
    append_lanes(out.col + at, out.base + first, mask);
    if (out.distances) _mm512_storeu_ps(out.distances + at, _mm512_maskz_compress_ps(hits, (__m512)squared));
    const __m512i next = _mm512_loadu_si512(out.mirror + first), begin = _mm512_set1_epi64(out.begin);
    const __m512i mirrors = _mm512_maskz_compress_epi32(hits, next);
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(mirrors));
    const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(mirrors, 1));
    _mm512_storeu_si512(out.reverse + at, _mm512_add_epi64(low, begin));
    _mm512_storeu_si512(out.reverse + at + 8, _mm512_add_epi64(high, begin));
    _mm512_storeu_si512(out.mirror + first, _mm512_mask_add_epi32(next, hits, next, _mm512_set1_epi32(1)));
    return;
  }
#endif
  V lane[Simd<V>::lanes];
  store(lane, squared);
  for (; mask && at < out.end; mask &= mask - 1, ++at) {
    const int bit = lowest_bit(mask), j = first + bit;
    out.col[at] = out.base + j;
    out.reverse[at] = out.begin + out.mirror[j]++;
    if (out.distances) out.distances[at] = T(lane[bit]);
  }
}

template <typename T>
void shift_row(const NeighborSearch<T>& call, const Parts<T>& parts, std::int64_t r, std::int64_t node) {
  const std::int64_t base = r * call.n_atoms;
  const double* x = parts.fractions + 3 * r * parts.padded;
  for (std::int64_t e = call.row_ptr[node]; e < call.row_ptr[node + 1]; ++e) {
    const std::int64_t other = call.col[e];
    for (int k = 0; k < 3; ++k) {
      const double d = x[k * parts.padded + (other - base)] - x[k * parts.padded + (node - base)];
      call.shift[3 * e + k] = parts.wraps[3 * node + k] - parts.wraps[3 * other + k] - std::int32_t(nearest(d));
    }
  }
}

template <typename T, Space space, typename V>
void fill_replica(const NeighborSearch<T>& call, const Parts<T>& parts, const V* x, std::int64_t r,
                  const Metric& metric) {
  const Limits<V> limits(call.reach);
  const int n = int(call.n_atoms);
  const std::int64_t base = r * n;
  // Without a box the squares compared are those of the distances asked for.
  const Output<T> out{std::int32_t(base), call.row_ptr[base], call.row_ptr[base + n], call.col,
                      parts.mirror + thread_number() * parts.padded, call.reverse,
                      space == Space::open ? call.distances : nullptr};
  for (int i = 0; i < n; ++i) out.mirror[i] = std::int32_t(call.row_ptr[base + i] - out.begin);
  std::int64_t at = out.begin;
  for (int i = 0; i < n; ++i) {
    const Row<T, space, V> row(x, parts.padded, n, i, metric, limits);
    Pack<V> squared;
    for (int first = 0; first < n; first += row.lanes) {
      const unsigned mask = row.examine(first, &squared);
      write_edges<T, V>(out, first, mask, squared, at);
      at += count_bits(mask);
    }
    if (space != Space::open) shift_row(call, parts, r, base + i);
  }
  if (out.distances)
    for (std::int64_t e = out.begin; e < out.end; ++e) out.distances[e] = std::sqrt(out.distances[e]);
}

}  // namespace

template <typename T> std::size_t pairs_scratch_bytes(const NeighborSearch<T>& call) { return Parts<T>(call).bytes; }

template <typename T> std::int64_t count_pairs(const NeighborSearch<T>& call) {
  const Parts<T> parts(call);
  std::int64_t bad = call.n_nodes();
#pragma omp parallel for reduction(min : bad) schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_nodes() > kWorthThreads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    if (!load_replica(call, parts, r)) {
      const std::int64_t node = first_bad_atom(call, r);
      bad = node < bad ? node : bad;
      continue;
    }
    const Metric metric(call.box_of(r), call.reach);
    const T* open = parts.open + 3 * r * parts.padded;
    const double* x = parts.fractions + 3 * r * parts.padded;
    if (metric.space == Space::open) count_replica<T, Space::open, T>(call, open, parts.padded, r, metric);
    else if (metric.space == Space::orthorhombic)
      count_replica<T, Space::orthorhombic, double>(call, x, parts.padded, r, metric);
    else count_replica<T, Space::triclinic, double>(call, x, parts.padded, r, metric);
  }
  return bad < call.n_nodes() ? bad : -1;
}

template <typename T> void fill_pairs(const NeighborSearch<T>& call) {
  const Parts<T> parts(call);
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_nodes() > kWorthThreads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    const Metric metric(call.box_of(r), call.reach);
    const T* open = parts.open + 3 * r * parts.padded;
    const double* x = parts.fractions + 3 * r * parts.padded;
    if (metric.space == Space::open) fill_replica<T, Space::open, T>(call, parts, open, r, metric);
    else if (metric.space == Space::orthorhombic)
      fill_replica<T, Space::orthorhombic, double>(call, parts, x, r, metric);
    else fill_replica<T, Space::triclinic, double>(call, parts, x, r, metric);
  }
}

template std::size_t pairs_scratch_bytes<float>(const NeighborSearch<float>&);
template std::size_t pairs_scratch_bytes<double>(const NeighborSearch<double>&);
template std::int64_t count_pairs<float>(const NeighborSearch<float>&);
template std::int64_t count_pairs<double>(const NeighborSearch<double>&);
template void fill_pairs<float>(const NeighborSearch<float>&);
template void fill_pairs<double>(const NeighborSearch<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
