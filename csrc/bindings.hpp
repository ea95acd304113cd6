// What the files of the pybind11 module diffmd_fast._C share: bindings.cpp has the operators and the module itself,
// bindings_sampler.cpp what runs a SchNet and a sampler's steps.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>

#include "levels.hpp"

namespace py = pybind11;
using Address = std::uintptr_t;

enum class Level { baseline, avx2, avx512 };
extern Level current;  // in use; bindings.cpp

constexpr bool has_cuda = sizeof(DIFFMD_CUDA_COMPILER) > 1;

void define_sampler(py::module_& m);

// diffmd::<level in use>::CALL, with the GIL released.
#ifdef DIFFMD_HAS_avx512
#define DIFFMD_CALL_AVX512(...) diffmd::avx512::__VA_ARGS__
#else
#define DIFFMD_CALL_AVX512(...) diffmd::baseline::__VA_ARGS__
#endif
#ifdef DIFFMD_HAS_avx2
#define DIFFMD_CALL_AVX2(...) diffmd::avx2::__VA_ARGS__
#else
#define DIFFMD_CALL_AVX2(...) diffmd::baseline::__VA_ARGS__
#endif
#define DIFFMD_CALL(...)                                                  \
  do {                                                                    \
    const Level level = current; /* read under the GIL, as it is set */   \
    py::gil_scoped_release released;                                      \
    switch (level) {                                                      \
      case Level::avx512: DIFFMD_CALL_AVX512(__VA_ARGS__); break;         \
      case Level::avx2: DIFFMD_CALL_AVX2(__VA_ARGS__); break;             \
      default: diffmd::baseline::__VA_ARGS__;                             \
    }                                                                     \
  } while (false)

template <typename T> T* at(Address address) { return reinterpret_cast<T*>(address); }

inline void check_atoms(const char* name, const std::int64_t* atoms, std::int64_t n, std::int64_t n_atoms) {
  if (n < 0 || !std::all_of(atoms, atoms + n, [&](std::int64_t atom) { return atom >= 0 && atom < n_atoms; }))
    throw py::value_error(std::string(name) + ": expected atoms in 0.." + std::to_string(n_atoms - 1));
}
