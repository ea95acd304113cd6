// Energy and score of a SchNet at one noise level: forward and backward of the whole molecule in one call.
// The twin of SchNet.forward in python/diffmd_fast/models/schnet.py, whose FoldedSchNet prepares the weights.
//
//   h_i = embedding_i + sum over torsions, roles of i: sin * w_sin + cos * w_cos
//   per block: p = h project, m_i = sum_{j != i} p_j * W(r_ij), h += second(silu(first(m)))
//   E = sum_i readout_out . silu(readout(h_i)) + sum over torsions, n: a_n sin(n phi) + b_n cos(n phi)
//       + 1/2 sum_springs k (r - r0)^2 + 1/2 sum_bends k (cos - cos0)^2 + 1/2 k_c sum_i |x_i - mean x|^2
//
// The result of a replica depends on that replica alone, to the last bit: not on the batch, its place there, or the
// number of threads. A replica with a position that is not finite gives NaN.
#pragma once
#include "levels.hpp"

namespace diffmd {

constexpr int kFeatureMultiple = 16;  // n_features is padded with zeros to a multiple of this

template <typename T> struct SchNet {
  std::int64_t n_replicas, n_atoms;  // n_atoms at least 1
  std::int64_t n_features;           // F, a multiple of kFeatureMultiple
  std::int64_t n_blocks;             // B
  std::int64_t n_coefficients;       // K = intervals + 3 of a spline, at least 4
  std::int64_t n_torsions, n_springs, n_bends;
  std::int64_t n_harmonics;          // of every torsion's series; 0 for none
  double cutoff;                     // nm, above 0
  double centre_stiffness;           // 1/nm^2; 0 for none
  const std::int64_t* quadruples;    // [n_torsions, 4] atoms in range
  const std::int64_t* spring_pairs;  // [n_springs, 2] atoms in range
  const std::int64_t* bend_triples;  // [n_bends, 3] atoms in range: end, centre, end
  // Matrices are [in, out], their transposes [out, in].
  const T* embedding;                // [n_atoms, F]
  const T* torsion_weights;          // [n_torsions, 4 roles, (sin, cos), F]
  const T* torsion_series;           // [n_torsions, n_harmonics, (sin, cos)] kT0
  const T *project, *project_transposed;  // [B, F, F]
  const T* coefficients;             // [B, K, F]
  const T *first, *first_transposed, *first_bias;     // [B, F, F] twice, [B, F]
  const T *second, *second_transposed, *second_bias;  // [B, F, F] twice, [B, F]
  const T *readout, *readout_transposed;              // [F, F]
  const T *readout_bias, *readout_out;                // [F]
  const T *spring_stiffness, *spring_mean;            // [n_springs] 1/nm^2, nm
  const T *bend_stiffness, *bend_mean;                // [n_bends] kT0 and 1, of the cosine
  const T* positions;                // [n_replicas, n_atoms, 3] nm
  T* energy;                         // [n_replicas] out, kT0
  T* score;                          // [n_replicas, n_atoms, 3] out, 1/nm; null: only the energy
  int n_threads;
};

}  // namespace diffmd

// schnet: *enough_memory turns false, and nothing is written, when scratch memory cannot be had.
// The other three serve a caller that goes over a block of replicas again and again (csrc/resident_sampler.cpp): how
// many replicas are worth a block, the bytes of scratch memory (aligned to 64) for a block of n_replicas, and energy
// and score of replicas first .. first + count - 1 of `call`, which uses neither call.n_replicas nor call.n_threads.
DIFFMD_DECLARE(template <typename T> void schnet(const SchNet<T>& call, bool* enough_memory);
               template <typename T> std::int64_t schnet_block_size(const SchNet<T>& call);
               template <typename T> std::size_t schnet_scratch(const SchNet<T>& call, std::int64_t n_replicas);
               template <typename T> void schnet_block(const SchNet<T>& call, std::int64_t first, std::int64_t count,
                                                       char* scratch))
