// Many spring-tied denoising steps of a SchNet in one call: each block of replicas stays in the cache of one core for
// the whole of it. A step is em_step (csrc/em_step.hpp), what the integrator adds to it (csrc/integrators.hpp), and an
// evaluation (csrc/schnet.hpp), by the very functions that the step-by-step loop of
// python/diffmd_fast/sampling/loop.py calls, so both give the same bits.
//
// Energy and score belong to the positions at every step boundary: on entry to those given, on return to those left.
//   per step: positions move; a replica that is no longer finite is lost; energy, score; accepted, or velocities kicked
//   at a due step (every check_every-th, every save_every-th, and last_step): a replica outside the support is lost
//   at every save_every-th step: one frame
// A lost replica goes back to where it was at the last due step and stays there; the others do not notice.
#pragma once
#include "schnet.hpp"

namespace diffmd {

enum ResidentLoss : std::uint8_t { kAlive = 0, kPositionsNotFinite = 1, kScoreNotFinite = 2, kOutside = 3, kLostBefore = 4 };

// What moves the positions: python/diffmd_fast/sampling/integrators.py says what each does.
enum class Rule { euler_maruyama = 0, leimkuhler_matthews = 1, heun = 2, metropolis = 3, baoab = 4 };

template <typename T> struct ResidentSampler {
  SchNet<T> model;              // n_replicas, n_threads, and the run's positions, energy and score, all three written
  const double* diffusion_time; // [1] or [n_atoms]: D * time step, nm^2
  bool diffusion_per_atom;
  const double* variance;       // [end_step - first_step] T/T0 of each step
  Rule rule;
  // Memory of the integrator, null where it has no use for it: [n_replicas, n_atoms, 3] twice, [n_replicas]; zeros
  // [n_replicas, n_atoms, 3] that nobody writes to; velocities nm/ps in and out, with constants [n_atoms] as
  // LangevinHalves has them; accepted [n_replicas] in and out.
  T *other_positions, *other_score, *other_energy;
  const T* zeros;
  T* velocities;
  double half_step;
  const double *kick, *decay, *amplitude;
  std::int64_t* accepted;
  std::uint64_t seed;
  std::uint32_t first_replica;  // number of replica 0 in the noise
  std::int64_t first_step, end_step, last_step;  // runs from first_step to end_step <= last_step, the end of the run
  std::int64_t check_every, save_every;          // steps, at least 1
  // The support: distances of pairs within [lowest, highest] nm, energy up to energy_limit kT0.
  std::int64_t n_pairs;
  const std::int64_t* pairs;    // [n_pairs, 2] atoms in range
  const double *lowest, *highest;  // [n_pairs]
  double energy_limit;          // infinity: none
  T* good;                      // [n_replicas, n_atoms, 3] positions at the last due step, in and out
  std::uint8_t* loss;           // [n_replicas] ResidentLoss, in (kAlive or kLostBefore) and out
  std::int64_t* lost_step;      // [n_replicas] out, of those lost in this call
  T* lost_positions;            // [n_replicas, n_atoms, 3] out, where those were when they were lost
  T* frames;                    // [n_frames, n_replicas, n_atoms, 3] out: the multiples of save_every in
                                // first_step + 1 .. end_step
  T* frame_energies;            // [n_frames, n_replicas] out
  T* frame_velocities;          // [n_frames, n_replicas, n_atoms, 3] out; null without velocities
};

}  // namespace diffmd

// *enough_memory turns false, and nothing is written, when scratch memory cannot be had.
DIFFMD_DECLARE(template <typename T> void resident_sampler(const ResidentSampler<T>& call, bool* enough_memory))
