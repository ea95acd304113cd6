#include "em_step.hpp"

#include "philox.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

// kLanes consecutive sites (a site is an atom of a replica) from `first`; the last block may be partial.
template <typename T> void step_block(const EmStep<T>& call, const PhiloxKey& key, std::int64_t first) {
  const std::int64_t n_sites = call.n_replicas * call.n_atoms;
  const int n = int(n_sites - first < kLanes ? n_sites - first : kLanes);
  std::uint32_t atom[kLanes], replica[kLanes];
  std::int64_t r = first / call.n_atoms, a = first % call.n_atoms;
  T drift[kLanes], amplitude[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    atom[lane] = std::uint32_t(a);
    replica[lane] = call.first_replica + std::uint32_t(r);
    const bool inside = lane < n;
    const double d = call.diffusion_time[inside && call.diffusion_per_atom ? a : 0];
    const double v = call.variance[inside && call.variance_per_replica ? r : 0];
    drift[lane] = T(d);
    amplitude[lane] = T(std::sqrt(2.0 * d * v));
    if (++a == call.n_atoms) {
      a = 0;
      ++r;
    }
  }
  T noise[3][kLanes];
  philox_normals<T>(key, atom, replica, noise);
  for (int lane = 0; lane < n; ++lane) {
    for (int c = 0; c < 3; ++c) {
      const std::int64_t at = 3 * (first + lane) + c;
      call.new_positions[at] = call.positions[at] + (drift[lane] * call.score[at] + amplitude[lane] * noise[c][lane]);
      if (call.noise) call.noise[at] = noise[c][lane];
    }
  }
}

// log p(x'|x) = -1/2 sum xi^2 - 3/2 sum_atoms log(2 pi 2 D dt v), from the noise of the step itself.
template <typename T> void log_density_of(const EmStep<T>& call, std::int64_t r) {
  const double v = call.variance[call.variance_per_replica ? r : 0];
  double sum = 0.0;
  for (std::int64_t a = 0; a < call.n_atoms; ++a) {
    const double d = call.diffusion_time[call.diffusion_per_atom ? a : 0];
    sum -= 1.5 * std::log(12.566370614359172954 * d * v);
    const T* xi = call.noise + 3 * (r * call.n_atoms + a);
    for (int c = 0; c < 3; ++c) sum -= 0.5 * double(xi[c]) * double(xi[c]);
  }
  call.log_density[r] = T(sum);
}

}  // namespace

template <typename T> void em_step(const EmStep<T>& call) {
  const std::int64_t n_sites = call.n_replicas * call.n_atoms;
  const PhiloxKey key = philox_key(call.seed, call.step, call.domain);
#pragma omp parallel for schedule(static) num_threads(call.n_threads) if (call.n_threads > 1 && n_sites > 8192)
  for (std::int64_t first = 0; first < n_sites; first += kLanes) step_block(call, key, first);
  if (call.log_density == nullptr) return;
  for (std::int64_t r = 0; r < call.n_replicas; ++r) log_density_of(call, r);
}

template void em_step<float>(const EmStep<float>&);
template void em_step<double>(const EmStep<double>&);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
