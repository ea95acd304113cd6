#include "resident_sampler.hpp"

#include <math.h>
#include <string.h>

#include "em_step.hpp"
#include "scratch.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

namespace {

template <typename T> bool finite(const T* values, std::int64_t n) {
  T zero = T(0);
  for (std::int64_t i = 0; i < n; ++i) zero += values[i] * T(0);
  return zero == T(0);
}

// Replicas first .. first + count - 1, which one thread takes through the whole call.
template <typename T> struct Residents {
  const ResidentSampler<T>& call;
  T* positions;
  std::int64_t first, count, n_alive;

  Residents(const ResidentSampler<T>& call, std::int64_t first, std::int64_t count)
      : call(call), positions(const_cast<T*>(call.model.positions)),  // const to the evaluation, ours to move
        first(first), count(count), n_alive(0) {
    for (std::int64_t r = first; r < first + count; ++r) n_alive += call.loss[r] == kAlive;
  }

  std::int64_t width() const { return 3 * call.model.n_atoms; }
  std::size_t bytes() const { return std::size_t(width()) * sizeof(T); }

  void lose(std::int64_t r, std::int64_t step, ResidentLoss why) {
    T* x = positions + r * width();
    memcpy(call.lost_positions + r * width(), x, bytes());
    memcpy(x, call.good + r * width(), bytes());
    call.loss[r] = why;
    call.lost_step[r] = step;
    --n_alive;
  }

  // Those alive, in runs of neighbours: lost ones stand still.
  void move(std::int64_t step) {
    const std::int64_t end = first + count;
    for (std::int64_t from = first; from < end;) {
      std::int64_t to = from;
      while (to < end && call.loss[to] == kAlive) ++to;
      if (to > from) {
        T* x = positions + from * width();
        em_step<T>({to - from, call.model.n_atoms, x, call.model.score + from * width(), call.diffusion_time,
                    &call.variance, call.diffusion_per_atom, false, call.seed,
                    call.first_replica + std::uint32_t(from), std::uint64_t(step), 0, x, nullptr, nullptr, 1});
      }
      from = to + 1;
    }
  }

  void lose_not_finite(std::int64_t step) {
    for (std::int64_t r = first; r < first + count; ++r) {
      if (call.loss[r] != kAlive || finite(positions + r * width(), width())) continue;
      lose(r, step, finite(call.model.score + r * width(), width()) ? kPositionsNotFinite : kScoreNotFinite);
    }
  }

  bool inside(std::int64_t r) const {
    const double energy = double(call.model.energy[r]);
    if (!(energy <= call.energy_limit) || !(energy - energy == 0.0)) return false;
    const T* x = positions + r * width();
    for (std::int64_t p = 0; p < call.n_pairs; ++p) {
      const T *a = x + 3 * call.pairs[2 * p], *b = x + 3 * call.pairs[2 * p + 1];
      const double d[3] = {double(a[0] - b[0]), double(a[1] - b[1]), double(a[2] - b[2])};
      const double distance = sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
      if (!(distance >= call.lowest[p] && distance <= call.highest[p])) return false;
    }
    return true;
  }

  void check(std::int64_t step) {
    for (std::int64_t r = first; r < first + count; ++r) {
      if (call.loss[r] != kAlive) continue;
      if (inside(r)) memcpy(call.good + r * width(), positions + r * width(), bytes());
      else lose(r, step, kOutside);
    }
  }

  void save(std::int64_t frame) {
    const std::int64_t to = frame * call.model.n_replicas + first;
    memcpy(call.frames + to * width(), positions + first * width(), bytes() * std::size_t(count));
    memcpy(call.frame_energies + to, call.model.energy + first, std::size_t(count) * sizeof(T));
  }

  void run(char* scratch) {
    const std::int64_t frames_before = call.first_step / call.save_every;
    for (std::int64_t step = call.first_step + 1; step <= call.end_step; ++step) {
      const bool saves = step % call.save_every == 0;
      if (n_alive > 0) {
        move(step - 1);
        lose_not_finite(step);
        if (n_alive > 0) schnet_block(call.model, first, count, scratch);
        if (saves || step % call.check_every == 0 || step == call.last_step) check(step);
      }
      if (saves) save(step / call.save_every - 1 - frames_before);
    }
  }
};

}  // namespace

// Every thread has the same share of the replicas, cut into blocks of full size and one rest; full blocks come first,
// so that whoever is done early finds work.
template <typename T> void resident_sampler(const ResidentSampler<T>& call, bool* enough_memory) {
  const std::int64_t n = call.model.n_replicas;
  if (n <= 0 || call.end_step <= call.first_step) return;
  const std::int64_t n_shares = n < call.model.n_threads ? n : call.model.n_threads;
  const std::int64_t largest = (n + n_shares - 1) / n_shares, fits = schnet_block_size(call.model);
  const std::int64_t size = fits < largest ? fits : largest, per_share = (largest + size - 1) / size;
  Scratch scratch(schnet_scratch(call.model, size), int(n_shares));
  *enough_memory = scratch.memory != nullptr;
  if (scratch.memory == nullptr) return;
#pragma omp parallel num_threads(int(n_shares)) if (n_shares > 1)
  {
    char* mine = scratch.of_this_thread();
#pragma omp for schedule(dynamic)
    for (std::int64_t b = 0; b < n_shares * per_share; ++b) {
      const std::int64_t share = b % n_shares, begin = n * share / n_shares, end = n * (share + 1) / n_shares;
      const std::int64_t first = begin + b / n_shares * size, left = end - first;
      if (left > 0) Residents<T>(call, first, left < size ? left : size).run(mine);
    }
  }
}

template void resident_sampler<float>(const ResidentSampler<float>&, bool*);
template void resident_sampler<double>(const ResidentSampler<double>&, bool*);

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
