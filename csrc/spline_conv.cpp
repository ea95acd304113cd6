#include "spline_conv.hpp"

#include <math.h>
#include <stdlib.h>

#include "simd.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr int kTile = 32;         // edges whose geometry is worked out together, whole groups of them
constexpr int kGroup = 8;
constexpr int kMaxParts = 32;     // partial sums of coefficient gradients,
constexpr int kPacksAtOnce = kRegisters == 32 ? 4 : 8;  // 64 floats at once; with fewer than 8 AVX2 was 30% slower
constexpr std::int64_t kMaxPartialSums = 1 << 24;  // and how many numbers they may hold in all

// Geometry and spline weights of up to kTile edges of one row. b, d1, d2: the four nonzero B_k(r) and their first
// and second derivatives with respect to r.
template <typename T> struct Tile {
  std::int32_t interval[kTile];   // first of the four coefficients; -1: beyond the cutoff, skip
  T unit[3][kTile];               // (x_i - x_j) / r; 0 where r = 0, so all position terms vanish there
  T inverse[kTile];               // 1 / r; 0 where r = 0
  T b[4][kTile], d1[4][kTile], d2[4][kTile];
};

template <typename T, int kOrder>
DIFFMD_INLINE void measure(const SplineGraph<T>& g, std::int64_t row, std::int64_t first, int n, Tile<T>& tile) {
  T delta[3][kTile];
  const T* self = g.positions + 3 * row;
  for (int e = 0; e < n; ++e) {
    const T* other = g.positions + 3 * std::int64_t(g.col[first + e]);
    // x_j - x_i first: then the twin edge with the opposite offset gives the same distance to the last bit.
    for (int c = 0; c < 3; ++c) delta[c][e] = other[c] - self[c];
    if (g.offsets)
      for (int c = 0; c < 3; ++c) delta[c][e] += g.offsets[3 * (first + e) + c];
  }
  // Whole groups of lanes, the last one filled up: a rest of a few edges would be worked out one by one.
  const int whole = (n + kGroup - 1) / kGroup * kGroup;
  for (int e = n; e < whole; ++e)
    for (int c = 0; c < 3; ++c) delta[c][e] = T(0);
  const T per_spacing = T(double(g.n_knots - 3) / g.cutoff), cutoff = T(g.cutoff);
  const T last = T(g.n_knots - 4), sixth = T(1.0 / 6.0), half = T(0.5) * per_spacing;
  const T square = per_spacing * per_spacing;
  for (int group = 0; group < whole; group += kGroup) {
#pragma omp simd
    for (int e = group; e < group + kGroup; ++e) {
      const T dx = delta[0][e], dy = delta[1][e], dz = delta[2][e];
      const T r = sqrt(dx * dx + dy * dy + dz * dz);
      const T x = r * per_spacing;
      // A NaN fails the comparison and lands on the last interval: no index out of range, and t, so the sum, is NaN.
      const std::int32_t interval = std::int32_t(x < last ? x : last);
      const T t = x - T(interval), s = T(1) - t;
      tile.interval[e] = r >= cutoff ? -1 : interval;
      tile.b[0][e] = s * s * s * sixth;
      tile.b[1][e] = ((T(3) * t - T(6)) * t * t + T(4)) * sixth;
      tile.b[2][e] = (((T(-3) * t + T(3)) * t + T(3)) * t + T(1)) * sixth;
      tile.b[3][e] = t * t * t * sixth;
      if (kOrder >= 1) {
        tile.d1[0][e] = -s * s * half;
        tile.d1[1][e] = (T(3) * t - T(4)) * t * half;
        tile.d1[2][e] = ((T(-3) * t + T(2)) * t + T(1)) * half;
        tile.d1[3][e] = t * t * half;
        const T inverse = r == T(0) ? T(0) : T(1) / r;
        tile.inverse[e] = inverse;
        tile.unit[0][e] = -dx * inverse;
        tile.unit[1][e] = -dy * inverse;
        tile.unit[2][e] = -dz * inverse;
      }
      if (kOrder >= 2) {
        tile.d2[0][e] = s * square;
        tile.d2[1][e] = (T(3) * t - T(2)) * square;
        tile.d2[2][e] = (T(1) - T(3) * t) * square;
        tile.d2[3][e] = t * square;
      }
    }
  }
}

// Calls body(tile, first, n) for each tile of the row's edges, in the order of the list.
template <typename T, int kOrder, typename Body>
DIFFMD_INLINE void for_each_tile(const SplineGraph<T>& g, std::int64_t row, const Body& body) {
  Tile<T> tile;
  for (std::int64_t first = g.row_ptr[row]; first < g.row_ptr[row + 1]; first += kTile) {
    const std::int64_t left = g.row_ptr[row + 1] - first;
    const int n = int(left < kTile ? left : kTile);
    measure<T, kOrder>(g, row, first, n, tile);
    body(tile, first, n);
  }
}

// Calls body(j, tile, e) for each edge of the row within the cutoff, in the order of the list.
template <typename T, int kOrder, typename Body>
DIFFMD_INLINE void for_each_edge(const SplineGraph<T>& g, std::int64_t row, const Body& body) {
  for_each_tile<T, kOrder>(g, row, [&](const Tile<T>& tile, std::int64_t first, int n) {
    for (int e = 0; e < n; ++e)
      if (tile.interval[e] >= 0) body(std::int64_t(g.col[first + e]), tile, e);
  });
}

// Some neighboring features of one atom: kPacks whole registers, or the first `width` lanes of one.
template <typename T, int kPacks, bool kWhole> struct Strip {
  std::int64_t f;
  int width;
  DIFFMD_INLINE Pack<T> get(const T* from, int k) const {
    if (kWhole) return load(from + f + k * Simd<T>::lanes);
    Pack<T> value = {};
    memcpy(&value, from + f, std::size_t(width) * sizeof(T));
    return value;
  }
  DIFFMD_INLINE void put(T* to, int k, Pack<T> value) const {
    if (kWhole) store(to + f + k * Simd<T>::lanes, value);
    else memcpy(to + f, &value, std::size_t(width) * sizeof(T));
  }
};

// Calls body(strip) for strips that cover all features. A strip's sums stay in registers over the edges of a tile.
template <typename T, int kPacks, typename Body>
DIFFMD_INLINE void for_each_strip(std::int64_t n_features, const Body& body) {
  constexpr std::int64_t lanes = Simd<T>::lanes;
  std::int64_t f = 0;
  for (; f + kPacks * lanes <= n_features; f += kPacks * lanes) body(Strip<T, kPacks, true>{f, 0});
  for (; f + lanes <= n_features; f += lanes) body(Strip<T, 1, true>{f, 0});
  if (f < n_features) body(Strip<T, 1, false>{f, int(n_features - f)});
}

template <typename T> DIFFMD_INLINE void clear(T* values, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) values[i] = T(0);
}

// ---- one row ---------------------------------------------------------------------------------------------
// Inner loops run over the features; a number of features fixed at compile time was measured to gain less than 7%
// and to compile four times as long. `part` collects this thread's share of the gradient of the coefficients, or is
// null. A pair of atoms enters it once, from the row of the smaller index, with both directions; an edge of an atom
// to its own image enters as it is listed.

template <typename T, int kPacks, bool kWhole>
DIFFMD_INLINE void messages_of(const SplineGraph<T>& g, Strip<T, kPacks, kWhole> strip, const Tile<T>& tile,
                               const std::int32_t* col, int n, T* out) {
  const std::int64_t nf = g.n_features;
  Pack<T> sum[kPacks];
  for (int k = 0; k < kPacks; ++k) sum[k] = strip.get(out, k);
  for (int e = 0; e < n; ++e) {
    if (tile.interval[e] < 0) continue;
    const T* h = g.features + std::int64_t(col[e]) * nf;
    const T* c = g.coefficients + tile.interval[e] * nf;
    const T b0 = tile.b[0][e], b1 = tile.b[1][e], b2 = tile.b[2][e], b3 = tile.b[3][e];
    for (int k = 0; k < kPacks; ++k)
      sum[k] += strip.get(h, k) * (b0 * strip.get(c, k) + b1 * strip.get(c + nf, k) + b2 * strip.get(c + 2 * nf, k) +
                                   b3 * strip.get(c + 3 * nf, k));
  }
  for (int k = 0; k < kPacks; ++k) strip.put(out, k, sum[k]);
}

template <typename T>
DIFFMD_INLINE void row_of(const SplineConv<T>& call, std::int64_t i) {
  const SplineGraph<T>& g = call.graph;
  T* out = call.out + i * g.n_features;
  clear(out, g.n_features);
  for_each_tile<T, 0>(g, i, [&](const Tile<T>& tile, std::int64_t first, int n) {
    for_each_strip<T, kPacksAtOnce>(g.n_features, [&](auto strip) { messages_of(g, strip, tile, g.col + first, n, out); });
  });
}

// grad_h_i = sum_j g_j W,  grad_x_i = sum_j u sum_f W' (g_i h_j + g_j h_i),  grad_C[k] = sum_edges B_k g_i h_j.
template <typename T, bool kFeatures, bool kPositions, int kPacks, bool kWhole>
DIFFMD_INLINE void gradients_of(const SplineConvBackward<T>& call, std::int64_t i, Strip<T, kPacks, kWhole> strip,
                                const Tile<T>& tile, std::int64_t first, int n, Pack<T>* force, T* part) {
  const SplineGraph<T>& g = call.graph;
  const std::int64_t nf = g.n_features;
  Pack<T> hi[kPacks], gi[kPacks], out[kPacks];
  for (int k = 0; k < kPacks; ++k) {
    hi[k] = strip.get(g.features + i * nf, k);
    gi[k] = strip.get(call.grad + i * nf, k);
    if (kFeatures) out[k] = strip.get(call.grad_features + i * nf, k);
  }
  for (int e = 0; e < n; ++e) {
    if (tile.interval[e] < 0) continue;
    const std::int64_t j = g.col[first + e];
    const T *hj = g.features + j * nf, *gj = call.grad + j * nf;
    const T* c = g.coefficients + tile.interval[e] * nf;
    const T b0 = tile.b[0][e], b1 = tile.b[1][e], b2 = tile.b[2][e], b3 = tile.b[3][e];
    Pack<T> along = {};
    T d0 = T(0), d1 = T(0), d2 = T(0), d3 = T(0);
    if (kPositions) d0 = tile.d1[0][e], d1 = tile.d1[1][e], d2 = tile.d1[2][e], d3 = tile.d1[3][e];
    if (kFeatures || kPositions)
      for (int k = 0; k < kPacks; ++k) {
        const Pack<T> c0 = strip.get(c, k), c1 = strip.get(c + nf, k), c2 = strip.get(c + 2 * nf, k),
                      c3 = strip.get(c + 3 * nf, k), other = strip.get(gj, k);
        if (kFeatures) out[k] += other * (b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3);
        if (kPositions)
          along += (d0 * c0 + d1 * c1 + d2 * c2 + d3 * c3) * (gi[k] * strip.get(hj, k) + other * hi[k]);
      }
    // The lanes are added up once a row, not once an edge.
    if (kPositions)
      for (int x = 0; x < 3; ++x) force[x] += along * tile.unit[x][e];
    if (part && j >= i) {
      T* p = part + tile.interval[e] * nf;
      const T twin = j > i ? T(1) : T(0);
      for (int k = 0; k < kPacks; ++k) {
        const Pack<T> both = gi[k] * strip.get(hj, k) + twin * (strip.get(gj, k) * hi[k]);
        strip.put(p, k, strip.get(p, k) + b0 * both);
        strip.put(p + nf, k, strip.get(p + nf, k) + b1 * both);
        strip.put(p + 2 * nf, k, strip.get(p + 2 * nf, k) + b2 * both);
        strip.put(p + 3 * nf, k, strip.get(p + 3 * nf, k) + b3 * both);
      }
    }
  }
  if (kFeatures)
    for (int k = 0; k < kPacks; ++k) strip.put(call.grad_features + i * nf, k, out[k]);
}

template <typename T, bool kFeatures, bool kPositions>
DIFFMD_INLINE void row_once(const SplineConvBackward<T>& call, std::int64_t i, T* part) {
  const SplineGraph<T>& g = call.graph;
  Pack<T> force[3] = {};
  if (kFeatures) clear(call.grad_features + i * g.n_features, g.n_features);
  for_each_tile<T, kPositions ? 1 : 0>(g, i, [&](const Tile<T>& tile, std::int64_t first, int n) {
    for_each_strip<T, kPacksAtOnce>(g.n_features, [&](auto strip) {
      gradients_of<T, kFeatures, kPositions>(call, i, strip, tile, first, n, force, part);
    });
  });
  if (kPositions)
    for (int x = 0; x < 3; ++x) call.grad_positions[3 * i + x] = sum_of<T>(force[x]);
}

// With d = u . (ax_i - ax_j), A(r) = sum_k aC_k B_k(r) and t = W' d + A:
//   dS/dg_i = sum_j ah_j W + h_j t,   dS/dh_i = sum_j g_j t,
//   dS/dx_i = sum_j u sum_f [(g_i ah_j + g_j ah_i) W' + (g_i h_j + g_j h_i)(W'' d + A')]
//             + (I - u u^T)(ax_i - ax_j) / r sum_f (g_i h_j + g_j h_i) W',
//   dS/dC_k = sum_edges g_i ah_j B_k + g_i h_j B'_k d.
template <typename T, bool kAlongC, bool kPositions>
DIFFMD_INLINE void row_twice(const SplineConvDoubleBackward<T>& call, std::int64_t i, T* part, const T* zeros) {
  const SplineGraph<T>& g = call.graph;
  const std::int64_t nf = g.n_features;
  const T *hi = g.features + i * nf, *gi = call.grad + i * nf;
  const T* ahi = call.along_features ? call.along_features + i * nf : zeros;
  T* DIFFMD_RESTRICT out_g = call.grad_grad + i * nf;
  T* DIFFMD_RESTRICT out_h = call.grad_features + i * nf;
  T force[3] = {T(0), T(0), T(0)};
  clear(out_g, nf);
  clear(out_h, nf);
  for_each_edge<T, kPositions ? 2 : 1>(g, i, [&](std::int64_t j, const Tile<T>& tile, int e) {
    const T *hj = g.features + j * nf, *gj = call.grad + j * nf;
    const T* ahj = call.along_features ? call.along_features + j * nf : zeros;
    const T* c = g.coefficients + tile.interval[e] * nf;
    const T* ac = kAlongC ? call.along_coefficients + tile.interval[e] * nf : nullptr;
    T move[3] = {T(0), T(0), T(0)}, d = T(0);
    if (call.along_positions)
      for (int k = 0; k < 3; ++k) {
        move[k] = call.along_positions[3 * i + k] - call.along_positions[3 * j + k];
        d += tile.unit[k][e] * move[k];
      }
    const T b0 = tile.b[0][e], b1 = tile.b[1][e], b2 = tile.b[2][e], b3 = tile.b[3][e];
    const T p0 = tile.d1[0][e], p1 = tile.d1[1][e], p2 = tile.d1[2][e], p3 = tile.d1[3][e];
    T q0 = T(0), q1 = T(0), q2 = T(0), q3 = T(0);
    if (kPositions) q0 = tile.d2[0][e] * d, q1 = tile.d2[1][e] * d, q2 = tile.d2[2][e] * d, q3 = tile.d2[3][e] * d;
    T along = T(0), across = T(0);
#pragma omp simd reduction(+ : along, across)
    for (std::int64_t f = 0; f < nf; ++f) {
      const T c0 = c[f], c1 = c[nf + f], c2 = c[2 * nf + f], c3 = c[3 * nf + f];
      const T w = b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3;
      const T w1 = p0 * c0 + p1 * c1 + p2 * c2 + p3 * c3;
      T w2d = q0 * c0 + q1 * c1 + q2 * c2 + q3 * c3;
      T t = w1 * d;
      if (kAlongC) {
        const T a0 = ac[f], a1 = ac[nf + f], a2 = ac[2 * nf + f], a3 = ac[3 * nf + f];
        t += b0 * a0 + b1 * a1 + b2 * a2 + b3 * a3;
        w2d += p0 * a0 + p1 * a1 + p2 * a2 + p3 * a3;
      }
      out_g[f] += ahj[f] * w + hj[f] * t;
      out_h[f] += gj[f] * t;
      if (kPositions) {
        const T both = gi[f] * hj[f] + gj[f] * hi[f];
        across += both * w1;
        along += (gi[f] * ahj[f] + gj[f] * ahi[f]) * w1 + both * w2d;
      }
    }
    for (int k = 0; kPositions && k < 3; ++k)
      force[k] += along * tile.unit[k][e] + across * tile.inverse[e] * (move[k] - d * tile.unit[k][e]);
    if (part && j >= i) {
      T* DIFFMD_RESTRICT p = part + tile.interval[e] * nf;
      const T twin = j > i ? T(1) : T(0);
      const T e0 = p0 * d, e1 = p1 * d, e2 = p2 * d, e3 = p3 * d;
#pragma omp simd
      for (std::int64_t f = 0; f < nf; ++f) {
        const T both = gi[f] * hj[f] + twin * gj[f] * hi[f];
        const T with = gi[f] * ahj[f] + twin * gj[f] * ahi[f];
        p[f] += b0 * with + e0 * both;
        p[nf + f] += b1 * with + e1 * both;
        p[2 * nf + f] += b2 * with + e2 * both;
        p[3 * nf + f] += b3 * with + e3 * both;
      }
    }
  });
  if (kPositions)
    for (int k = 0; k < 3; ++k) call.grad_positions[3 * i + k] = force[k];
}

// ---- all rows --------------------------------------------------------------------------------------------

// The list is used only after this; `symmetric` also compares the pairs seen from both sides, through the sum of a
// hash that counts +1 from one side and -1 from the other.
template <typename T> int check(const SplineGraph<T>& g, bool symmetric) {
  if (g.row_ptr[0] != 0 || g.row_ptr[g.n_nodes] != g.n_edges) return kSplineBadRows;
  for (std::int64_t i = 0; i < g.n_nodes; ++i)
    if (g.row_ptr[i] > g.row_ptr[i + 1]) return kSplineBadRows;
  std::uint32_t highest = 0;
#pragma omp simd reduction(max : highest)
  for (std::int64_t e = 0; e < g.n_edges; ++e) {
    const std::uint32_t j = std::uint32_t(g.col[e]);
    highest = highest > j ? highest : j;
  }
  if (g.n_edges > 0 && std::int64_t(highest) >= g.n_nodes) return kSplineBadColumns;
  if (!symmetric) return kSplineFine;
  std::uint32_t balance = 0;
  for (std::int64_t i = 0; i < g.n_nodes; ++i) {
    const std::uint32_t row = std::uint32_t(i);
#pragma omp simd reduction(+ : balance)
    for (std::int64_t e = g.row_ptr[i]; e < g.row_ptr[i + 1]; ++e) {
      const std::uint32_t j = std::uint32_t(g.col[e]);
      const std::uint32_t low = j < row ? j : row, high = j < row ? row : j;
      std::uint32_t hash = (low * 0x9E3779B1u) ^ (high * 0x85EBCA77u + 0x27D4EB2Fu);
      hash = (hash ^ (hash >> 15)) * 0x2C1B3C6Du;
      balance += j > row ? hash : j < row ? 0u - hash : 0u;
    }
  }
  return balance == 0 ? kSplineFine : kSplineAsymmetric;
}

// The number of partial sums depends on the sizes alone, so results do not depend on the threads.
std::int64_t parts_for(std::int64_t n_edges, std::int64_t n_values) {
  std::int64_t parts = 1;
  while (parts < kMaxParts && parts * 2048 < n_edges && 2 * parts * n_values <= kMaxPartialSums) parts *= 2;
  return parts;
}

// row(i, part) for every row, in n_parts runs of rows; `total` [n_values] becomes the sum of the parts, in order.
template <typename T, typename Row>
int all_rows(const SplineGraph<T>& g, T* total, const Row& row) {
  const std::int64_t n_values = g.n_knots * g.n_features;
  const std::int64_t n_parts = total ? parts_for(g.n_edges, n_values) : 4 * std::int64_t(g.n_threads);
  T* parts = nullptr;
  if (total) {
    parts = static_cast<T*>(malloc(std::size_t(n_parts * n_values) * sizeof(T)));
    if (parts == nullptr) return kSplineNoMemory;
  }
#pragma omp parallel num_threads(g.n_threads) if (g.n_threads > 1 && g.n_edges * g.n_features > 32768)
  {
#pragma omp for schedule(static)
    for (std::int64_t p = 0; p < n_parts; ++p) {
      T* part = total ? parts + p * n_values : nullptr;
      if (part) clear(part, n_values);
      for (std::int64_t i = g.n_nodes * p / n_parts; i < g.n_nodes * (p + 1) / n_parts; ++i) row(i, part);
    }
    if (total) {
#pragma omp for schedule(static)
      for (std::int64_t k = 0; k < g.n_knots; ++k) {
        T* DIFFMD_RESTRICT sum = total + k * g.n_features;
        clear(sum, g.n_features);
        for (std::int64_t p = 0; p < n_parts; ++p) {
          const T* part = parts + p * n_values + k * g.n_features;
          for (std::int64_t f = 0; f < g.n_features; ++f) sum[f] += part[f];
        }
      }
    }
  }
  free(parts);
  return kSplineFine;
}

}  // namespace

template <typename T> void spline_conv(const SplineConv<T>& call, int* status) {
  *status = check(call.graph, false);
  if (*status != kSplineFine) return;
  *status = all_rows(call.graph, static_cast<T*>(nullptr), [&](std::int64_t i, T*) { row_of<T>(call, i); });
}

template <typename T> void spline_conv_backward(const SplineConvBackward<T>& call, int* status) {
  *status = check(call.graph, true);
  if (*status != kSplineFine) return;
  const bool features = call.grad_features, positions = call.grad_positions;
  const auto run = [&](const auto& row) { *status = all_rows(call.graph, call.grad_coefficients, row); };
  if (features && positions) run([&](std::int64_t i, T* part) { row_once<T, true, true>(call, i, part); });
  else if (features) run([&](std::int64_t i, T* part) { row_once<T, true, false>(call, i, part); });
  else if (positions) run([&](std::int64_t i, T* part) { row_once<T, false, true>(call, i, part); });
  else run([&](std::int64_t i, T* part) { row_once<T, false, false>(call, i, part); });
}

template <typename T> void spline_conv_double_backward(const SplineConvDoubleBackward<T>& call, int* status) {
  *status = check(call.graph, true);
  if (*status != kSplineFine) return;
  T* zeros = static_cast<T*>(calloc(std::size_t(call.graph.n_features), sizeof(T)));
  if (zeros == nullptr) {
    *status = kSplineNoMemory;
    return;
  }
  const bool filters = call.along_coefficients, positions = call.grad_positions;
  const auto run = [&](const auto& row) { *status = all_rows(call.graph, call.grad_coefficients, row); };
  if (filters && positions) run([&](std::int64_t i, T* part) { row_twice<T, true, true>(call, i, part, zeros); });
  else if (filters) run([&](std::int64_t i, T* part) { row_twice<T, true, false>(call, i, part, zeros); });
  else if (positions) run([&](std::int64_t i, T* part) { row_twice<T, false, true>(call, i, part, zeros); });
  else run([&](std::int64_t i, T* part) { row_twice<T, false, false>(call, i, part, zeros); });
  free(zeros);
}

template <typename T> void edge_offsets(const EdgeOffsets<T>& call) {
#pragma omp parallel for schedule(static) num_threads(call.n_threads) if (call.n_threads > 1 && call.n_edges > 32768)
  for (std::int64_t e = 0; e < call.n_edges; ++e) {
    std::int32_t n[3];
    memcpy(n, call.shift + 3 * e, sizeof n);
    T offset[3];
    for (int k = 0; k < 3; ++k) offset[k] = T(n[0] * call.box[k] + n[1] * call.box[3 + k] + n[2] * call.box[6 + k]);
    memcpy(call.offsets + 3 * e, offset, sizeof offset);  // bytes: the memory may be that of shift
  }
}

template void edge_offsets<float>(const EdgeOffsets<float>&);
template void edge_offsets<double>(const EdgeOffsets<double>&);
template void spline_conv<float>(const SplineConv<float>&, int*);
template void spline_conv<double>(const SplineConv<double>&, int*);
template void spline_conv_backward<float>(const SplineConvBackward<float>&, int*);
template void spline_conv_backward<double>(const SplineConvBackward<double>&, int*);
template void spline_conv_double_backward<float>(const SplineConvDoubleBackward<float>&, int*);
template void spline_conv_double_backward<double>(const SplineConvDoubleBackward<double>&, int*);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
