// The formulas of csrc/integrators.hpp for one site, shared by csrc/integrators.cpp and kernels/cuda/block_sampler.hpp.
// Files that include this one are compiled without fused multiply-adds, so all give the same bits.
#pragma once
#include <math.h>

#include "philox.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr std::uint32_t kMetropolisDomain = 2;  // of the noise: python/diffmd_fast/sampling/integrators.py

// A uniform number above 0, at most 1, of a replica and a step.
DIFFMD_INLINE double acceptance_draw(std::uint64_t seed, std::uint64_t step, std::uint32_t replica) {
  std::uint32_t words[4];
  philox_words(philox_key(seed, step, kMetropolisDomain), 0, replica, words);
  return double((words[0] >> 8) + 1) * 0x1p-24;
}

// |x - m(y)|^2 - |y - m(x)|^2 of an atom with x, s(x), y, s(y) and D dt.
template <typename T>
DIFFMD_INLINE double back_and_forth(const T* before, const T* score_before, const T* after, const T* score,
                                    double diffusion_time) {
  double sum = 0.0;
  for (int k = 0; k < 3; ++k) {
    const double move = double(after[k]) - double(before[k]);
    const double back = -move - diffusion_time * double(score[k]);
    const double forth = move - diffusion_time * double(score_before[k]);
    sum += back * back - forth * forth;
  }
  return sum;
}

// Is y taken? `paths`: the sum over atoms of back_and_forth / (4 D dt v). No where anything is NaN.
DIFFMD_INLINE bool accepts(double draw, double energy_before, double energy, double variance, double paths) {
  return log(draw) <= -(energy - energy_before) / variance - paths;
}

// Constants of an atom: those of LangevinHalves.
template <typename T> struct LangevinSite {
  T half_step, kick, decay, amplitude;
};

// One coordinate from one evaluation to the next, up to the last kick.
template <typename T>
DIFFMD_INLINE void langevin_move_of(const LangevinSite<T>& site, T score, T noise, T* position, T* velocity) {
  T v = *velocity + site.kick * score;
  const T x = *position + site.half_step * v;
  v = site.decay * v + site.amplitude * noise;
  *position = x + site.half_step * v;
  *velocity = v;
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
