#include "resident_sampler.hpp"

#include <math.h>
#include <string.h>

#include "em_step.hpp"
#include "integrators.hpp"
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
    if (call.velocities) memset(call.velocities + r * width(), 0, bytes());
    call.loss[r] = why;
    call.lost_step[r] = step;
    --n_alive;
  }

  // Calls part(first, count) for those alive, in runs of neighbours: lost ones stand still.
  template <typename Part> void each_run(Part part) {
    const std::int64_t end = first + count;
    for (std::int64_t from = first; from < end;) {
      std::int64_t to = from;
      while (to < end && call.loss[to] == kAlive) ++to;
      if (to > from) part(from, to - from);
      from = to + 1;
    }
  }

  // to = from + D dt score + noise of `step`, all [n_replicas, n_atoms, 3].
  void step_to(T* to, const T* from, const T* score, const double* variance, std::int64_t step) {
    each_run([&](std::int64_t r, std::int64_t n) {
      const std::int64_t at = r * width();
      em_step<T>({n, call.model.n_atoms, from + at, score + at, call.diffusion_time, variance, call.diffusion_per_atom,
                  false, call.seed, call.first_replica + std::uint32_t(r), std::uint64_t(step), 0, to + at, nullptr,
                  nullptr, 1});
    });
  }

  void copy(T* to, const T* from) { memcpy(to + first * width(), from + first * width(), bytes() * std::size_t(count)); }

  // From the positions of `step` to those of the next, with the variance multiplier of this step.
  void move(std::int64_t step, const double* variance, char* scratch) {
    const T* score = call.model.score;
    switch (call.rule) {
      case Rule::euler_maruyama: step_to(positions, positions, score, variance, step); break;
      case Rule::leimkuhler_matthews: {  // half the amplitude, twice
        const double quarter = 0.25 * *variance;
        step_to(positions, positions, score, &quarter, step);
        step_to(positions, positions, call.zeros, &quarter, step + 1);
        break;
      }
      case Rule::heun: {
        copy(call.other_positions, positions);
        step_to(call.other_positions, positions, score, variance, step);
        SchNet<T> there = call.model;
        there.positions = call.other_positions;
        there.energy = call.other_energy;
        there.score = call.other_score;
        schnet_block(there, first, count, scratch);
        for (std::int64_t i = first * width(); i < (first + count) * width(); ++i)
          call.other_score[i] = (score[i] + call.other_score[i]) * T(0.5);
        step_to(positions, positions, call.other_score, variance, step);
        break;
      }
      case Rule::metropolis:
        copy(call.other_positions, positions);
        copy(call.other_score, score);
        memcpy(call.other_energy + first, call.model.energy + first, std::size_t(count) * sizeof(T));
        step_to(positions, positions, score, variance, step);
        break;
      case Rule::baoab: {
        const double half = 0.5, one = 1.0;
        each_run([&](std::int64_t r, std::int64_t n) {
          const std::int64_t at = r * width();
          em_step<T>({n, call.model.n_atoms, call.zeros + at, call.zeros + at, &half, &one, false, false, call.seed,
                      call.first_replica + std::uint32_t(r), std::uint64_t(step), 0, call.other_positions + at, nullptr,
                      nullptr, 1});
          langevin_move(halves(r, n, *variance));
        });
        break;
      }
    }
  }

  LangevinHalves<T> halves(std::int64_t r, std::int64_t n, double variance) {
    const std::int64_t at = r * width();
    return {n, call.model.n_atoms, positions + at, call.velocities + at, call.model.score + at,
            call.other_positions + at, call.half_step, call.kick, call.decay, call.amplitude, variance};
  }

  // After the evaluation at the new positions.
  void finish(std::int64_t step, const double* variance) {
    if (call.rule == Rule::metropolis) {
      each_run([&](std::int64_t r, std::int64_t n) {
        const std::int64_t at = r * width();
        metropolis<T>({n, call.model.n_atoms, call.other_positions + at, call.other_score + at, call.other_energy + r,
                       positions + at, call.model.score + at, call.model.energy + r, call.diffusion_time,
                       call.diffusion_per_atom, *variance, call.seed, call.first_replica + std::uint32_t(r),
                       std::uint64_t(step), call.accepted + r});
      });
    } else if (call.rule == Rule::baoab) {
      each_run([&](std::int64_t r, std::int64_t n) { langevin_kick(halves(r, n, *variance)); });
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
    if (!call.frame_velocities) return;
    memcpy(call.frame_velocities + to * width(), call.velocities + first * width(), bytes() * std::size_t(count));
  }

  void run(char* scratch) {
    const std::int64_t frames_before = call.first_step / call.save_every;
    for (std::int64_t step = call.first_step + 1; step <= call.end_step; ++step) {
      const bool saves = step % call.save_every == 0;
      if (n_alive > 0) {
        const double* variance = call.variance + (step - 1 - call.first_step);
        move(step - 1, variance, scratch);
        lose_not_finite(step);
        if (n_alive > 0) schnet_block(call.model, first, count, scratch);
        finish(step - 1, variance);
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
