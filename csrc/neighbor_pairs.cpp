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
    Arena scratch{call.scratch};
    open = scratch.take<T>(call.box ? 0 : 3 * call.n_replicas * padded);
    fractions = scratch.take<double>(call.box ? 3 * call.n_replicas * padded : 0);
    wraps = scratch.take<std::int32_t>(call.box ? 3 * call.n_nodes() : 0);
    mirror = scratch.take<std::int32_t>(call.n_threads * padded);
    bytes = scratch.used;
  }
};

template <int number> struct Packs {
  static constexpr int n = number;
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

// The atoms of one replica as candidates, a register ("pack") at a time. V is what coordinates are compared in. With up
// to four packs their number is known to the compiler, and all coordinates stay in registers from row to row.
template <Space space, typename V, int known_packs> struct Replica {
  static constexpr int lanes = Simd<V>::lanes;
  const V* x;  // [3, padded]
  std::int64_t padded;
  int n, n_packs;
  const Metric& metric;
  Limits<V> limits;
  Pack<V> held[3 * known_packs + 1];

  Replica(const V* x, std::int64_t padded, int n, const Metric& metric, double reach)
      : x(x), padded(padded), n(n), n_packs(known_packs ? known_packs : (n + lanes - 1) / lanes), metric(metric),
        limits(reach) {
    for (int k = 0; k < 3; ++k)
      for (int p = 0; p < known_packs; ++p) held[known_packs * k + p] = load(x + k * padded + p * lanes);
  }

  DIFFMD_INLINE Pack<V> coordinates(int k, int p) const {
    return known_packs ? held[known_packs * k + p] : load(x + k * padded + p * lanes);
  }

  // Which atoms of pack p are neighbors of atom i; `squared` are their squared distances.
  DIFFMD_INLINE unsigned examine(int i, const Pack<V>* mine, int p, Pack<V>* squared) const {
    *squared = metric.template squared<space>(coordinates(0, p) - mine[0], coordinates(1, p) - mine[1],
                                              coordinates(2, p) - mine[2]);
    const int first = p * lanes;
    unsigned valid = ~0u >> (32 - lanes);
    if (p == n_packs - 1) valid >>= lanes - (n - first);
    if (i / lanes == p) valid &= ~(1u << (i % lanes));
    const unsigned sure = less(*squared, fill<V>(limits.sure)) & valid;
    if (sizeof(V) == sizeof(double)) return sure;
    const unsigned maybe = (less(*squared, fill<V>(limits.maybe)) | limits.all) & valid;
    return maybe == sure ? sure : decide(x, padded, metric, i, first, sure, maybe);
  }

  static DIFFMD_NOINLINE unsigned decide(const V* x, std::int64_t padded, const Metric& metric, int i, int first,
                                         unsigned sure, unsigned maybe) {
    const double here[3] = {double(x[i]), double(x[padded + i]), double(x[2 * padded + i])};
    for (unsigned open = maybe & ~sure; open; open &= open - 1) {
      const int j = first + lowest_bit(open);
      const double there[3] = {double(x[j]), double(x[padded + j]), double(x[2 * padded + j])};
      if (metric.lists(here, there)) sure |= 1u << (j - first);
    }
    return sure;
  }

  // f(i, p, mask, squared) for every atom and, for each, every pack of candidates.
  template <typename F> DIFFMD_INLINE void each(F f) const {
    for (int i = 0; i < n; ++i) {
      Pack<V> mine[3], squared;
      for (int k = 0; k < 3; ++k) mine[k] = fill<V>(x[k * padded + i]);
#if defined(__GNUC__)
#pragma GCC unroll 4
#endif
      for (int p = 0; p < (known_packs ? known_packs : n_packs); ++p) {
        const unsigned mask = examine(i, mine, p, &squared);
        f(i, p, mask, squared);
      }
    }
  }
};

// Coordinates x, y, z of n atoms one behind the other, zeros up to `padded`; false when one is not finite.
template <typename T> bool split_coordinates(const T* from, std::int64_t n, std::int64_t padded, T* to) {
  bool good = true;
  for (std::int64_t a = 0; a < n; ++a)
    for (int k = 0; k < 3; ++k) to[k * padded + a] = from[3 * a + k];
  for (std::int64_t i = 0; i < 3 * n; ++i) good &= from[i] - from[i] == 0;
  for (int k = 0; k < 3; ++k)
    for (std::int64_t a = n; a < padded; ++a) to[k * padded + a] = 0;
  return good;
}

#if defined(__AVX512F__)
// 16 atoms from three registers: for a molecule the loop above takes a third as long as the search.
template <> bool split_coordinates(const float* from, std::int64_t n, std::int64_t padded, float* to) {
  const __m512i third = _mm512_setr_epi32(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45);
  __mmask16 good = 0xffff;
  for (std::int64_t a = 0; a < padded; a += 16, from += 48) {
    __m512 part[3];
    for (int k = 0; k < 3; ++k) {
      const std::int64_t left = 3 * (n - a) - 16 * k;
      const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : __mmask16((1u << left) - 1);
      part[k] = _mm512_maskz_loadu_ps(mask, from + 16 * k);
      const __m512 zero = _mm512_sub_ps(part[k], part[k]);
      good &= _mm512_cmp_ps_mask(zero, zero, _CMP_EQ_OQ);
    }
    for (int k = 0; k < 3; ++k) {
      const __m512i index = _mm512_add_epi32(third, _mm512_set1_epi32(k));  // in part[0] and part[1], or part[2]
      const __mmask16 last = _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(32));
      const __m512 first_two = _mm512_permutex2var_ps(part[0], index, part[1]);
      _mm512_store_ps(to + k * padded + a, _mm512_mask_permutexvar_ps(first_two, last, index, part[2]));
    }
  }
  return good == 0xffff;
}
#endif

template <typename T> bool load_replica(const NeighborSearch<T>& call, const Parts<T>& parts, std::int64_t r) {
  const std::int64_t n = call.n_atoms, padded = parts.padded;
  const T* from = call.positions + 3 * r * n;
  if (!call.box) return split_coordinates(from, n, padded, parts.open + 3 * r * padded);
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

template <Space space, typename V, int packs, typename T>
void count_replica(const NeighborSearch<T>& call, const V* x, std::int64_t padded, std::int64_t r,
                   const Metric& metric) {
  const Replica<space, V, packs> replica(x, padded, int(call.n_atoms), metric, call.reach);
  std::int64_t* counts = call.row_ptr + r * call.n_atoms + 1;
  std::int64_t count = 0;
  replica.each([&](int i, int p, unsigned mask, Pack<V>) {
    count = (p == 0 ? 0 : count) + count_bits(mask);
    if (p == replica.n_packs - 1) counts[i] = count;
  });
}

// The edges of one replica being written: nodes and edges are counted from its first ones.
template <typename T> struct Output {
  std::int32_t base;                 // node
  std::int64_t begin, end;           // edges
  std::int32_t *col, *mirror;
  std::int64_t* reverse;
  T* distances;                      // null when not asked for
};

#if defined(__AVX512F__)
DIFFMD_INLINE void store_lanes(void* to, __m512i lanes, bool half) {
  if (half) _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_castsi512_si256(lanes));
  else _mm512_storeu_si512(to, lanes);
}
#endif

// Writes the neighbors among the candidates from `first` to the places from `at` on, and advances their mirrors. While
// it fits in front of the replica's end, a whole register is stored.
template <typename T, typename V>
DIFFMD_INLINE void write_edges(const Output<T>& out, std::int32_t first, unsigned mask, Pack<V> squared,
                               std::int64_t at) {
#if defined(__AVX512F__)
  if (sizeof(V) == sizeof(float) && out.end - at >= 16) {
    // Stores are what takes the time here: of up to 8 edges only the half register that they fill.
    const __mmask16 hits = __mmask16(mask);
    const bool few = count_bits(mask) <= 8;
    const __m512i next = _mm512_load_si512(out.mirror + first), begin = _mm512_set1_epi64(out.begin);
    const __m512i mirrors = _mm512_maskz_compress_epi32(hits, next);
    const __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(mirrors));
    _mm512_storeu_si512(out.reverse + at, _mm512_add_epi64(low, begin));
    if (!few) {
      const __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(mirrors, 1));
      _mm512_storeu_si512(out.reverse + at + 8, _mm512_add_epi64(high, begin));
    }
    store_lanes(out.col + at, packed_lanes(out.base + first, mask), few);
    if (out.distances)
      store_lanes(out.distances + at, _mm512_maskz_compress_epi32(hits, (__m512i)_mm512_sqrt_ps((__m512)squared)), few);
    _mm512_store_si512(out.mirror + first, _mm512_mask_add_epi32(next, hits, next, _mm512_set1_epi32(1)));
    return;
  }
#endif
  V lane[Simd<V>::lanes];
  store(lane, squared);
  for (; mask && at < out.end; mask &= mask - 1, ++at) {
    const int bit = lowest_bit(mask), j = first + bit;
    out.col[at] = out.base + j;
    out.reverse[at] = out.begin + out.mirror[j]++;
    if (out.distances) out.distances[at] = T(std::sqrt(lane[bit]));
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

template <Space space, typename V, int packs, typename T>
void fill_replica(const NeighborSearch<T>& call, const Parts<T>& parts, const V* x, std::int64_t r,
                  const Metric& metric) {
  const int n = int(call.n_atoms);
  const std::int64_t base = r * n;
  // Without a box the squares compared are those of the distances asked for.
  const Output<T> out{std::int32_t(base), call.row_ptr[base], call.row_ptr[base + n], call.col,
                      parts.mirror + thread_number() * parts.padded, call.reverse,
                      space == Space::open ? call.distances : nullptr};
  for (int i = 0; i < n; ++i) out.mirror[i] = std::int32_t(call.row_ptr[base + i] - out.begin);
  std::int64_t at = out.begin;
  Replica<space, V, packs>(x, parts.padded, n, metric, call.reach)
      .each([&](int, int p, unsigned mask, Pack<V> squared) {
        write_edges<T, V>(out, p * Simd<V>::lanes, mask, squared, at);
        at += count_bits(mask);
      });
  for (int i = 0; space != Space::open && i < n; ++i) shift_row(call, parts, r, base + i);
}

// Counts or fills the rows of one replica, with the number of packs as a constant where it is small.
template <bool filling, Space space, typename V, typename T>
void rows_of(const NeighborSearch<T>& call, const Parts<T>& parts, const V* x, std::int64_t r, const Metric& metric) {
  const auto run = [&](auto packs) {
    if constexpr (filling) fill_replica<space, V, decltype(packs)::n>(call, parts, x, r, metric);
    else count_replica<space, V, decltype(packs)::n>(call, x, parts.padded, r, metric);
  };
  const std::int64_t n_packs = (call.n_atoms + Simd<V>::lanes - 1) / Simd<V>::lanes;
  if (space != Space::open || n_packs > 4) run(Packs<0>());
  else if (n_packs == 1) run(Packs<1>());
  else if (n_packs == 2) run(Packs<2>());
  else if (n_packs == 3) run(Packs<3>());
  else run(Packs<4>());
}

template <bool filling, typename T>
void replica_rows(const NeighborSearch<T>& call, const Parts<T>& parts, std::int64_t r) {
  const Metric metric(call.box_of(r), call.reach);
  const T* open = parts.open + 3 * r * parts.padded;
  const double* x = parts.fractions + 3 * r * parts.padded;
  if (metric.space == Space::open) rows_of<filling, Space::open, T>(call, parts, open, r, metric);
  else if (metric.space == Space::orthorhombic) rows_of<filling, Space::orthorhombic, double>(call, parts, x, r, metric);
  else rows_of<filling, Space::triclinic, double>(call, parts, x, r, metric);
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
    replica_rows<false>(call, parts, r);
  }
  return bad < call.n_nodes() ? bad : -1;
}

template <typename T> void fill_pairs(const NeighborSearch<T>& call) {
  const Parts<T> parts(call);
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_nodes() > kWorthThreads)
  for (std::int64_t r = 0; r < call.n_replicas; ++r) replica_rows<true>(call, parts, r);
}

template std::size_t pairs_scratch_bytes<float>(const NeighborSearch<float>&);
template std::size_t pairs_scratch_bytes<double>(const NeighborSearch<double>&);
template std::int64_t count_pairs<float>(const NeighborSearch<float>&);
template std::int64_t count_pairs<double>(const NeighborSearch<double>&);
template void fill_pairs<float>(const NeighborSearch<float>&);
template void fill_pairs<double>(const NeighborSearch<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
