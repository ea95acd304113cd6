// What integrators do besides em_step (csrc/em_step.hpp), from which they have their noise: accept or reject a step
// (Metropolis), and half steps with velocities (BAOAB; Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34).
// One thread; csrc/resident_sampler.cpp and python/diffmd_fast/sampling/integrators.py call the same functions, so a
// run is the same to the bit either way.
#pragma once
#include "levels.hpp"

namespace diffmd {

// docs/theory.md, section 3: log a = -(E(y) - E(x))/v - (|x - m(y)|^2 - |y - m(x)|^2) / (4 D dt v), m(x) = x + D dt s(x).
template <typename T> struct Metropolis {
  std::int64_t n_replicas, n_atoms;
  const T *before, *score_before;  // [n_replicas, n_atoms, 3] x nm, s(x) 1/nm
  const T* energy_before;          // [n_replicas] kT0
  T *positions, *score;            // y, s(y) in; those of x where y is rejected out
  T* energy;                       // [n_replicas] likewise
  const double* diffusion_time;    // [1] or [n_atoms]: D dt, nm^2
  bool diffusion_per_atom;
  double variance;                 // v = T/T0
  std::uint64_t seed;
  std::uint32_t first_replica;
  std::uint64_t step;
  std::int64_t* accepted;          // [n_replicas] in and out: raised by one where y is accepted
};

// move: v += kick s; x += dt/2 v; v = decay v + amplitude xi; x += dt/2 v.  kick, with s at the new x: v += kick s.
template <typename T> struct LangevinHalves {
  std::int64_t n_replicas, n_atoms;
  T *positions, *velocities;       // [n_replicas, n_atoms, 3] nm, nm/ps; in and out (positions: move only)
  const T *score, *noise;          // [n_replicas, n_atoms, 3] 1/nm, standard normal (move only)
  double half_step;                // dt/2, ps
  const double *kick, *decay;      // [n_atoms] dt/2 kT0/m in nm^2/ps; exp(-friction dt)
  const double* amplitude;         // [n_atoms] sqrt((1 - decay^2) kT0/m), nm/ps; times sqrt(variance)
  double variance;                 // T/T0
};

}  // namespace diffmd

DIFFMD_DECLARE(template <typename T> void metropolis(const Metropolis<T>& call);
               template <typename T> void langevin_move(const LangevinHalves<T>& call);
               template <typename T> void langevin_kick(const LangevinHalves<T>& call))
