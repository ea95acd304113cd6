// The steps of the molecules of a thread block: csrc/resident_sampler.cpp once more, in its order, for the lanes of a
// block. Given the same score a step gives the same positions to the bit, the same random words and arithmetic.
//
// Every branch around a phase is taken by all lanes alike: it depends on the call alone, or on fate and loss, which are
// written in phases of their own and read only after the barrier and before the next phase that writes them.
#pragma once
#include "block_schnet.hpp"
#include "integrator_math.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

DIFFMD_DEVICE inline bool finite(float value) { return value * 0.0f == 0.0f; }

template <Precision precision> struct BlockSampler {
  const ResidentSampler<float>& run;
  BlockSchNet<precision> schnet;
  const BlockMemory& memory;
  const Lanes& lanes;
  std::int64_t first;  // replica of this block's molecule 0
  int count, n;        // molecules of this block, their atoms

  DIFFMD_DEVICE BlockSampler(const ResidentBlocks& call, const BlockMemory& memory, const Lanes& lanes,
                             std::int64_t block)
      : run(call.run), schnet(call, memory, lanes, molecules_of(call, block)), memory(memory), lanes(lanes),
        first(block * call.molecules), count(schnet.count), n(schnet.n) {}

  DIFFMD_DEVICE static int molecules_of(const ResidentBlocks& call, std::int64_t block) {
    const std::int64_t left = call.run.model.n_replicas - block * call.molecules;
    return left < call.molecules ? int(left) : call.molecules;
  }

  // Coordinate 0 of the block in an array [n_replicas, n_atoms, 3].
  DIFFMD_DEVICE float* mine(const float* array) const { return const_cast<float*>(array) + 3 * first * n; }
  DIFFMD_DEVICE bool alive(int molecule) const { return memory.loss[molecule] == kAlive; }
  DIFFMD_DEVICE bool any_alive() const {
    bool any = false;
    for (int molecule = 0; molecule < count; ++molecule) any |= alive(molecule);
    return any;
  }
  DIFFMD_DEVICE bool any_fallen() const {
    bool any = false;
    for (int molecule = 0; molecule < count; ++molecule) any |= memory.fate[molecule] != kAlive;
    return any;
  }

  DIFFMD_DEVICE void enter(bool with_score) const {
    lanes.phase(3 * count * n, [&](int i) {
                  memory.x[i] = mine(run.model.positions)[i];
                  if (run.velocities) memory.velocities[i] = mine(run.velocities)[i];
                  if (with_score) memory.score[i] = mine(run.model.score)[i];
                },
                count, [&](int molecule) {
                  memory.loss[molecule] = run.loss[first + molecule];
                  memory.fate[molecule] = kAlive;
                  if (with_score) memory.energy[molecule] = run.model.energy[first + molecule];
                });
  }

  DIFFMD_DEVICE void leave() const {
    lanes.phase(3 * count * n, [&](int i) {
                  mine(run.model.positions)[i] = memory.x[i];
                  if (run.velocities) mine(run.velocities)[i] = memory.velocities[i];
                  mine(run.model.score)[i] = memory.score[i];
                },
                count, [&](int molecule) {
                  run.loss[first + molecule] = std::uint8_t(memory.loss[molecule]);
                  run.model.energy[first + molecule] = memory.energy[molecule];
                });
  }

  // Heun evaluates twice a step: at the end of an Euler step (half 0), and where the mean of both scores leads (half 1).
  DIFFMD_DEVICE bool is_heun() const { return run.rule == Rule::heun; }
  // That of the positions a step starts from, once they are left.
  DIFFMD_DEVICE const float* score_of_step() const { return is_heun() ? memory.score_before : memory.score; }
  DIFFMD_DEVICE double diffusion_time(int at) const { return run.diffusion_time[run.diffusion_per_atom ? at % n : 0]; }

  DIFFMD_DEVICE void noise_of(int at, std::uint64_t step, float (&noise)[3]) const {
    std::uint32_t words[4];
    philox_words(philox_key(run.seed, step, 0), std::uint32_t(at % n),
                 run.first_replica + std::uint32_t(first) + std::uint32_t(at / n), words);
    normals_of<float>(words, &noise[0], &noise[1], &noise[2]);
  }

  // Of one site: its three coordinates plus D dt score plus noise, as csrc/em_step.cpp has them.
  DIFFMD_DEVICE void move_site(int at, const float (&score)[3], double variance, std::uint64_t step) const {
    const float drift = float(diffusion_time(at)), amplitude = float(sqrt(2.0 * diffusion_time(at) * variance));
    float noise[3];
    noise_of(at, step, noise);
    for (int k = 0; k < 3; ++k) memory.x[3 * at + k] += drift * score[k] + amplitude * noise[k];
  }

  DIFFMD_DEVICE LangevinSite<float> langevin(int at, double variance) const {
    const int atom = at % n;
    return {float(run.half_step), float(run.kick[atom]), float(run.decay[atom]),
            float(run.amplitude[atom] * sqrt(variance))};
  }

  DIFFMD_DEVICE void langevin_site(int at, double variance, std::uint64_t step) const {
    const LangevinSite<float> site = langevin(at, variance);
    float noise[3];
    noise_of(at, step, noise);
    for (int k = 0; k < 3; ++k)
      langevin_move_of(site, memory.score[3 * at + k], noise[k], memory.x + 3 * at + k, memory.velocities + 3 * at + k);
  }

  // What a proposal or the second half of a Heun step needs of the positions that are left.
  DIFFMD_DEVICE void keep(int at) const {
    for (int i = 3 * at; i < 3 * at + 3; ++i) {
      memory.before[i] = memory.x[i];
      memory.score_before[i] = memory.score[i];
    }
    if (at % n == 0) memory.energy_before[at / n] = memory.energy[at / n];
  }

  // From the positions of `step` to those of the next, for Heun in two halves.
  DIFFMD_DEVICE void move(std::int64_t step, int half) const {
    const double variance = run.variance[step - run.first_step];
    const std::uint64_t now = std::uint64_t(step);
    lanes.phase(count * n, [&](int at) {
      memory.bad[at] = 0;
      if (!alive(at / n)) return;
      float* x = memory.x + 3 * at;
      float score[3];
      for (int k = 0; k < 3; ++k) {
        score[k] = memory.score[3 * at + k];
        if (!is_heun() || half == 0) continue;
        score[k] = (memory.score_before[3 * at + k] + score[k]) * 0.5f;
        x[k] = memory.before[3 * at + k];
      }
      if (half == 0 || run.rule == Rule::metropolis) keep(at);
      switch (run.rule) {
        case Rule::leimkuhler_matthews: {  // half the amplitude, twice
          const float none[3] = {0.0f, 0.0f, 0.0f};
          move_site(at, score, 0.25 * variance, now);
          move_site(at, none, 0.25 * variance, now + 1);
          break;
        }
        case Rule::baoab: langevin_site(at, variance, now); break;
        default: move_site(at, score, variance, now);
      }
      memory.bad[at] = !(finite(x[0]) && finite(x[1]) && finite(x[2]));
    });
  }

  // After the evaluation at the new positions: accepted or rejected, or velocities kicked.
  DIFFMD_DEVICE void finish(std::int64_t step) const {
    const double variance = run.variance[step - run.first_step];
    if (run.rule == Rule::baoab)
      lanes.phase(count * n, [&](int at) {
        const float kick = float(run.kick[at % n]);
        for (int i = 3 * at; alive(at / n) && i < 3 * at + 3; ++i) memory.velocities[i] += kick * memory.score[i];
      });
    if (run.rule != Rule::metropolis) return;
    lanes.phase(count * n, [&](int at) {
      const double d = diffusion_time(at);
      const int i = 3 * at;
      memory.row_energy[at] = back_and_forth(memory.before + i, memory.score_before + i, memory.x + i,
                                             memory.score + i, d) / (4.0 * d * variance);
    });
    lanes.phase(count, [&](int molecule) {
      memory.rejected[molecule] = alive(molecule) && !accept(molecule, step, variance);
    });
    lanes.phase(3 * count * n, [&](int i) {
                  if (!memory.rejected[i / (3 * n)]) return;
                  memory.x[i] = memory.before[i];
                  memory.score[i] = memory.score_before[i];
                },
                count, [&](int molecule) {
                  if (memory.rejected[molecule]) memory.energy[molecule] = memory.energy_before[molecule];
                });
  }

  DIFFMD_DEVICE bool accept(int molecule, std::int64_t step, double variance) const {
    double paths = 0.0;
    for (int a = 0; a < n; ++a) paths += memory.row_energy[molecule * n + a];
    const double draw = acceptance_draw(run.seed, std::uint64_t(step),
                                        run.first_replica + std::uint32_t(first) + std::uint32_t(molecule));
    const bool taken = accepts(draw, double(memory.energy_before[molecule]), double(memory.energy[molecule]),
                               variance, paths);
    if (taken) ++run.accepted[first + molecule];
    return taken;
  }

  DIFFMD_DEVICE bool any_bad(int molecule) const {
    bool any = false;
    for (int a = 0; a < n; ++a) any |= memory.bad[molecule * n + a] != 0;
    return any;
  }

  DIFFMD_DEVICE int not_finite(int molecule) const {
    if (!alive(molecule) || !any_bad(molecule)) return kAlive;
    for (int i = 0; i < 3 * n; ++i)
      if (!finite(score_of_step()[3 * molecule * n + i])) return kScoreNotFinite;
    return kPositionsNotFinite;
  }

  DIFFMD_DEVICE bool inside(const float* x, std::int64_t pair) const {
    const float *a = x + 3 * run.pairs[2 * pair], *b = x + 3 * run.pairs[2 * pair + 1];
    const double d[3] = {double(a[0] - b[0]), double(a[1] - b[1]), double(a[2] - b[2])};
    const double distance = sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2]);
    return distance >= run.lowest[pair] && distance <= run.highest[pair];
  }

  DIFFMD_DEVICE int outside(int molecule) const {
    if (!alive(molecule)) return kAlive;
    const float energy = memory.energy[molecule];
    return any_bad(molecule) || !finite(energy) || !(double(energy) <= run.energy_limit) ? kOutside : kAlive;
  }

  // fate_of(molecule) says who is lost at this step.
  template <typename FateOf> DIFFMD_DEVICE void decide(std::int64_t step, const FateOf& fate_of) const {
    lanes.phase(count, [&](int molecule) {
      const int fate = memory.fate[molecule] = fate_of(molecule);
      if (fate == kAlive) return;
      memory.loss[molecule] = fate;
      run.lost_step[first + molecule] = step;
    });
  }

  // Those just lost go back to where they were last good.
  DIFFMD_DEVICE void put_back() const {
    lanes.phase(3 * count * n, [&](int i) {
      if (memory.fate[i / (3 * n)] == kAlive) return;
      mine(run.lost_positions)[i] = memory.x[i];
      memory.x[i] = mine(run.good)[i];
      memory.velocities[i] = 0.0f;
    });
  }

  DIFFMD_DEVICE void check(std::int64_t step) const {
    // The pairs of a molecule are dealt out to as many items as it has atoms.
    lanes.phase(count * n, [&](int at) {
      bool good = true;
      for (std::int64_t pair = at % n; pair < run.n_pairs; pair += n) good &= inside(memory.x + 3 * (at / n * n), pair);
      memory.bad[at] = !good;
    });
    decide(step, [&](int molecule) { return outside(molecule); });
    if (any_fallen()) put_back();
    lanes.phase(3 * count * n, [&](int i) {
      if (alive(i / (3 * n))) mine(run.good)[i] = memory.x[i];
    });
  }

  DIFFMD_DEVICE void save(std::int64_t frame) const {
    const std::int64_t skipped = frame * run.model.n_replicas;
    lanes.phase(3 * count * n, [&](int i) {
                  mine(run.frames + 3 * skipped * n)[i] = memory.x[i];
                  if (run.frame_velocities) mine(run.frame_velocities + 3 * skipped * n)[i] = memory.velocities[i];
                },
                count, [&](int molecule) {
                  run.frame_energies[skipped + first + molecule] = memory.energy[molecule];
                });
  }

  // The positions of `step` from those before, unless they are those the call begins with, and what follows from them.
  DIFFMD_DEVICE void step_to(std::int64_t step, bool saves) const {
    const bool moves = step > run.first_step;
    const bool due = moves && (saves || step % run.check_every == 0 || step == run.last_step);
    const bool wants_energy = due || !moves || step == run.end_step || run.rule == Rule::metropolis;
    for (int half = moves && is_heun() ? 0 : 1; half < 2; ++half) {
      if (moves) {
        move(step - 1, half);
        decide(step, [&](int molecule) { return not_finite(molecule); });
        if (any_fallen()) put_back();
      }
      schnet.evaluate(half == 1 && wants_energy);
    }
    if (moves) finish(step - 1);
    if (due) check(step);
  }

  DIFFMD_DEVICE void go(bool evaluates) const {
    enter(!evaluates);
    const std::int64_t frames_before = run.first_step / run.save_every;
    for (std::int64_t step = run.first_step + (evaluates ? 0 : 1); step <= run.end_step; ++step) {
      const bool saves = step > run.first_step && step % run.save_every == 0;
      if (any_alive() || step == run.first_step) step_to(step, saves);
      if (saves) save(step / run.save_every - 1 - frames_before);
    }
    leave();
  }
};

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
