#include "integrators.hpp"

#include <math.h>
#include <string.h>

#include "philox.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

constexpr std::uint32_t kMetropolisDomain = 2;  // of the noise: python/diffmd_fast/sampling/integrators.py

// Above 0, at most 1.
double uniform(const PhiloxKey& key, std::uint32_t replica) {
  std::uint32_t words[4];
  philox_words(key, 0, replica, words);
  return double((words[0] >> 8) + 1) * 0x1p-24;
}

// log of acceptance of replica r; NaN where anything of the proposal is.
template <typename T> double log_acceptance(const Metropolis<T>& call, std::int64_t r) {
  const std::int64_t first = 3 * r * call.n_atoms;
  double back_and_forth = 0.0;
  for (std::int64_t a = 0; a < call.n_atoms; ++a) {
    const double d = call.diffusion_time[call.diffusion_per_atom ? a : 0];
    double sum = 0.0;
    for (std::int64_t i = first + 3 * a; i < first + 3 * a + 3; ++i) {
      const double move = double(call.positions[i]) - double(call.before[i]);
      const double back = -move - d * double(call.score[i]), forth = move - d * double(call.score_before[i]);
      sum += back * back - forth * forth;
    }
    back_and_forth += sum / (4.0 * d * call.variance);
  }
  return -(double(call.energy[r]) - double(call.energy_before[r])) / call.variance - back_and_forth;
}

}  // namespace

template <typename T> void metropolis(const Metropolis<T>& call) {
  const PhiloxKey key = philox_key(call.seed, call.step, kMetropolisDomain);
  const std::size_t width = 3 * std::size_t(call.n_atoms);
  for (std::int64_t r = 0; r < call.n_replicas; ++r) {
    if (log(uniform(key, call.first_replica + std::uint32_t(r))) <= log_acceptance(call, r)) {
      ++call.accepted[r];
      continue;
    }
    memcpy(call.positions + r * width, call.before + r * width, width * sizeof(T));
    memcpy(call.score + r * width, call.score_before + r * width, width * sizeof(T));
    call.energy[r] = call.energy_before[r];
  }
}

template <typename T> void langevin_move(const LangevinHalves<T>& call) {
  const T half = T(call.half_step);
  for (std::int64_t r = 0; r < call.n_replicas; ++r)
    for (std::int64_t a = 0; a < call.n_atoms; ++a) {
      const T kick = T(call.kick[a]), decay = T(call.decay[a]);
      const T amplitude = T(call.amplitude[a] * sqrt(call.variance));
      const std::int64_t first = 3 * (r * call.n_atoms + a);
      for (std::int64_t i = first; i < first + 3; ++i) {
        T v = call.velocities[i] + kick * call.score[i];
        const T x = call.positions[i] + half * v;
        v = decay * v + amplitude * call.noise[i];
        call.positions[i] = x + half * v;
        call.velocities[i] = v;
      }
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
