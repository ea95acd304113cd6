// The resident sampler for GPUs: the same run as csrc/resident_sampler.hpp describes, float32, with one or more whole
// molecules in the shared memory of a thread block for all the steps of a call. bindings_sampler.cpp knows these.
#pragma once
#include <string>

#include "resident_sampler.hpp"

namespace diffmd {

constexpr int kBlockAtoms = 64;   // atoms of a molecule, at most
constexpr int kBlockLanes = 512;  // threads of a block, at most

// Of the products features x features: on tensor cores (block_tensor.hpp) with each factor split into two tf32, of
// which three products are taken, or rounded to one; or float32 multiply-adds.
enum class Precision { tf32x3 = 0, tf32 = 1, fp32 = 2 };

struct ResidentBlocks {
  // Every pointer where the code runs. Of its fields n_threads, zeros and other_* are not used.
  ResidentSampler<float> run;
  // Where an atom occurs: entries starts[a] .. starts[a + 1] - 1 are its places, ascending, in the flattened list.
  const std::int32_t *role_starts, *roles;          // [n_atoms + 1], [4 n_torsions]: places in quadruples
  const std::int32_t *spring_starts, *spring_ends;  // [n_atoms + 1], [2 n_springs]: places in spring_pairs
  const std::int32_t *bend_starts, *bend_atoms;     // [n_atoms + 1], [3 n_bends]: places in bend_triples
  bool evaluates;  // energy and score of the positions given are worked out first; else they are read
  int molecules;   // of a block, at least 1
  Precision precision;
};

// Bytes of shared memory that a block needs.
std::size_t resident_block_bytes(const SchNet<float>& model, int molecules);

// The blocks one after another on the host, for tests: n_lanes threads, at least 1, in one order or the other.
void resident_emulated(const ResidentBlocks& call, int n_lanes, bool backward);

// "" once the blocks are on their way in `stream` (a cudaStream_t) of the device, else why they are not. n_lanes: a
// multiple of 32, at most kBlockLanes.
std::string resident_cuda(const ResidentBlocks& call, int n_lanes, int device, std::uintptr_t stream);

// Of a device: shared memory that one block can have, and the number of multiprocessors; "" or why it is not known.
std::string cuda_block_limits(int device, std::int64_t* block_bytes, std::int64_t* n_multiprocessors);

}  // namespace diffmd
