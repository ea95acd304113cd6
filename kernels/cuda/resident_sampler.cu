// The resident sampler on the device: one thread block for a few molecules and all the steps of a call.
// Compiled so that nothing is fused but what the code itself fuses (CMakeLists.txt).
#define DIFFMD_LEVEL device
#include "block_sampler.hpp"

#include <cuda_runtime.h>

namespace diffmd {
namespace {

// Blocks of a multiprocessor that ptxas must allow for. Left alone it takes 64 registers for fp32 on sm_80, for two
// blocks, and spills; told 1 it spills on sm_100 for the others.
template <Precision precision> constexpr int kMinBlocks = precision == Precision::fp32 ? 1 : 0;

template <Precision precision>
__global__ void __launch_bounds__(kBlockLanes, kMinBlocks<precision>)
    resident_blocks(const __grid_constant__ ResidentBlocks call) {
  extern __shared__ __align__(16) char base[];
  device::BlockMemory memory;
  device::cut_block(call.run.model, call.molecules, base, &memory);
  device::BlockSampler<precision>(call, memory, device::Lanes{}, blockIdx.x).go(call.evaluates);
}

auto kernel_of(Precision precision) {
  return precision == Precision::tf32x3 ? resident_blocks<Precision::tf32x3>
         : precision == Precision::tf32 ? resident_blocks<Precision::tf32>
                                        : resident_blocks<Precision::fp32>;
}

std::string said(cudaError_t status) {
  return status == cudaSuccess ? "" : std::string("CUDA: ") + cudaGetErrorString(status);
}

cudaError_t launch(const ResidentBlocks& call, int n_lanes, std::uintptr_t stream) {
  const std::size_t bytes = resident_block_bytes(call.run.model, call.molecules);
  const auto kernel = kernel_of(call.precision);
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (status != cudaSuccess) return status;
  const std::int64_t n_blocks = (call.run.model.n_replicas + call.molecules - 1) / call.molecules;
  kernel<<<unsigned(n_blocks), unsigned(n_lanes), bytes, reinterpret_cast<cudaStream_t>(stream)>>>(call);
  return cudaGetLastError();
}

// The calling thread's device is put back: torch keeps its own.
class OnDevice {
 public:
  explicit OnDevice(int device) : status_(cudaGetDevice(&before_)) {
    if (status_ == cudaSuccess && device != before_) status_ = cudaSetDevice(device);
  }
  ~OnDevice() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t status() const { return status_; }

 private:
  int before_ = -1;
  cudaError_t status_;
};

}  // namespace

std::string resident_cuda(const ResidentBlocks& call, int n_lanes, int device, std::uintptr_t stream) {
  const OnDevice on(device);
  return said(on.status() == cudaSuccess ? launch(call, n_lanes, stream) : on.status());
}

std::string cuda_block_limits(int device, std::int64_t* block_bytes, std::int64_t* n_multiprocessors) {
  int bytes = 0, processors = 0;
  cudaError_t status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  *block_bytes = bytes;
  *n_multiprocessors = processors;
  return said(status);
}

}  // namespace diffmd
