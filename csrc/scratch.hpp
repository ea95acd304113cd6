// Scratch memory of the threads of one call: one piece each, aligned to a cache line, freed with the object.
#pragma once
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "levels.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

struct Scratch {
  static constexpr std::size_t kLine = 64;
  std::size_t share;
  char* memory;  // null when there was none to be had

  Scratch(std::size_t bytes, int n_threads) : share((bytes + kLine - 1) / kLine * kLine) {
    memory = static_cast<char*>(malloc(share * std::size_t(n_threads) + kLine));
  }
  ~Scratch() { free(memory); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Of the thread that asks, inside the parallel region.
  char* of_this_thread() const {
#ifdef _OPENMP
    const int thread = omp_get_thread_num();
#else
    const int thread = 0;
#endif
    char* aligned = memory + (kLine - reinterpret_cast<std::uintptr_t>(memory) % kLine) % kLine;
    return aligned + share * std::size_t(thread);
  }
};

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
