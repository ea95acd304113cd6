#include "schnet.hpp"

#include <math.h>

#include "bend_math.hpp"
#include "scratch.hpp"
#include "simd.hpp"
#include "torsion_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

// Rows (atoms of several replicas) that go through a layer together: the weights then come from the caches once for
// all of them. Every row runs the same instructions, so its result does not depend on its neighbours.
constexpr std::int64_t kRows = 66;
constexpr int kPanelBytes = 64;  // columns of a matrix that are multiplied together: one cache line
constexpr int kGroup = kRegisterBytes == 64 ? 12 : kRegisterBytes == 32 ? 6 : 2;  // rows multiplied together

// A pair of atoms i < j within the cutoff: where in the spline, the four weights of W and of dW/dr, and the direction.
template <typename T> struct Pair {
  std::int32_t j, interval;
  T value[4], slope[4], unit[3];  // unit = (x_i - x_j) / r; zero where r = 0
};

// What one thread works in. Feature arrays hold n_rows rows, a multiple of kGroup; those past the last atom are
// zeros or finite leftovers that nothing reads.
template <typename T> struct Workspace {
  std::int64_t n_replicas, n_rows, n_pairs;  // at most; n_pairs per replica
  T *h, *m, *u, *grad_p;                     // [n_rows, F]
  T *p, *slope;                              // [B, n_rows, F], [B + 1, n_rows, F]: kept for the backward pass
  T *x, *gradient, *angles;                  // [n_replicas, n_atoms, 3] twice, [n_replicas, n_torsions, 2]
  Pair<T>* pairs;                            // [n_replicas, n_pairs]
  T* pair_sums;                              // [n_replicas, n_pairs, lanes]: dE/dr, lane by lane
  std::int64_t* first_pair;                  // [n_replicas, n_atoms + 1]: pairs of each i
  bool* finite;                              // [n_replicas]
};

// Cuts arrays out of one allocation; from null it only counts.
struct Cutter {
  char* base;
  std::size_t used = 0;
  template <typename U> U* take(std::int64_t n) {
    U* result = base ? reinterpret_cast<U*>(base + used) : nullptr;
    used += (std::size_t(n) * sizeof(U) + 63) / 64 * 64;
    return result;
  }
};

template <typename T> Workspace<T> cut(const SchNet<T>& call, std::int64_t n_replicas, Cutter& cutter) {
  Workspace<T> w;
  const std::int64_t n_atoms = n_replicas * call.n_atoms;
  w.n_replicas = n_replicas;
  w.n_rows = (n_atoms + kGroup - 1) / kGroup * kGroup;
  w.n_pairs = call.n_atoms * (call.n_atoms - 1) / 2;
  const std::int64_t size = w.n_rows * call.n_features;
  w.h = cutter.take<T>(size);
  w.m = cutter.take<T>(size);
  w.u = cutter.take<T>(size);
  w.grad_p = cutter.take<T>(size);
  w.p = cutter.take<T>(call.n_blocks * size);
  w.slope = cutter.take<T>((call.n_blocks + 1) * size);
  w.x = cutter.take<T>(3 * n_atoms);
  w.gradient = cutter.take<T>(3 * n_atoms);
  w.angles = cutter.take<T>(2 * n_replicas * call.n_torsions);
  w.pairs = cutter.take<Pair<T>>(n_replicas * w.n_pairs);
  w.pair_sums = cutter.take<T>(n_replicas * w.n_pairs * Simd<T>::lanes);
  w.first_pair = cutter.take<std::int64_t>(n_replicas * (call.n_atoms + 1));
  w.finite = cutter.take<bool>(n_replicas);
  return w;
}

template <typename T> DIFFMD_INLINE void clear(T* values, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) values[i] = T(0);
}

// ---- layers ------------------------------------------------------------------------------------------------

// out = in . weights + bias (null: zero), or out += that; the sum over inputs is in order, one FMA after another.
template <typename T, bool kAdd>
void multiply(const T* DIFFMD_RESTRICT in, const T* DIFFMD_RESTRICT weights, const T* bias, T* DIFFMD_RESTRICT out,
              std::int64_t n_rows, std::int64_t n) {
  constexpr int lanes = Simd<T>::lanes, panel = kPanelBytes / int(sizeof(T)), packs = panel / lanes;
  for (std::int64_t column = 0; column < n; column += panel) {
    for (std::int64_t row = 0; row < n_rows; row += kGroup) {
      const T* a = in + row * n;
      T* c = out + row * n + column;
      Pack<T> sum[kGroup][packs];
      for (int r = 0; r < kGroup; ++r) {
        for (int v = 0; v < packs; ++v) {
          sum[r][v] = bias ? load(bias + column + v * lanes) : fill<T>(T(0));
          if (kAdd) sum[r][v] += load(c + r * n + v * lanes);
        }
      }
      for (std::int64_t k = 0; k < n; ++k) {
        Pack<T> b[packs];
        for (int v = 0; v < packs; ++v) b[v] = load(weights + k * n + column + v * lanes);
        for (int r = 0; r < kGroup; ++r)
          for (int v = 0; v < packs; ++v) sum[r][v] += a[r * n + k] * b[v];
      }
      for (int r = 0; r < kGroup; ++r)
        for (int v = 0; v < packs; ++v) store(c + r * n + v * lanes, sum[r][v]);
    }
  }
}

// u <- silu(u), slope <- silu'(u).
template <typename T> void silu(T* DIFFMD_RESTRICT u, T* DIFFMD_RESTRICT slope, std::int64_t size) {
  for (std::int64_t i = 0; i < size; i += Simd<T>::lanes) {
    const Pack<T> x = load(u + i), s = T(1) / (exp_of<T>(-x) + T(1)), y = x * s;
    store(u + i, y);
    store(slope + i, s + y * (T(1) - s));
  }
}

// m_i += sum_j p_j W(r_ij): each pair's W is worked out once, for both directions.
template <typename T, int kChunk>
void convolve(const std::int64_t* first_pair, const Pair<T>* pairs, const T* coefficients, const T* p, T* m,
              std::int64_t n_atoms, std::int64_t n) {
  constexpr int lanes = Simd<T>::lanes;
  for (std::int64_t i = 0; i < n_atoms; ++i) {
    for (std::int64_t column = 0; column < n; column += kChunk * lanes) {
      Pack<T> p_i[kChunk], m_i[kChunk];
      for (int v = 0; v < kChunk; ++v) {
        p_i[v] = load(p + i * n + column + v * lanes);
        m_i[v] = load(m + i * n + column + v * lanes);
      }
      for (std::int64_t e = first_pair[i]; e < first_pair[i + 1]; ++e) {
        const Pair<T>& pair = pairs[e];
        const T* c = coefficients + pair.interval * n + column;
        const T* p_j = p + pair.j * n + column;
        T* m_j = m + pair.j * n + column;
        const T b0 = pair.value[0], b1 = pair.value[1], b2 = pair.value[2], b3 = pair.value[3];
        for (int v = 0; v < kChunk; ++v) {
          const T* row = c + v * lanes;
          const Pack<T> w = b0 * load(row) + b1 * load(row + n) + b2 * load(row + 2 * n) + b3 * load(row + 3 * n);
          m_i[v] += w * load(p_j + v * lanes);
          store(m_j + v * lanes, load(m_j + v * lanes) + w * p_i[v]);
        }
      }
      for (int v = 0; v < kChunk; ++v) store(m + i * n + column + v * lanes, m_i[v]);
    }
  }
}

// With g = dE/dm: grad_p_i += sum_j g_j W, and dE/dr of each pair += sum_f W' (g_i p_j + g_j p_i).
template <typename T, int kChunk>
void convolve_backward(const std::int64_t* first_pair, const Pair<T>* pairs, const T* coefficients, const T* p,
                       const T* g, T* grad_p, T* pair_sums, std::int64_t n_atoms, std::int64_t n) {
  constexpr int lanes = Simd<T>::lanes;
  for (std::int64_t i = 0; i < n_atoms; ++i) {
    for (std::int64_t column = 0; column < n; column += kChunk * lanes) {
      Pack<T> p_i[kChunk], g_i[kChunk], grad_i[kChunk];
      for (int v = 0; v < kChunk; ++v) {
        p_i[v] = load(p + i * n + column + v * lanes);
        g_i[v] = load(g + i * n + column + v * lanes);
        grad_i[v] = load(grad_p + i * n + column + v * lanes);
      }
      for (std::int64_t e = first_pair[i]; e < first_pair[i + 1]; ++e) {
        const Pair<T>& pair = pairs[e];
        const T* c = coefficients + pair.interval * n + column;
        const std::int64_t other = pair.j * n + column;
        const T b0 = pair.value[0], b1 = pair.value[1], b2 = pair.value[2], b3 = pair.value[3];
        const T d0 = pair.slope[0], d1 = pair.slope[1], d2 = pair.slope[2], d3 = pair.slope[3];
        Pack<T> along = load(pair_sums + e * lanes);
        for (int v = 0; v < kChunk; ++v) {
          const T* row = c + v * lanes;
          const Pack<T> c0 = load(row), c1 = load(row + n), c2 = load(row + 2 * n), c3 = load(row + 3 * n);
          const Pack<T> g_j = load(g + other + v * lanes), p_j = load(p + other + v * lanes);
          const Pack<T> w = b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3;
          along += (d0 * c0 + d1 * c1 + d2 * c2 + d3 * c3) * (g_i[v] * p_j + g_j * p_i[v]);
          grad_i[v] += w * g_j;
          store(grad_p + other + v * lanes, load(grad_p + other + v * lanes) + w * g_i[v]);
        }
        store(pair_sums + e * lanes, along);
      }
      for (int v = 0; v < kChunk; ++v) store(grad_p + i * n + column + v * lanes, grad_i[v]);
    }
  }
}

// ---- geometry of one replica -------------------------------------------------------------------------------

template <typename T> DIFFMD_INLINE void spline_weights(T x, T per_spacing, std::int64_t n_intervals, Pair<T>& pair) {
  const T last = T(n_intervals - 1);
  pair.interval = std::int32_t(x < last ? x : last);
  const T t = x - T(pair.interval), s = T(1) - t, sixth = T(1.0 / 6.0), half = T(0.5) * per_spacing;
  pair.value[0] = s * s * s * sixth;
  pair.value[1] = ((T(3) * t - T(6)) * t * t + T(4)) * sixth;
  pair.value[2] = (((T(-3) * t + T(3)) * t + T(3)) * t + T(1)) * sixth;
  pair.value[3] = t * t * t * sixth;
  pair.slope[0] = -s * s * half;
  pair.slope[1] = (T(3) * t - T(4)) * t * half;
  pair.slope[2] = ((T(-3) * t + T(2)) * t + T(1)) * half;
  pair.slope[3] = t * t * half;
}

// Lists the pairs within the cutoff; a NaN distance is none of them.
template <typename T> void find_pairs(const SchNet<T>& call, const T* x, std::int64_t* first_pair, Pair<T>* pairs) {
  const T cutoff = T(call.cutoff), per_spacing = T(double(call.n_coefficients - 3) / call.cutoff);
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < call.n_atoms; ++i) {
    first_pair[i] = n;
    for (std::int64_t j = i + 1; j < call.n_atoms; ++j) {
      const T d[3] = {x[3 * i] - x[3 * j], x[3 * i + 1] - x[3 * j + 1], x[3 * i + 2] - x[3 * j + 2]};
      const T r = sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
      if (!(r < cutoff)) continue;
      Pair<T>& pair = pairs[n++];
      pair.j = std::int32_t(j);
      spline_weights(r * per_spacing, per_spacing, call.n_coefficients - 3, pair);
      const T inverse = r > T(0) ? T(1) / r : T(0);
      for (int c = 0; c < 3; ++c) pair.unit[c] = d[c] * inverse;
    }
  }
  first_pair[call.n_atoms] = n;
}

template <typename T> DIFFMD_INLINE Vector<T> between(const T* x, std::int64_t from, std::int64_t to) {
  const T *a = x + 3 * from, *b = x + 3 * to;
  return {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
}

template <typename T> DIFFMD_INLINE Bonds<T> bonds_of(const T* x, const std::int64_t* atom) {
  return {between(x, atom[0], atom[1]), between(x, atom[1], atom[2]), between(x, atom[2], atom[3])};
}

template <typename T> void find_angles(const SchNet<T>& call, const T* x, T* angles) {
  for (std::int64_t t = 0; t < call.n_torsions; ++t) {
    const Bonds<T> bonds = bonds_of(x, call.quadruples + 4 * t);
    const Angle<T> angle = angle_of<T>(bonds.b1, bonds.b2, bonds.b3);
    angles[2 * t] = angle.sine;
    angles[2 * t + 1] = angle.cosine;
  }
}

// The series of torsion t, from its sine and cosine.
template <typename T> DIFFMD_INLINE TorsionSeries<T> series_at(const SchNet<T>& call, std::int64_t t, const T* angles) {
  return torsion_series(call.torsion_series + 2 * t * call.n_harmonics, call.n_harmonics, angles[2 * t],
                        angles[2 * t + 1]);
}

template <typename T> DIFFMD_INLINE void add(T* gradient, std::int64_t atom, Vector<T> part) {
  gradient[3 * atom] += part.x;
  gradient[3 * atom + 1] += part.y;
  gradient[3 * atom + 2] += part.z;
}

// Springs, bends and the pull to the centre: energy returned, gradient added. The two do not overlap; not told so, GCC
// makes a vector and a scalar copy that round differently and picks one by their distance, which depends on the batch.
template <typename T>
double add_stiff(const SchNet<T>& call, const T* DIFFMD_RESTRICT x, T* DIFFMD_RESTRICT gradient) {
  double energy = 0.0;
  for (std::int64_t s = 0; s < call.n_springs; ++s) {
    const std::int64_t i = 3 * call.spring_pairs[2 * s], j = 3 * call.spring_pairs[2 * s + 1];
    const T d[3] = {x[i] - x[j], x[i + 1] - x[j + 1], x[i + 2] - x[j + 2]};
    const T r = sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]), stretch = r - call.spring_mean[s];
    energy += 0.5 * double(call.spring_stiffness[s]) * double(stretch) * double(stretch);
    const T pull = r > T(0) ? call.spring_stiffness[s] * stretch / r : T(0);
    for (int c = 0; c < 3; ++c) {
      gradient[i + c] += pull * d[c];
      gradient[j + c] -= pull * d[c];
    }
  }
  for (std::int64_t b = 0; b < call.n_bends; ++b) {
    const std::int64_t* atom = call.bend_triples + 3 * b;
    const Bend<T> bend = bend_of(between(x, atom[1], atom[0]), between(x, atom[1], atom[2]));
    const T bent = bend.cosine - call.bend_mean[b], slope = call.bend_stiffness[b] * bent;
    energy += 0.5 * double(call.bend_stiffness[b]) * double(bent) * double(bent);
    add(gradient, atom[0], slope * bend.by_a);
    add(gradient, atom[1], -slope * (bend.by_a + bend.by_c));
    add(gradient, atom[2], slope * bend.by_c);
  }
  if (call.centre_stiffness == 0.0) return energy;
  for (int c = 0; c < 3; ++c) {
    double mean = 0.0;
    for (std::int64_t a = 0; a < call.n_atoms; ++a) mean += double(x[3 * a + c]);
    mean /= double(call.n_atoms);
    for (std::int64_t a = 0; a < call.n_atoms; ++a) {
      const double d = double(x[3 * a + c]) - mean;
      energy += 0.5 * call.centre_stiffness * d * d;
      gradient[3 * a + c] += T(call.centre_stiffness * d);
    }
  }
  return energy;
}

template <typename T>
void add_pair_gradient(const SchNet<T>& call, const std::int64_t* first_pair, const Pair<T>* pairs,
                       const T* pair_sums, T* gradient) {
  for (std::int64_t i = 0; i < call.n_atoms; ++i) {
    for (std::int64_t e = first_pair[i]; e < first_pair[i + 1]; ++e) {
      const T along = sum_of<T>(load(pair_sums + e * Simd<T>::lanes));
      for (int c = 0; c < 3; ++c) {
        gradient[3 * i + c] += along * pairs[e].unit[c];
        gradient[3 * pairs[e].j + c] -= along * pairs[e].unit[c];
      }
    }
  }
}

// ---- a block of replicas -----------------------------------------------------------------------------------

template <typename T> struct Block {
  const SchNet<T>& call;
  const Workspace<T>& w;
  std::int64_t first, count;  // replicas first .. first + count - 1

  std::int64_t n() const { return call.n_features; }
  std::int64_t rows() const { return (count * call.n_atoms + kGroup - 1) / kGroup * kGroup; }
  T* x(std::int64_t r) const { return w.x + 3 * r * call.n_atoms; }
  T* gradient(std::int64_t r) const { return w.gradient + 3 * r * call.n_atoms; }
  T* angles(std::int64_t r) const { return w.angles + 2 * r * call.n_torsions; }
  T* row(T* array, std::int64_t r) const { return array + r * call.n_atoms * n(); }
  Pair<T>* pairs(std::int64_t r) const { return w.pairs + r * w.n_pairs; }
  T* pair_sums(std::int64_t r) const { return w.pair_sums + r * w.n_pairs * Simd<T>::lanes; }
  std::int64_t* first_pair(std::int64_t r) const { return w.first_pair + r * (call.n_atoms + 1); }
  T* p(std::int64_t b) const { return w.p + b * w.n_rows * n(); }
  T* slope(std::int64_t b) const { return w.slope + b * w.n_rows * n(); }
};

// Positions of the block, zeros for a replica with one that is not finite; then what follows from them alone.
template <typename T> void geometry(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  for (std::int64_t r = 0; r < block.count; ++r) {
    const T* from = call.positions + 3 * (block.first + r) * call.n_atoms;
    T* x = block.x(r);
    T zero = T(0);
    for (std::int64_t i = 0; i < 3 * call.n_atoms; ++i) zero += (x[i] = from[i]) * T(0);
    block.w.finite[r] = zero == T(0);
    if (!block.w.finite[r]) clear(x, 3 * call.n_atoms);
    find_pairs(call, x, block.first_pair(r), block.pairs(r));
    find_angles(call, x, block.angles(r));
  }
}

// The first features. Torsions are the outer loop: their weights are read once for the whole block.
template <typename T> void embed(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  const std::int64_t n = block.n(), size = call.n_atoms * n;
  for (std::int64_t r = 0; r < block.count; ++r)
    for (std::int64_t i = 0; i < size; ++i) block.row(block.w.h, r)[i] = call.embedding[i];
  clear(block.row(block.w.h, block.count), block.rows() * n - block.count * size);
  for (std::int64_t t = 0; t < 4 * call.n_torsions; ++t) {
    const T *sine_weights = call.torsion_weights + 2 * t * n, *cosine_weights = sine_weights + n;
    for (std::int64_t r = 0; r < block.count; ++r) {
      const T sine = block.angles(r)[t / 4 * 2], cosine = block.angles(r)[t / 4 * 2 + 1];
      T* h = block.row(block.w.h, r) + call.quadruples[t] * n;
      for (std::int64_t f = 0; f < n; f += Simd<T>::lanes)
        store(h + f, load(h + f) + sine * load(sine_weights + f) + cosine * load(cosine_weights + f));
    }
  }
}

// Gradient of the torsions' sines and cosines into `angles`, then on to the positions.
template <typename T> void embed_backward(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  const std::int64_t n = block.n();
  for (std::int64_t t = 0; t < call.n_torsions; ++t) {
    const std::int64_t* atom = call.quadruples + 4 * t;
    for (std::int64_t r = 0; r < block.count; ++r) {
      Pack<T> sine = fill<T>(T(0)), cosine = fill<T>(T(0));
      for (int role = 0; role < 4; ++role) {
        const T* weights = call.torsion_weights + 2 * (4 * t + role) * n;
        const T* grad_h = block.row(block.w.h, r) + atom[role] * n;
        for (std::int64_t f = 0; f < n; f += Simd<T>::lanes) {
          sine += load(weights + f) * load(grad_h + f);
          cosine += load(weights + n + f) * load(grad_h + f);
        }
      }
      const TorsionSeries<T> series = series_at(call, t, block.angles(r));
      const Bonds<T> bonds = bonds_of(block.x(r), atom);
      const Bonds<T> g = gradient_of(angle_of<T>(bonds.b1, bonds.b2, bonds.b3), bonds,
                                     sum_of<T>(sine) + series.by_sine, sum_of<T>(cosine) + series.by_cosine);
      const T parts[9] = {g.b1.x, g.b1.y, g.b1.z, g.b2.x, g.b2.y, g.b2.z, g.b3.x, g.b3.y, g.b3.z};
      for (int k = 0; k < 9; ++k) {
        block.gradient(r)[3 * atom[k / 3 + 1] + k % 3] += parts[k];
        block.gradient(r)[3 * atom[k / 3] + k % 3] -= parts[k];
      }
    }
  }
}

// Whether a convolution can keep four registers of features at once.
template <typename T> DIFFMD_INLINE bool by_fours(std::int64_t n) { return n / Simd<T>::lanes % 4 == 0; }

template <typename T> void forward(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  const Workspace<T>& w = block.w;
  const std::int64_t n = block.n(), rows = block.rows(), square = n * n;
  embed(block);
  for (std::int64_t b = 0; b < call.n_blocks; ++b) {
    multiply<T, false>(w.h, call.project + b * square, nullptr, block.p(b), rows, n);
    clear(w.m, rows * n);
    const auto conv = by_fours<T>(n) ? &convolve<T, 4> : &convolve<T, 1>;
    for (std::int64_t r = 0; r < block.count; ++r)
      conv(block.first_pair(r), block.pairs(r), call.coefficients + b * call.n_coefficients * n,
           block.row(block.p(b), r), block.row(w.m, r), call.n_atoms, n);
    multiply<T, false>(w.m, call.first + b * square, call.first_bias + b * n, w.u, rows, n);
    silu(w.u, block.slope(b), rows * n);
    multiply<T, true>(w.u, call.second + b * square, call.second_bias + b * n, w.h, rows, n);
  }
  multiply<T, false>(w.h, call.readout, call.readout_bias, w.u, rows, n);
  silu(w.u, block.slope(call.n_blocks), rows * n);
}

// Leaves the gradient with respect to the first features in h and that of the pair distances in pair_sums.
template <typename T> void backward(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  const Workspace<T>& w = block.w;
  const std::int64_t n = block.n(), rows = block.rows(), square = n * n;
  const T* slope = block.slope(call.n_blocks);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t f = 0; f < n; ++f) w.u[row * n + f] = call.readout_out[f] * slope[row * n + f];
  multiply<T, false>(w.u, call.readout_transposed, nullptr, w.h, rows, n);
  for (std::int64_t r = 0; r < block.count; ++r)
    clear(block.pair_sums(r), block.first_pair(r)[call.n_atoms] * Simd<T>::lanes);
  for (std::int64_t b = call.n_blocks - 1; b >= 0; --b) {
    multiply<T, false>(w.h, call.second_transposed + b * square, nullptr, w.u, rows, n);
    for (std::int64_t i = 0; i < rows * n; ++i) w.u[i] *= block.slope(b)[i];
    multiply<T, false>(w.u, call.first_transposed + b * square, nullptr, w.m, rows, n);
    clear(w.grad_p, rows * n);
    const auto conv = by_fours<T>(n) ? &convolve_backward<T, 4> : &convolve_backward<T, 1>;
    for (std::int64_t r = 0; r < block.count; ++r)
      conv(block.first_pair(r), block.pairs(r), call.coefficients + b * call.n_coefficients * n,
           block.row(block.p(b), r), block.row(w.m, r), block.row(w.grad_p, r), block.pair_sums(r), call.n_atoms, n);
    if (b > 0 || call.n_torsions > 0)  // the first embedding does not depend on the positions
      multiply<T, true>(w.grad_p, call.project_transposed + b * square, nullptr, w.h, rows, n);
  }
}

template <typename T> void evaluate(const Block<T>& block) {
  const SchNet<T>& call = block.call;
  const std::int64_t width = 3 * call.n_atoms, n = block.n();
  clear(block.w.gradient, block.count * width);
  geometry(block);
  forward(block);
  for (std::int64_t r = 0; r < block.count; ++r) {
    double energy = add_stiff(call, block.x(r), block.gradient(r));
    for (std::int64_t t = 0; t < call.n_torsions; ++t) energy += double(series_at(call, t, block.angles(r)).energy);
    for (std::int64_t a = 0; a < call.n_atoms; ++a) {
      Pack<T> sum = fill<T>(T(0));
      const T* u = block.row(block.w.u, r) + a * n;
      for (std::int64_t f = 0; f < n; f += Simd<T>::lanes) sum += load(u + f) * load(call.readout_out + f);
      energy += double(sum_of<T>(sum));
    }
    call.energy[block.first + r] = block.w.finite[r] ? T(energy) : T(NAN);
  }
  if (call.score == nullptr) return;
  backward(block);
  embed_backward(block);
  for (std::int64_t r = 0; r < block.count; ++r) {
    add_pair_gradient(call, block.first_pair(r), block.pairs(r), block.pair_sums(r), block.gradient(r));
    T* score = call.score + (block.first + r) * width;
    for (std::int64_t i = 0; i < width; ++i) score[i] = block.w.finite[r] ? -block.gradient(r)[i] : T(NAN);
  }
}

}  // namespace

template <typename T> std::int64_t schnet_block_size(const SchNet<T>& call) {
  return call.n_atoms < kRows ? kRows / call.n_atoms : 1;
}

template <typename T> std::size_t schnet_scratch(const SchNet<T>& call, std::int64_t n_replicas) {
  Cutter count{nullptr};
  cut(call, n_replicas, count);
  return count.used;
}

template <typename T>
void schnet_block(const SchNet<T>& call, std::int64_t first, std::int64_t count, char* scratch) {
  Cutter cutter{scratch};
  const Workspace<T> workspace = cut(call, count, cutter);
  evaluate(Block<T>{call, workspace, first, count});
}

template <typename T> void schnet(const SchNet<T>& call, bool* enough_memory) {
  if (call.n_replicas <= 0) return;
  const std::int64_t share = (call.n_replicas + call.n_threads - 1) / call.n_threads;
  const std::int64_t fits = schnet_block_size(call), per_block = fits > share ? share : fits;
  const std::int64_t n_blocks = (call.n_replicas + per_block - 1) / per_block;
  const int n_threads = int(n_blocks < call.n_threads ? n_blocks : call.n_threads);
  Scratch scratch(schnet_scratch(call, per_block), n_threads);
  *enough_memory = scratch.memory != nullptr;
  if (scratch.memory == nullptr) return;
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    char* mine = scratch.of_this_thread();
#pragma omp for schedule(dynamic)
    for (std::int64_t b = 0; b < n_blocks; ++b) {
      const std::int64_t first = b * per_block, left = call.n_replicas - first;
      schnet_block(call, first, left < per_block ? left : per_block, mine);
    }
  }
}

template void schnet<float>(const SchNet<float>&, bool*);
template void schnet<double>(const SchNet<double>&, bool*);
template std::int64_t schnet_block_size<float>(const SchNet<float>&);
template std::int64_t schnet_block_size<double>(const SchNet<double>&);
template std::size_t schnet_scratch<float>(const SchNet<float>&, std::int64_t);
template std::size_t schnet_scratch<double>(const SchNet<double>&, std::int64_t);
template void schnet_block<float>(const SchNet<float>&, std::int64_t, std::int64_t, char*);
template void schnet_block<double>(const SchNet<double>&, std::int64_t, std::int64_t, char*);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
