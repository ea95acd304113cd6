// One source, several SIMD levels. Every operation is compiled once per level into namespace
// diffmd::<level>; bindings.cpp calls the level chosen when the module was loaded.
//
// A kernel file uses plain pointers and loops only, no containers of the standard library: an inline
// function shared by two levels would be merged by the linker, and the AVX-512 copy could end up running
// on a machine that has none.
#pragma once
#include <cstddef>
#include <cstdint>

#define DIFFMD_DECLARE(...)                      \
  namespace diffmd {                             \
  namespace baseline { __VA_ARGS__; }            \
  namespace avx2 { __VA_ARGS__; }                \
  namespace avx512 { __VA_ARGS__; }              \
  }

// Functions that csrc/ and kernels/cuda/ share, one source of the mathematics for host and device: those marked
// DIFFMD_HOST_DEVICE, and all that are DIFFMD_INLINE.
#if defined(__CUDACC__)
#define DIFFMD_HOST_DEVICE __host__ __device__
#else
#define DIFFMD_HOST_DEVICE
#endif

#if defined(__GNUC__)
#define DIFFMD_INLINE DIFFMD_HOST_DEVICE inline __attribute__((always_inline))
#define DIFFMD_RESTRICT __restrict__
#else
#define DIFFMD_INLINE DIFFMD_HOST_DEVICE inline
#define DIFFMD_RESTRICT
#endif

#define DIFFMD_PRAGMA(text) _Pragma(#text)
#if defined(__CUDA_ARCH__)
#define DIFFMD_UNROLL(n) DIFFMD_PRAGMA(unroll)
#elif defined(__GNUC__) && !defined(__CUDACC__)
#define DIFFMD_UNROLL(n) DIFFMD_PRAGMA(GCC unroll n)
#else
#define DIFFMD_UNROLL(n)
#endif
