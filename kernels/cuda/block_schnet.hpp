// Energy and score of the molecules of a thread block: csrc/schnet.cpp once more, its formulas in its order, cut for
// threads that share memory. There a pair of atoms is visited once; here every row gathers what belongs to it, so no
// two items of a phase write to the same place. Sums have one order, whatever the number of lanes or of molecules.
#pragma once
#include "bend_math.hpp"
#include "block_tensor.hpp"
#include "normals.hpp"
#include "torsion_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr int kTileRows = 4;   // a lane multiplies tiles of kTileRows rows by 4 columns
constexpr int kRowPadding = 4; // floats after each row of features, so that rows begin in different banks

// An ordered pair of atoms: its distance in intervals of the spline, -1 beyond the cutoff, and 1/r (0 where r = 0).
struct alignas(8) Near {
  float place, inverse;
};

// What a block keeps in shared memory. Feature arrays have n_rows rows of stride floats; the rows after the last atom
// hold zeros or what follows from zeros.
struct BlockMemory {
  int n_rows, stride;
  // Springs and bends share arrays, since every pointer takes registers: [m, n_springs], then [m, n_bends].
  double *stiff_energy, *centre, *row_energy;   // stiff, [m, 3], [m, n_atoms]
  float *h, *m, *u;                             // [n_rows, stride]
  float *p, *slope;                             // [n_blocks, n_rows, stride] twice: kept for the backward pass
  Near* near;                                   // [m, n_atoms, n_atoms]
  float *angles, *torsion_energy;               // [m, n_torsions, (sine, cosine)], [m, n_torsions]
  float* role_gradient;                         // [m, n_torsions, 4 roles, (sine, cosine)]
  float* torsion_gradient;                      // [m, n_torsions, 4 roles, 3]
  float* stiff_gradient;                        // [3] of a spring's first atom (minus the second's); [3, 3] of a bend
  float* along;                                 // [m, n_atoms, F / 4, 3]: gradient of the distances, by features
  float *x, *score, *energy;                    // [m, n_atoms, 3] twice, [m]
  float *before, *score_before, *energy_before; // likewise: what a Heun step and a proposal go back to
  float* velocities;                            // [m, n_atoms, 3]
  int *bad, *fate, *loss;                       // [m, n_atoms], [m], [m]: csrc/resident_sampler.cpp's, see there
  int* rejected;                                // [m]
};

// Cuts arrays out of one piece of memory; from null it only counts.
struct BlockCutter {
  char* base;
  std::size_t used;
  template <typename Value> DIFFMD_HOST_DEVICE void take(Value** array, std::int64_t n) {
    *array = base ? reinterpret_cast<Value*>(base + used) : nullptr;
    used += (std::size_t(n) * sizeof(Value) + 15) / 16 * 16;
  }
};

// The memory of a block, cut out of `base`, which is aligned to 16. Returns the bytes.
DIFFMD_HOST_DEVICE inline std::size_t cut_block(const SchNet<float>& model, int molecules, char* base,
                                                BlockMemory* out) {
  BlockCutter cutter{base, 0};
  const std::int64_t m = molecules, n = model.n_atoms, atoms = m * n, blocks = model.n_blocks;
  out->n_rows = int((atoms + kTileRows - 1) / kTileRows * kTileRows);
  out->stride = int(model.n_features) + kRowPadding;
  const std::int64_t features = std::int64_t(out->n_rows) * out->stride;
  cutter.take(&out->stiff_energy, m * (model.n_springs + model.n_bends));
  cutter.take(&out->centre, 3 * m);
  cutter.take(&out->row_energy, atoms);
  cutter.take(&out->h, features);
  cutter.take(&out->m, features);
  cutter.take(&out->u, features);
  cutter.take(&out->p, blocks * features);
  cutter.take(&out->slope, blocks * features);
  cutter.take(&out->near, atoms * n);
  cutter.take(&out->angles, 2 * m * model.n_torsions);
  cutter.take(&out->torsion_energy, m * model.n_torsions);
  cutter.take(&out->role_gradient, 8 * m * model.n_torsions);
  cutter.take(&out->torsion_gradient, 12 * m * model.n_torsions);
  cutter.take(&out->stiff_gradient, 3 * m * (model.n_springs + 3 * model.n_bends));
  cutter.take(&out->along, 3 * atoms * (model.n_features / 4));
  cutter.take(&out->x, 3 * atoms);
  cutter.take(&out->score, 3 * atoms);
  cutter.take(&out->energy, m);
  cutter.take(&out->before, 3 * atoms);
  cutter.take(&out->score_before, 3 * atoms);
  cutter.take(&out->energy_before, m);
  cutter.take(&out->velocities, 3 * atoms);
  cutter.take(&out->bad, atoms);
  cutter.take(&out->fate, m);
  cutter.take(&out->loss, m);
  cutter.take(&out->rejected, m);
  return cutter.used;
}

// Cubic B-splines at a place: the four weights of W, of dW/dr where asked for, and the first of their coefficients.
struct SplineWeights {
  int interval;
  float value[4], slope[4];
};

template <Precision precision> struct BlockSchNet {
  const ResidentBlocks& call;
  const SchNet<float>& model;
  const BlockMemory& memory;
  Lanes lanes;
  int count;       // molecules of this block, at most call.molecules
  int n, quads;    // atoms of a molecule; features, by fours
  int n_torsions, n_springs;
  float per_spacing;  // 1/nm

  DIFFMD_DEVICE BlockSchNet(const ResidentBlocks& call, const BlockMemory& memory, const Lanes& lanes, int count)
      : call(call), model(call.run.model), memory(memory), lanes(lanes), count(count), n(int(model.n_atoms)),
        quads(int(model.n_features / 4)), n_torsions(int(model.n_torsions)), n_springs(int(model.n_springs)),
        per_spacing(float(double(model.n_coefficients - 3) / model.cutoff)) {}

  DIFFMD_DEVICE float* row(float* array, int at) const { return array + at * memory.stride; }
  DIFFMD_DEVICE float* block(float* array, int b) const { return array + b * memory.n_rows * memory.stride; }
  DIFFMD_DEVICE const float* square(const float* matrices, int b) const {
    return matrices + std::int64_t(b) * model.n_features * model.n_features;
  }

  // ---- layers ------------------------------------------------------------------------------------------------

  // finish(row, column, four): in . weights + bias (null: zero), by tiles; the sum over inputs has one order.
  template <typename Finish>
  DIFFMD_DEVICE auto product(const float* in, const float* weights, const float* bias, const Finish& finish) const {
    if constexpr (precision == Precision::fp32) return lane_product(in, weights, bias, finish);
    else return warp_product(in, weights, bias, finish);
  }
  DIFFMD_DEVICE auto tiles() const {
    if constexpr (precision == Precision::fp32) return memory.n_rows / kTileRows * quads;
    else return Warps{(memory.n_rows + kTensorTile - 1) / kTensorTile * (4 * quads / kTensorTile)};
  }

  template <typename Finish>
  DIFFMD_DEVICE auto lane_product(const float* in, const float* weights, const float* bias,
                                  const Finish& finish) const {
    return [this, in, weights, bias, finish](int tile) {
      const int column = 4 * (tile % quads), first = kTileRows * (tile / quads), size = 4 * quads;
      const float* from = in + first * memory.stride;
      Four sum[kTileRows];
      DIFFMD_UNROLL(4)
      for (int r = 0; r < kTileRows; ++r) sum[r] = bias ? weights4(bias + column) : Four{};
      for (int k = 0; k < size; k += 4) {
        Four a[kTileRows];
        DIFFMD_UNROLL(4)
        for (int r = 0; r < kTileRows; ++r) a[r] = load4(from + r * memory.stride + k);
        DIFFMD_UNROLL(4)
        for (int i = 0; i < 4; ++i) {
          const Four b = weights4(weights + (k + i) * size + column);
          DIFFMD_UNROLL(4)
          for (int r = 0; r < kTileRows; ++r) sum[r] = fused(a[r].v[i], b, sum[r]);
        }
      }
      DIFFMD_UNROLL(4)
      for (int r = 0; r < kTileRows; ++r) finish(first + r, column, sum[r]);
    };
  }

  // Rows of the last tile that the block does not have are computed from its last row, and dropped.
  template <typename Finish>
  DIFFMD_DEVICE auto warp_product(const float* in, const float* weights, const float* bias,
                                  const Finish& finish) const {
    return [this, in, weights, bias, finish](int tile) {
      const int size = 4 * quads, n_columns = size / kTensorTile, last = memory.n_rows - 1;
      const int column = kTensorTile * (tile % n_columns), first = kTensorTile * (tile / n_columns);
      const auto from = [&](int at, int k) { return load4(in + (at < last ? at : last) * memory.stride + k); };
      TensorTile<precision> sums{};
      if (bias)
        each_lane([&](int lane) {
          const Four b = weights4(bias + column + lane % 4 * 4);
          sums.sum[0][lane] = {{b.v[0], b.v[2], b.v[0], b.v[2]}};
          sums.sum[1][lane] = {{b.v[1], b.v[3], b.v[1], b.v[3]}};
        });
      for (int k = 0; k < size; k += kTensorTile) {
        OfLanes<Four> upper, lower;
        OfLanes<Two> of_weights[4];
        each_lane([&](int lane) {
          const int g = lane / 4, mine = k + lane % 4 * 4;
          upper[lane] = from(first + g, mine);
          lower[lane] = from(first + g + 8, mine);
          DIFFMD_UNROLL(4)
          for (int i = 0; i < 4; ++i) of_weights[i][lane] = weights2(weights + (mine + i) * size + column + 2 * g);
        });
        sums.add(upper, lower, of_weights);
      }
      each_lane([&](int lane) {
        DIFFMD_UNROLL(2)
        for (int half = 0; half < 2; ++half) {
          const int at = first + lane / 4 + 8 * half;
          if (at <= last) finish(at, column + lane % 4 * 4, sums.result(lane, half));
        }
      });
    };
  }
  // The ways to finish: into the rows of an array, and added to them.
  DIFFMD_DEVICE auto into(float* array) const {
    return [this, array](int at, int column, const Four& sum) { store4(row(array, at) + column, sum); };
  }
  DIFFMD_DEVICE auto onto(float* array) const {
    return [this, array](int at, int column, const Four& sum) {
      float* to = row(array, at) + column;
      store4(to, load4(to) + sum);
    };
  }

  // y = silu(x) and its slope.
  DIFFMD_DEVICE static void silu(const Four& x, Four* y, Four* slope) {
    DIFFMD_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const float s = 1.0f / (exp_of<float>(-x.v[i]) + 1.0f);
      y->v[i] = x.v[i] * s;
      slope->v[i] = s + y->v[i] * (1.0f - s);
    }
  }

  DIFFMD_DEVICE SplineWeights spline(float place, bool with_slope) const {
    SplineWeights w;
    const float last = float(model.n_coefficients - 4);
    w.interval = int(place < last ? place : last);
    const float t = place - float(w.interval), s = 1.0f - t, sixth = float(1.0 / 6.0);
    w.value[0] = s * s * s * sixth;
    w.value[1] = ((3.0f * t - 6.0f) * t * t + 4.0f) * sixth;
    w.value[2] = (((-3.0f * t + 3.0f) * t + 3.0f) * t + 1.0f) * sixth;
    w.value[3] = t * t * t * sixth;
    if (!with_slope) return w;
    const float half = 0.5f * per_spacing;
    w.slope[0] = -s * s * half;
    w.slope[1] = (3.0f * t - 4.0f) * t * half;
    w.slope[2] = ((-3.0f * t + 2.0f) * t + 1.0f) * half;
    w.slope[3] = t * t * half;
    return w;
  }

  DIFFMD_DEVICE static Four filter(const float (&weights)[4], const Four (&c)[4]) {
    return fused(weights[3], c[3], fused(weights[2], c[2], fused(weights[1], c[1], weights[0] * c[0])));
  }

  DIFFMD_DEVICE void coefficients_at(int b, int interval, int column, Four (&c)[4]) const {
    const std::int64_t at = (std::int64_t(b) * model.n_coefficients + interval) * model.n_features + column;
    DIFFMD_UNROLL(4)
    for (int k = 0; k < 4; ++k) c[k] = weights4(model.coefficients + at + k * model.n_features);
  }

  // m_i = sum_j p_j W(r_ij), four features of one row an item.
  DIFFMD_DEVICE void convolve(int b) const {
    const float* p = block(memory.p, b);
    lanes.phase(memory.n_rows * quads, [&](int item) {
      const int at = item / quads, column = 4 * (item % quads), first = at / n * n;
      Four sum{};
      for (int j = 0; at < count * n && j < n; ++j) {
        const Near near = memory.near[at * n + j];
        if (near.place < 0.0f) continue;
        const SplineWeights w = spline(near.place, false);
        Four c[4];
        coefficients_at(b, w.interval, column, c);
        sum = fused(filter(w.value, c), load4(p + (first + j) * memory.stride + column), sum);
      }
      store4(row(memory.m, at) + column, sum);
    });
  }

  // With g = dE/dm in m: dE/dp into u, and what the distances add to the gradient of the positions into along.
  DIFFMD_DEVICE void convolve_backward(int b) const {
    const float *p = block(memory.p, b), *g = memory.m;
    lanes.phase(memory.n_rows * quads, [&](int item) {
      const int at = item / quads, column = 4 * (item % quads), first = at / n * n;
      Four sum{};
      if (at < count * n) {
        const Four p_i = load4(p + at * memory.stride + column);
        const Four g_i = load4(g + at * memory.stride + column);
        const float* x_i = memory.x + 3 * at;
        float force[3] = {0.0f, 0.0f, 0.0f};
        for (int j = 0; j < n; ++j) {
          const Near near = memory.near[at * n + j];
          if (near.place < 0.0f) continue;
          const SplineWeights w = spline(near.place, true);
          Four c[4];
          coefficients_at(b, w.interval, column, c);
          const Four p_j = load4(p + (first + j) * memory.stride + column);
          const Four g_j = load4(g + (first + j) * memory.stride + column);
          sum = fused(filter(w.value, c), g_j, sum);
          const float slope = sum_of4(filter(w.slope, c) * fused(g_i, p_j, g_j * p_i)) * near.inverse;
          const float* x_j = memory.x + 3 * (first + j);
          for (int k = 0; k < 3; ++k) force[k] = fused(slope, x_i[k] - x_j[k], force[k]);
        }
        float* along = memory.along + 3 * item;
        const bool is_first = b + 1 == model.n_blocks;
        for (int k = 0; k < 3; ++k) along[k] = is_first ? force[k] : along[k] + force[k];
      }
      store4(row(memory.u, at) + column, sum);
    });
  }

  // ---- geometry ----------------------------------------------------------------------------------------------

  DIFFMD_DEVICE void near_of(int item) const {
    const int at = item / n, j = item % n;
    const float *a = memory.x + 3 * at, *b = memory.x + 3 * (at / n * n + j);
    const float d[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
    const float r = sqrtf(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    const bool within = at % n != j && r < float(model.cutoff);
    memory.near[item] = {within ? r * per_spacing : -1.0f, r > 0.0f ? 1.0f / r : 0.0f};
  }

  DIFFMD_DEVICE Vector<float> between(int molecule, std::int64_t from, std::int64_t to) const {
    const float *a = memory.x + 3 * (molecule * n + from), *b = memory.x + 3 * (molecule * n + to);
    return {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
  }

  DIFFMD_DEVICE Bonds<float> bonds_of(int molecule, int torsion) const {
    const std::int64_t* atom = model.quadruples + 4 * torsion;
    return {between(molecule, atom[0], atom[1]), between(molecule, atom[1], atom[2]),
            between(molecule, atom[2], atom[3])};
  }

  DIFFMD_DEVICE TorsionSeries<float> series_of_torsion(int item) const {
    const std::int64_t first = 2 * (item % n_torsions) * model.n_harmonics;
    return torsion_series(model.torsion_series + first, model.n_harmonics, memory.angles[2 * item],
                          memory.angles[2 * item + 1]);
  }

  DIFFMD_DEVICE void torsion_of(int item) const {
    const Bonds<float> bonds = bonds_of(item / n_torsions, item % n_torsions);
    const Angle<float> angle = angle_of<float>(bonds.b1, bonds.b2, bonds.b3);
    memory.angles[2 * item] = angle.sine;
    memory.angles[2 * item + 1] = angle.cosine;
    memory.torsion_energy[item] = series_of_torsion(item).energy;
  }

  DIFFMD_DEVICE void spring_of(int item) const {
    const int molecule = item / n_springs, s = item % n_springs;
    const float* x = memory.x + 3 * molecule * n;
    const float *a = x + 3 * model.spring_pairs[2 * s], *b = x + 3 * model.spring_pairs[2 * s + 1];
    const float d[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
    const float r = sqrtf(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]), stretch = r - model.spring_mean[s];
    memory.stiff_energy[item] = 0.5 * double(model.spring_stiffness[s]) * double(stretch) * double(stretch);
    const float pull = r > 0.0f ? model.spring_stiffness[s] * stretch / r : 0.0f;
    for (int k = 0; k < 3; ++k) memory.stiff_gradient[3 * item + k] = pull * d[k];
  }

  DIFFMD_DEVICE int n_bends() const { return int(model.n_bends); }
  DIFFMD_DEVICE double* bend_energy() const { return memory.stiff_energy + call.molecules * n_springs; }
  DIFFMD_DEVICE float* bend_gradient() const { return memory.stiff_gradient + 3 * call.molecules * n_springs; }

  DIFFMD_DEVICE void bend_at(int item) const {
    const int molecule = item / n_bends(), b = item % n_bends();
    const std::int64_t* atom = model.bend_triples + 3 * b;
    const Bend<float> bend = bend_of(between(molecule, atom[1], atom[0]), between(molecule, atom[1], atom[2]));
    const float bent = bend.cosine - model.bend_mean[b], slope = model.bend_stiffness[b] * bent;
    bend_energy()[item] = 0.5 * double(model.bend_stiffness[b]) * double(bent) * double(bent);
    float* out = bend_gradient() + 9 * item;
    put(out, slope * bend.by_a);
    put(out + 3, -slope * (bend.by_a + bend.by_c));
    put(out + 6, slope * bend.by_c);
  }
  DIFFMD_DEVICE static void put(float* out, const Vector<float>& v) {
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
  }

  DIFFMD_DEVICE void centre_of(int item) const {
    const int molecule = item / 3, k = item % 3;
    double mean = 0.0;
    for (int a = 0; a < n; ++a) mean += double(memory.x[3 * (molecule * n + a) + k]);
    memory.centre[item] = mean / double(n);
  }

  DIFFMD_DEVICE void geometry() const {
    lanes.phase(count * n * n, [&](int item) { near_of(item); },
                count * n_torsions, [&](int item) { torsion_of(item); },
                count * n_springs, [&](int item) { spring_of(item); },
                count * n_bends(), [&](int item) { bend_at(item); },
                model.centre_stiffness == 0.0 ? 0 : 3 * count, [&](int item) { centre_of(item); });
  }

  // ---- forward and backward ----------------------------------------------------------------------------------

  DIFFMD_DEVICE void embed() const {
    lanes.phase(memory.n_rows * quads, [&](int item) {
      const int at = item / quads, column = 4 * (item % quads), molecule = at / n, atom = at % n;
      Four h{};
      if (at < count * n) {
        h = weights4(model.embedding + atom * 4 * quads + column);
        const float* angles = memory.angles + 2 * molecule * n_torsions;
        for (int e = call.role_starts[atom]; e < call.role_starts[atom + 1]; ++e) {
          const int role = call.roles[e], torsion = role / 4;
          const float* weights = model.torsion_weights + std::int64_t(2 * role) * 4 * quads + column;
          h = fused(angles[2 * torsion], weights4(weights), h);
          h = fused(angles[2 * torsion + 1], weights4(weights + 4 * quads), h);
        }
      }
      store4(row(memory.h, at) + column, h);
    });
  }

  // Leaves the gradient of the readout's sums in u.
  DIFFMD_DEVICE void forward() const {
    embed();
    for (int b = 0; b < model.n_blocks; ++b) {
      float* slopes = block(memory.slope, b);
      lanes.phase(tiles(), product(memory.h, square(model.project, b), nullptr, into(block(memory.p, b))));
      convolve(b);
      lanes.phase(tiles(), product(memory.m, square(model.first, b), model.first_bias + b * 4 * quads,
                                     [&](int at, int column, const Four& sum) {
                                       Four y, slope;
                                       silu(sum, &y, &slope);
                                       store4(row(memory.u, at) + column, y);
                                       store4(row(slopes, at) + column, slope);
                                     }));
      lanes.phase(tiles(), product(memory.u, square(model.second, b), model.second_bias + b * 4 * quads,
                                     onto(memory.h)));
    }
    // The energies of four features of a row each stand in along until the row's are added up.
    const auto read_out = [&](int at, int column, const Four& sum) {
      Four y, slope;
      silu(sum, &y, &slope);
      const Four out = weights4(model.readout_out + column);
      if (at < count * n) memory.along[at * quads + column / 4] = sum_of4(y * out);
      store4(row(memory.u, at) + column, out * slope);
    };
    lanes.phase(tiles(), product(memory.h, model.readout, model.readout_bias, read_out));
  }

  // Leaves the gradient of the first features in h and that of the distances in along.
  DIFFMD_DEVICE void backward() const {
    lanes.phase(tiles(), product(memory.u, model.readout_transposed, nullptr, into(memory.h)),
                count * n, [&](int at) {
                  double energy = 0.0;
                  for (int q = 0; q < quads; ++q) energy += double(memory.along[at * quads + q]);
                  memory.row_energy[at] = energy;
                });
    for (int b = int(model.n_blocks) - 1; b >= 0; --b) {
      float* slopes = block(memory.slope, b);
      lanes.phase(tiles(), product(memory.h, square(model.second_transposed, b), nullptr,
                                     [&](int at, int column, const Four& sum) {
                                       store4(row(memory.u, at) + column, sum * load4(row(slopes, at) + column));
                                     }));
      lanes.phase(tiles(), product(memory.u, square(model.first_transposed, b), nullptr, into(memory.m)));
      convolve_backward(b);
      if (b > 0 || n_torsions > 0)  // the first embedding does not depend on the positions
        lanes.phase(tiles(), product(memory.u, square(model.project_transposed, b), nullptr, onto(memory.h)));
    }
  }

  DIFFMD_DEVICE void role_gradient_of(int item) const {
    const int molecule = item / (4 * n_torsions), role = item % (4 * n_torsions);
    const float* weights = model.torsion_weights + std::int64_t(2 * role) * 4 * quads;
    const float* h = row(memory.h, molecule * n + int(model.quadruples[role]));
    Four sine{}, cosine{};
    for (int column = 0; column < 4 * quads; column += 4) {
      const Four grad_h = load4(h + column);
      sine = fused(weights4(weights + column), grad_h, sine);
      cosine = fused(weights4(weights + 4 * quads + column), grad_h, cosine);
    }
    memory.role_gradient[2 * item] = sum_of4(sine);
    memory.role_gradient[2 * item + 1] = sum_of4(cosine);
  }

  DIFFMD_DEVICE void torsion_gradient_of(int item) const {
    const float* roles = memory.role_gradient + 8 * item;
    const TorsionSeries<float> series = series_of_torsion(item);
    const float sine = (roles[0] + roles[2]) + (roles[4] + roles[6]) + series.by_sine;
    const float cosine = (roles[1] + roles[3]) + (roles[5] + roles[7]) + series.by_cosine;
    const Bonds<float> bonds = bonds_of(item / n_torsions, item % n_torsions);
    const Bonds<float> g = gradient_of(angle_of<float>(bonds.b1, bonds.b2, bonds.b3), bonds, sine, cosine);
    float* out = memory.torsion_gradient + 12 * item;
    const float parts[3][3] = {{g.b1.x, g.b1.y, g.b1.z}, {g.b2.x, g.b2.y, g.b2.z}, {g.b3.x, g.b3.y, g.b3.z}};
    DIFFMD_UNROLL(3)
    for (int k = 0; k < 3; ++k) {
      out[k] = -parts[0][k];
      out[3 + k] = parts[0][k] - parts[1][k];
      out[6 + k] = parts[1][k] - parts[2][k];
      out[9 + k] = parts[2][k];
    }
  }

  DIFFMD_DEVICE void energy_of(int molecule) const {
    double energy = 0.0;
    for (int s = 0; s < n_springs; ++s) energy += memory.stiff_energy[molecule * n_springs + s];
    for (int b = 0; b < n_bends(); ++b) energy += bend_energy()[molecule * n_bends() + b];
    for (int t = 0; t < n_torsions; ++t) energy += double(memory.torsion_energy[molecule * n_torsions + t]);
    for (int i = 0; model.centre_stiffness != 0.0 && i < 3 * n; ++i) {
      const double d = double(memory.x[3 * molecule * n + i]) - memory.centre[3 * molecule + i % 3];
      energy += 0.5 * model.centre_stiffness * d * d;
    }
    for (int a = 0; a < n; ++a) energy += memory.row_energy[molecule * n + a];
    memory.energy[molecule] = float(energy);
  }

  // One component of the score: what springs, bends, centre, torsions and distances have for this atom.
  DIFFMD_DEVICE void score_of(int item) const {
    const int at = item / 3, k = item % 3, molecule = at / n, atom = at % n;
    float gradient = 0.0f;
    for (int e = call.spring_starts[atom]; e < call.spring_starts[atom + 1]; ++e) {
      const int end = call.spring_ends[e];
      const float part = memory.stiff_gradient[3 * (molecule * n_springs + end / 2) + k];
      gradient += end % 2 ? -part : part;
    }
    for (int e = call.bend_starts[atom]; e < call.bend_starts[atom + 1]; ++e)
      gradient += bend_gradient()[3 * (3 * molecule * n_bends() + call.bend_atoms[e]) + k];
    if (model.centre_stiffness != 0.0)
      gradient += float(model.centre_stiffness * (double(memory.x[item]) - memory.centre[3 * molecule + k]));
    for (int e = call.role_starts[atom]; e < call.role_starts[atom + 1]; ++e)
      gradient += memory.torsion_gradient[3 * (4 * molecule * n_torsions + call.roles[e]) + k];
    for (int q = 0; model.n_blocks > 0 && q < quads; ++q) gradient += memory.along[3 * (at * quads + q) + k];
    memory.score[item] = -gradient;
  }

  // Energy (where wanted) and score of the positions in x, which are finite.
  DIFFMD_DEVICE void evaluate(bool with_energy) const {
    geometry();
    forward();
    backward();
    if (n_torsions > 0) {
      lanes.phase(4 * count * n_torsions, [&](int item) { role_gradient_of(item); });
      lanes.phase(count * n_torsions, [&](int item) { torsion_gradient_of(item); });
    }
    lanes.phase(3 * count * n, [&](int item) { score_of(item); },
                with_energy ? count : 0, [&](int molecule) { energy_of(molecule); });
  }
};

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
