#include "torsion_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

// A value and its derivative along one direction. The double backward is the backward on these numbers.
struct Dual {
  double value, slope;
};

DIFFMD_INLINE Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.slope + b.slope}; }
DIFFMD_INLINE Dual operator+(Dual a, double b) { return {a.value + b, a.slope}; }
DIFFMD_INLINE Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.slope - b.slope}; }
DIFFMD_INLINE Dual operator*(Dual a, Dual b) {
  return {a.value * b.value, a.slope * b.value + a.value * b.slope};
}
DIFFMD_INLINE Dual square_root(Dual x) {
  const double root = std::sqrt(x.value);
  return {root, 0.5 * x.slope / root};
}
DIFFMD_INLINE Dual inverse(Dual x) {
  const double one = 1.0 / x.value;
  return {one, -one * one * x.slope};
}

constexpr int kLanes = 16;              // torsions computed side by side, of one replica or of several
constexpr std::int64_t kReplicas = 16;  // of one piece of work; kLanes of them leave no lane idle

// Lanes are double whatever T is: the derivatives cancel near straight angles, and most of the time goes into
// gathering and scattering anyway.
using Row = double[kLanes];

// Work of one thread: all torsions of the replicas [first, last), in order. Nothing else writes to them.
template <typename T> struct Piece {
  const Torsions<T>& call;
  std::int64_t first, last;
  std::int64_t n() const { return (last - first) * call.n_torsions; }
  std::int64_t item(std::int64_t i) const { return first * call.n_torsions + i; }
  const std::int64_t* atoms(std::int64_t i) const { return call.quadruples + 4 * (i % call.n_torsions); }
  std::int64_t replica(std::int64_t i) const { return 3 * call.n_atoms * (first + i / call.n_torsions); }
};

// The nine bond components of kLanes torsions from the `begin`-th of the piece; idle lanes hold zeros.
template <typename T> void gather(const Piece<T>& piece, std::int64_t begin, const T* from, Row (&bonds)[9]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    if (begin + lane >= piece.n()) {
      for (int k = 0; k < 9; ++k) bonds[k][lane] = 0.0;
      continue;
    }
    const std::int64_t* atom = piece.atoms(begin + lane);
    const T* x = from + piece.replica(begin + lane);
    for (int b = 0; b < 3; ++b)
      for (int c = 0; c < 3; ++c)
        bonds[3 * b + c][lane] = double(x[3 * atom[b + 1] + c]) - double(x[3 * atom[b] + c]);
  }
}

template <typename T>
void gather_pairs(const Piece<T>& piece, std::int64_t begin, const T* from, Row (&pairs)[2]) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool inside = begin + lane < piece.n();
    const T* pair = from + (inside ? 2 * piece.item(begin + lane) : 0);
    for (int k = 0; k < 2; ++k) pairs[k][lane] = inside ? double(pair[k]) : 0.0;
  }
}

template <typename T>
void store_pairs(const Piece<T>& piece, std::int64_t begin, const Row (&pairs)[2], T* to) {
  for (int lane = 0; lane < kLanes && begin + lane < piece.n(); ++lane)
    for (int k = 0; k < 2; ++k) to[2 * piece.item(begin + lane) + k] = T(pairs[k][lane]);
}

// Torsion after torsion, so that the order of every sum is that of the quadruples whatever the threads.
template <typename T>
void scatter(const Piece<T>& piece, std::int64_t begin, const Row (&bonds)[9], T* to) {
  for (int lane = 0; lane < kLanes && begin + lane < piece.n(); ++lane) {
    const std::int64_t* atom = piece.atoms(begin + lane);
    T* g = to + piece.replica(begin + lane);
    for (int c = 0; c < 3; ++c) {
      const double g1 = bonds[c][lane], g2 = bonds[3 + c][lane], g3 = bonds[6 + c][lane];
      g[3 * atom[0] + c] -= T(g1);
      g[3 * atom[1] + c] += T(g1 - g2);
      g[3 * atom[2] + c] += T(g2 - g3);
      g[3 * atom[3] + c] += T(g3);
    }
  }
}

template <typename T> void clear(const Piece<T>& piece) {
  const std::int64_t width = 3 * piece.call.n_atoms;
  for (std::int64_t i = piece.first * width; i < piece.last * width; ++i) piece.call.grad_positions[i] = T(0);
}

DIFFMD_INLINE Bonds<double> lane_of(const Row (&b)[9], int i) {
  return {{b[0][i], b[1][i], b[2][i]}, {b[3][i], b[4][i], b[5][i]}, {b[6][i], b[7][i], b[8][i]}};
}

DIFFMD_INLINE Bonds<Dual> lane_of(const Row (&b)[9], const Row (&s)[9], int i) {
  return {{{b[0][i], s[0][i]}, {b[1][i], s[1][i]}, {b[2][i], s[2][i]}},
          {{b[3][i], s[3][i]}, {b[4][i], s[4][i]}, {b[5][i], s[5][i]}},
          {{b[6][i], s[6][i]}, {b[7][i], s[7][i]}, {b[8][i], s[8][i]}}};
}

template <typename T> void forward_piece(const Piece<T>& piece) {
  Row bonds[9], out[2];
  for (std::int64_t begin = 0; begin < piece.n(); begin += kLanes) {
    gather(piece, begin, piece.call.positions, bonds);
    for (int i = 0; i < kLanes; ++i) {
      const Bonds<double> b = lane_of(bonds, i);
      const Angle<double> angle = angle_of<double>(b.b1, b.b2, b.b3);
      out[0][i] = angle.sine;
      out[1][i] = angle.cosine;
    }
    store_pairs(piece, begin, out, piece.call.output);
  }
}

template <typename T> void backward_piece(const Piece<T>& piece) {
  Row bonds[9], grad[2], out[9];
  clear(piece);
  for (std::int64_t begin = 0; begin < piece.n(); begin += kLanes) {
    gather(piece, begin, piece.call.positions, bonds);
    gather_pairs(piece, begin, piece.call.grad_output, grad);
    for (int i = 0; i < kLanes; ++i) {
      const Bonds<double> b = lane_of(bonds, i);
      const Bonds<double> g = gradient_of(angle_of<double>(b.b1, b.b2, b.b3), b, grad[0][i], grad[1][i]);
      const double parts[9] = {g.b1.x, g.b1.y, g.b1.z, g.b2.x, g.b2.y, g.b2.z, g.b3.x, g.b3.y, g.b3.z};
      for (int k = 0; k < 9; ++k) out[k][i] = parts[k];
    }
    scatter(piece, begin, out, piece.call.grad_positions);
  }
}

template <typename T> void double_backward_piece(const Piece<T>& piece) {
  Row bonds[9], slopes[9], grad[2], out[9], along[2];
  clear(piece);
  for (std::int64_t begin = 0; begin < piece.n(); begin += kLanes) {
    gather(piece, begin, piece.call.positions, bonds);
    gather(piece, begin, piece.call.cotangent, slopes);
    gather_pairs(piece, begin, piece.call.grad_output, grad);
    for (int i = 0; i < kLanes; ++i) {
      const Bonds<Dual> b = lane_of(bonds, slopes, i);
      const Angle<Dual> angle = angle_of<double>(b.b1, b.b2, b.b3);
      const Bonds<Dual> g = gradient_of(angle, b, Dual{grad[0][i], 0.0}, Dual{grad[1][i], 0.0});
      const double parts[9] = {g.b1.x.slope, g.b1.y.slope, g.b1.z.slope, g.b2.x.slope, g.b2.y.slope,
                               g.b2.z.slope, g.b3.x.slope, g.b3.y.slope, g.b3.z.slope};
      for (int k = 0; k < 9; ++k) out[k][i] = parts[k];
      along[0][i] = angle.sine.slope;
      along[1][i] = angle.cosine.slope;
    }
    scatter(piece, begin, out, piece.call.grad_positions);
    store_pairs(piece, begin, along, piece.call.output);
  }
}

template <typename T> void each_piece(const Torsions<T>& call, void (*work)(const Piece<T>&)) {
  if (call.n_atoms == 0) return;  // no torsions, nothing to clear; and the replicas of such a tensor cost no memory
  const std::int64_t n_pieces = (call.n_replicas + kReplicas - 1) / kReplicas;
#pragma omp parallel for schedule(static) num_threads(call.n_threads) \
    if (call.n_threads > 1 && call.n_replicas * call.n_torsions > 2048)
  for (std::int64_t p = 0; p < n_pieces; ++p) {
    const std::int64_t first = p * kReplicas;
    const std::int64_t last = first + kReplicas < call.n_replicas ? first + kReplicas : call.n_replicas;
    work(Piece<T>{call, first, last});
  }
}

}  // namespace

template <typename T> void torsions(const Torsions<T>& call) { each_piece(call, &forward_piece<T>); }
template <typename T> void torsions_backward(const Torsions<T>& call) {
  each_piece(call, &backward_piece<T>);
}
template <typename T> void torsions_double_backward(const Torsions<T>& call) {
  each_piece(call, &double_backward_piece<T>);
}

template void torsions<float>(const Torsions<float>&);
template void torsions<double>(const Torsions<double>&);
template void torsions_backward<float>(const Torsions<float>&);
template void torsions_backward<double>(const Torsions<double>&);
template void torsions_double_backward<float>(const Torsions<float>&);
template void torsions_double_backward<double>(const Torsions<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
