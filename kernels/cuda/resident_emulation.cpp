// The resident sampler's device code on the host, block after block, for tests: see block_lanes.hpp.
#define DIFFMD_LEVEL emulation
#define DIFFMD_ONE_LANE
#include "block_sampler.hpp"

#include <memory>

namespace diffmd {
namespace {

template <Precision precision>
void all_blocks(const ResidentBlocks& call, char* base, std::size_t bytes, const emulation::Lanes& lanes) {
  emulation::BlockMemory memory;
  emulation::cut_block(call.run.model, call.molecules, base, &memory);
  for (std::int64_t block = 0; block * call.molecules < call.run.model.n_replicas; ++block) {
    memset(base, 0xff, bytes);  // NaN: who reads what was never written is found out
    emulation::BlockSampler<precision>(call, memory, lanes, block).go(call.evaluates);
  }
}

}  // namespace

std::size_t resident_block_bytes(const SchNet<float>& model, int molecules) {
  emulation::BlockMemory memory;
  return emulation::cut_block(model, molecules, nullptr, &memory);
}

void resident_emulated(const ResidentBlocks& call, int n_lanes, bool backward) {
  const std::size_t bytes = resident_block_bytes(call.run.model, call.molecules);
  const std::unique_ptr<char[]> owner(new char[bytes + 16]);
  char* base = owner.get() + (16 - reinterpret_cast<std::uintptr_t>(owner.get()) % 16) % 16;
  const emulation::Lanes lanes{n_lanes, backward};
  switch (call.precision) {
    case Precision::tf32x3: return all_blocks<Precision::tf32x3>(call, base, bytes, lanes);
    case Precision::tf32: return all_blocks<Precision::tf32>(call, base, bytes, lanes);
    case Precision::fp32: return all_blocks<Precision::fp32>(call, base, bytes, lanes);
  }
}

}  // namespace diffmd
