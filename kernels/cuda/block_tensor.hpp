// Matrix products on tensor cores: 16 rows by 16 columns of a product by one warp, in steps of the instruction
// mma.m16n8k8, whose factors have the 11 bits of tf32 and whose sums are float32.
//
// As in block_lanes.hpp the same source runs on the host: there a warp is a loop over its lanes, and the instruction is
// written out, with the layout of its operands as PTX documents it (section "Matrix Fragments for mma.m16n8k8"). How a
// tensor core rounds its sums is not documented; the host does it as the first ones were found to, the coarsest (Fasi,
// Higham, Mikaitis, Pranesh, PeerJ Comput. Sci. 7 (2021) e330): four products at a time, all addends cut off at 24 bits
// of the largest, and the sum cut off again. A card may give other bits, and smaller errors.
#pragma once
#include "block_lanes.hpp"
#include "normals.hpp"
#include "resident_blocks.hpp"

namespace diffmd {
namespace DIFFMD_LEVEL {

constexpr int kTensorTile = 16;  // rows and columns

struct alignas(8) Two {
  float v[2];
};

DIFFMD_DEVICE inline Two weights2(const float* from) {
#if defined(__CUDA_ARCH__)
  const float2 value = __ldg(reinterpret_cast<const float2*>(from));
  return {{value.x, value.y}};
#else
  return {{from[0], from[1]}};
#endif
}

// What each lane of a warp has one of: on the device the lane's own, on the host all of them.
template <typename Value> struct OfLanes {
#if defined(__CUDACC__)
  Value own;
  __device__ Value& operator[](int) { return own; }
  __device__ const Value& operator[](int) const { return own; }
#else
  Value own[kWarpLanes];
  Value& operator[](int lane) { return own[lane]; }
  const Value& operator[](int lane) const { return own[lane]; }
#endif
};

template <typename Item> DIFFMD_DEVICE void each_lane(const Item& item) {
#if defined(__CUDACC__)
  item(int(threadIdx.x) % kWarpLanes);
#else
  for (int lane = 0; lane < kWarpLanes; ++lane) item(lane);
#endif
}

// Tensor cores ignore the 13 bits that tf32 does not have; what stands there does no harm.
constexpr std::uint32_t kTensorBits = 0xffffe000u, kHalf = 0x1000u;

// The nearest tf32, of two as near the one away from zero.
template <typename Values> DIFFMD_DEVICE inline Values nearest(Values x) {
  for (float& value : x.v) {
#if defined(__CUDA_ARCH__)
    std::uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
    value = same_bits<float>(bits);
#else
    if (value * 0.0f == 0.0f) value = same_bits<float>(same_bits<std::uint32_t>(value) + kHalf);
#endif
  }
  return x;
}

// x = high + low to 22 bits: high is nearest(x) where x is finite; where it is not, low is NaN.
template <typename Values> DIFFMD_DEVICE inline void split(const Values& x, Values* high, Values* low) {
  constexpr int n = int(sizeof(Values) / sizeof(float));
  DIFFMD_UNROLL(4)
  for (int i = 0; i < n; ++i) {
    high->v[i] = same_bits<float>((same_bits<std::uint32_t>(x.v[i]) + kHalf) & kTensorBits);
    low->v[i] = x.v[i] - high->v[i];
  }
}

#if !defined(__CUDACC__)
// From the exponent as float64 stores it.
inline double power_of_2(std::uint64_t exponent) { return same_bits<double>(exponent << 52); }

inline double as_tensor_core_reads(float value) {
  return same_bits<float>(same_bits<std::uint32_t>(value) & kTensorBits);
}

// c + four products, rounded as the head of this file says.
inline float cut_sum(float c, const double (&products)[4]) {
  const double addends[5] = {double(c), products[0], products[1], products[2], products[3]};
  double largest = 0.0, plain = 0.0;
  for (double addend : addends) {
    largest = fabs(addend) > largest ? fabs(addend) : largest;
    plain += addend;
  }
  if (!(largest > 0.0) || plain - plain != 0.0) return float(plain);
  const std::uint64_t exponent = same_bits<std::uint64_t>(largest) >> 52;
  const double unit = power_of_2(exponent - 23), per_unit = power_of_2(2046 + 23 - exponent);
  std::int64_t units = 0;
  for (double addend : addends) units += std::int64_t(addend * per_unit);
  std::int64_t kept = units < 0 ? -units : units, cut = 0;
  while (kept >> (24 + cut)) ++cut;
  kept = kept >> cut << cut;
  return float(double(units < 0 ? -kept : kept) * unit);
}
#endif

// sum += a b, by a warp: a has 16 rows and 8 columns, b has 8 rows and 8 columns. With g = lane / 4, t = lane % 4 a
// lane has of a (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); of b (t, g), (t + 4, g); of sum (g, 2t), (g, 2t + 1),
// (g + 8, 2t), (g + 8, 2t + 1).
DIFFMD_DEVICE inline void multiply(const OfLanes<Four>& a, const OfLanes<Two>& b, OfLanes<Four>* sum) {
#if defined(__CUDA_ARCH__)
  float(&c)[4] = sum->own.v;
  const auto word = [](float value) { return __float_as_uint(value); };
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(word(a.own.v[0])), "r"(word(a.own.v[1])), "r"(word(a.own.v[2])), "r"(word(a.own.v[3])),
                 "r"(word(b.own.v[0])), "r"(word(b.own.v[1])));
#elif !defined(__CUDACC__)
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float& c = (*sum)[row % 8 * 4 + column / 2].v[row / 8 * 2 + column % 2];
      for (int half = 0; half < 2; ++half) {
        double products[4];
        for (int t = 0; t < 4; ++t)
          products[t] = as_tensor_core_reads(a[row % 8 * 4 + t].v[half * 2 + row / 8]) *
                        as_tensor_core_reads(b[column * 4 + t].v[half]);
        c = cut_sum(c, products);
      }
    }
#endif
}

// The sums of a tile: of the even columns and of the odd, as multiply has them.
template <Precision precision> struct TensorTile {
  OfLanes<Four> sum[2], rest[2];

  // The products of two steps: of `upper` and `lower`, rows g and g + 8, a lane has columns 4t .. 4t + 3 of 16; of
  // `weights` rows 4t .. 4t + 3 and columns 2g, 2g + 1. Which of the 16 inputs is whose does not matter to a sum.
  DIFFMD_DEVICE void add(const OfLanes<Four>& upper, const OfLanes<Four>& lower, const OfLanes<Two> (&weights)[4]) {
    DIFFMD_UNROLL(2)
    for (int step = 0; step < 2; ++step) {
      OfLanes<Four> a, a_low;
      each_lane([&](int lane) {
        const float *u = upper[lane].v + 2 * step, *l = lower[lane].v + 2 * step;
        factor(Four{{u[0], l[0], u[1], l[1]}}, &a[lane], &a_low[lane]);
      });
      DIFFMD_UNROLL(2)
      for (int odd = 0; odd < 2; ++odd) {
        OfLanes<Two> b, b_low;
        each_lane([&](int lane) {
          const float first = weights[2 * step][lane].v[odd], second = weights[2 * step + 1][lane].v[odd];
          factor(Two{{first, second}}, &b[lane], &b_low[lane]);
        });
        if constexpr (precision == Precision::tf32) {
          multiply(a, b, &sum[odd]);
        } else {  // the large products are added up outside of the tensor core, which would cut off every sum
          multiply(a_low, b, &rest[odd]);
          multiply(a, b_low, &rest[odd]);
          OfLanes<Four> part{};
          multiply(a, b, &part);
          each_lane([&](int lane) { sum[odd][lane] = sum[odd][lane] + part[lane]; });
        }
      }
    }
  }

  template <typename Values> DIFFMD_DEVICE static void factor(const Values& x, Values* high, Values* low) {
    if constexpr (precision == Precision::tf32) *high = nearest(x);
    else split(x, high, low);
  }

  // Four neighboring columns of row g, or of row g + 8 for half = 1: those from 4t on.
  DIFFMD_DEVICE Four result(int lane, int half) const {
    const auto of = [&](int odd) {
      return precision == Precision::tf32 ? sum[odd][lane] : sum[odd][lane] + rest[odd][lane];
    };
    const Four even = of(0), odd = of(1);
    return {{even.v[2 * half], odd.v[2 * half], even.v[2 * half + 1], odd.v[2 * half + 1]}};
  }
};

}  // namespace DIFFMD_LEVEL
}  // namespace diffmd
