#include "integrators.hpp"

#include <string.h>

#include "integrator_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

template <typename T> bool accepted(const Metropolis<T>& call, std::int64_t r) {
  double paths = 0.0;
  for (std::int64_t a = 0; a < call.n_atoms; ++a) {
    const double d = call.diffusion_time[call.diffusion_per_atom ? a : 0];
    const std::int64_t at = 3 * (r * call.n_atoms + a);
    paths += back_and_forth(call.before + at, call.score_before + at, call.positions + at, call.score + at, d) /
             (4.0 * d * call.variance);
  }
  const double draw = acceptance_draw(call.seed, call.step, call.first_replica + std::uint32_t(r));
  return accepts(draw, double(call.energy_before[r]), double(call.energy[r]), call.variance, paths);
}

}  // namespace

template <typename T> void metropolis(const Metropolis<T>& call) {
  const std::size_t width = 3 * std::size_t(call.n_atoms);
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    if (accepted(call, r)) {
      ++call.accepted[r];
      continue;
    }
    memcpy(call.positions + r * width, call.before + r * width, width * sizeof(T));
    memcpy(call.score + r * width, call.score_before + r * width, width * sizeof(T));
    call.energy[r] = call.energy_before[r];
  }
}

template <typename T> void langevin_move(const LangevinHalves<T>& call) {
  for (std::int64_t r = 0; r < call.n_replicas; ++r)
    for (std::int64_t a = 0; a < call.n_atoms; ++a) {
      const LangevinSite<T> site{T(call.half_step), T(call.kick[a]), T(call.decay[a]),
                                 T(call.amplitude[a] * sqrt(call.variance))};
      const std::int64_t first = 3 * (r * call.n_atoms + a);
      for (std::int64_t i = first; i < first + 3; ++i)
        langevin_move_of(site, call.score[i], call.noise[i], call.positions + i, call.velocities + i);
    }
}

template <typename T> void langevin_kick(const LangevinHalves<T>& call) {
  for (std::int64_t r = 0; r < call.n_replicas; ++r)
    for (std::int64_t a = 0; a < call.n_atoms; ++a) {
      const T kick = T(call.kick[a]);
      const std::int64_t first = 3 * (r * call.n_atoms + a);
      for (std::int64_t i = first; i < first + 3; ++i) call.velocities[i] += kick * call.score[i];
    }
}

#define DIFFMD_INSTANTIATE(T)                             \
  template void metropolis<T>(const Metropolis<T>&);      \
  template void langevin_move<T>(const LangevinHalves<T>&); \
  template void langevin_kick<T>(const LangevinHalves<T>&);
DIFFMD_INSTANTIATE(float)
DIFFMD_INSTANTIATE(double)

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
