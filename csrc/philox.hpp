// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011, section 3.3).
//
// A number is a pure function of (seed, replica, step, atom, domain): no state, so neither batching, nor
// threads, nor a restart can change a trajectory's noise.
//   key     = (seed low, seed high)
//   counter = (atom, replica, step low, step high 24 bits | domain << 24)
// The four words of one call give the three components of one atom's noise by two Box-Muller transforms
// (the fourth normal is not used); csrc/normals.hpp has both for whole registers. Twins: reference/em_step.py and
// kernels/triton/philox.py, which tests compare word by word; kernels/cuda/ includes this file.
#pragma once
#include "levels.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

struct PhiloxKey {
  std::uint32_t seed_low, seed_high, step_low, step_high_and_domain;
};

DIFFMD_INLINE PhiloxKey philox_key(std::uint64_t seed, std::uint64_t step, std::uint32_t domain) {
  return {std::uint32_t(seed), std::uint32_t(seed >> 32), std::uint32_t(step),
          (std::uint32_t(step >> 32) & 0xffffffu) | (domain << 24)};
}

// The four words of one site.
DIFFMD_INLINE void philox_words(const PhiloxKey& key, std::uint32_t atom, std::uint32_t replica,
                                std::uint32_t (&words)[4]) {
  std::uint32_t c0 = atom, c1 = replica, c2 = key.step_low, c3 = key.step_high_and_domain;
  std::uint32_t k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t(0xD2511F53u) * c0;
    const std::uint64_t p1 = std::uint64_t(0xCD9E8D57u) * c2;
    c0 = std::uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = std::uint32_t(p1);
    c2 = std::uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = std::uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
