// One spring-tied denoising step, which is one Euler-Maruyama step (docs/theory.md, section 1).
#pragma once
#include "levels.hpp"

namespace diffmd {

template <typename T> struct EmStep {
  std::int64_t n_replicas, n_atoms;
  const T* positions;           // [n_replicas, n_atoms, 3] nm
  const T* score;               // [n_replicas, n_atoms, 3] 1/nm
  const double* diffusion_time; // [1] or [n_atoms]: D * time step, nm^2
  const double* variance;       // [1] or [n_replicas]: variance multiplier, T/T0
  bool diffusion_per_atom, variance_per_replica;
  std::uint64_t seed;
  std::uint32_t first_replica;  // number of the first replica of this batch: replica r draws the noise of
                                // replica first_replica + r
  std::uint64_t step;           // below 2^56
  std::uint32_t domain;         // separate streams of one seed; 0 for the sampler's steps
  T* new_positions;             // [n_replicas, n_atoms, 3] out; may be `positions` itself
  T* noise;                     // [n_replicas, n_atoms, 3] out, or null when nobody asked
  T* log_density;               // [n_replicas] out, or null; needs `noise`
  int n_threads;
};

}  // namespace diffmd

DIFFMD_DECLARE(template <typename T> void em_step(const EmStep<T>& call))
