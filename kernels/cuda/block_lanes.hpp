// The threads of a block, as the code of a block sees them: a phase is a number of items that do not depend on each
// other, spread over the lanes, and every phase ends with a barrier. On the device a lane is a thread. On the host the
// lanes of a phase run one after another, so the same source is tested without a GPU; what the items of a phase would
// read of each other shows there as a result that changes with the number of lanes or their order.
#pragma once
#include <math.h>
#include <string.h>

#include "levels.hpp"

#if defined(__CUDACC__)
#define DIFFMD_DEVICE __device__
#else
#define DIFFMD_DEVICE
#endif

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr int kWarpLanes = 32;

// So many items of a phase, each for the lanes of a warp together.
struct Warps {
  int n;
};

#if defined(__CUDACC__)
struct Lanes {
  // phase(n, item, ...): item(0) .. item(n - 1), for each pair of arguments, then the barrier. n: an int or Warps.
  template <typename... Ranges> __device__ void phase(const Ranges&... ranges) const {
    run(ranges...);
    __syncthreads();
  }

 private:
  __device__ void run() const {}
  template <typename Item, typename... Ranges>
  __device__ void run(int n, const Item& item, const Ranges&... more) const {
    for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) item(i);
    run(more...);
  }
  template <typename Item, typename... Ranges>
  __device__ void run(Warps items, const Item& item, const Ranges&... more) const {
    for (int i = int(threadIdx.x) / kWarpLanes; i < items.n; i += int(blockDim.x) / kWarpLanes) item(i);
    run(more...);
  }
};
#else
struct Lanes {
  int n_lanes;
  bool backward;  // the last lane first, and its last item first: another order that a device may choose

  template <typename... Ranges> void phase(const Ranges&... ranges) const {
    for (int turn = 0; turn < n_lanes; ++turn) run(backward ? n_lanes - 1 - turn : turn, ranges...);
  }

 private:
  void run(int) const {}
  template <typename Item, typename... Ranges>
  void run(int lane, int n, const Item& item, const Ranges&... more) const {
    if (backward) run(lane, more...);
    each(lane, n_lanes, n, item);
    if (!backward) run(lane, more...);
  }
  // The first lane of a warp stands for all of it.
  template <typename Item, typename... Ranges>
  void run(int lane, Warps items, const Item& item, const Ranges&... more) const {
    if (backward) run(lane, more...);
    if (lane % kWarpLanes == 0) each(lane / kWarpLanes, (n_lanes + kWarpLanes - 1) / kWarpLanes, items.n, item);
    if (!backward) run(lane, more...);
  }
  template <typename Item> void each(int first, int stride, int n, const Item& item) const {
    const int count = n > first ? (n - first + stride - 1) / stride : 0;
    for (int turn = 0; turn < count; ++turn) item(first + stride * (backward ? count - 1 - turn : turn));
  }
};
#endif

// Four numbers that lie together: one access of 16 bytes.
struct alignas(16) Four {
  float v[4];
};

// `from` and `to` are multiples of 16 bytes.
DIFFMD_DEVICE inline Four load4(const float* from) {
#if defined(__CUDA_ARCH__)
  const float4 value = *reinterpret_cast<const float4*>(from);
  return {{value.x, value.y, value.z, value.w}};
#else
  Four value;
  memcpy(&value, from, sizeof value);
  return value;
#endif
}

DIFFMD_DEVICE inline void store4(float* to, const Four& value) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<float4*>(to) = make_float4(value.v[0], value.v[1], value.v[2], value.v[3]);
#else
  memcpy(to, &value, sizeof value);
#endif
}

// Of the weights, which nobody writes while the block runs.
DIFFMD_DEVICE inline Four weights4(const float* from) {
#if defined(__CUDA_ARCH__)
  const float4 value = __ldg(reinterpret_cast<const float4*>(from));
  return {{value.x, value.y, value.z, value.w}};
#else
  return load4(from);
#endif
}

// a b + c, rounded once. The compilers themselves fuse nothing in this code, so host and device give the same bits.
DIFFMD_DEVICE inline float fused(float a, float b, float c) { return fmaf(a, b, c); }

DIFFMD_DEVICE inline Four fused(float a, const Four& b, const Four& c) {
  return {{fused(a, b.v[0], c.v[0]), fused(a, b.v[1], c.v[1]), fused(a, b.v[2], c.v[2]), fused(a, b.v[3], c.v[3])}};
}

DIFFMD_DEVICE inline Four fused(const Four& a, const Four& b, const Four& c) {
  return {{fused(a.v[0], b.v[0], c.v[0]), fused(a.v[1], b.v[1], c.v[1]), fused(a.v[2], b.v[2], c.v[2]),
           fused(a.v[3], b.v[3], c.v[3])}};
}

DIFFMD_DEVICE inline Four operator*(float a, const Four& b) {
  return {{a * b.v[0], a * b.v[1], a * b.v[2], a * b.v[3]}};
}

DIFFMD_DEVICE inline Four operator*(const Four& a, const Four& b) {
  return {{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}};
}

DIFFMD_DEVICE inline Four operator+(const Four& a, const Four& b) {
  return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}};
}

DIFFMD_DEVICE inline float sum_of4(const Four& a) { return (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]); }

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
