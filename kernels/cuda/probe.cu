// The CUDA side's proof of life: csrc/philox.hpp, the same source that the CPU kernels use, run on the device
// and compared word for word with the host.
#include "probe.hpp"

#include <cuda_runtime.h>

#define DIFFMD_LEVEL probe
#include "philox.hpp"

namespace diffmd {
namespace {

constexpr int kAtoms = 61, kReplicas = 67, kSites = kAtoms * kReplicas;  // primes: the last block is partial
constexpr int kThreads = 128;

struct Words {
  std::uint32_t of_site[kSites][4];
};

DIFFMD_HOST_DEVICE void words_of_site(const probe::PhiloxKey& key, int site, Words* out) {
  const std::uint32_t first_replica = 0xffffffe0u;  // the replica number wraps around, as 32 bits do
  probe::philox_words(key, std::uint32_t(site % kAtoms), first_replica + std::uint32_t(site / kAtoms),
                      out->of_site[site]);
}

__global__ void all_words(probe::PhiloxKey key, Words* out) {
  const int site = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (site < kSites) words_of_site(key, site, out);
}

// Why no device can be used, or "".
std::string no_device() {
  int n_devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&n_devices);
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return "no NVIDIA driver on this machine";
  if (status == cudaErrorInsufficientDriver)
    return "the NVIDIA driver is for CUDA " + std::to_string(driver / 1000) + "." +
           std::to_string(driver % 1000 / 10) + ", older than the CUDA " + std::to_string(CUDART_VERSION / 1000) +
           "." + std::to_string(CUDART_VERSION % 1000 / 10) + " this was built with";
  if (status == cudaErrorNoDevice || (status == cudaSuccess && n_devices == 0))
    return "no CUDA device on this machine";
  return status == cudaSuccess ? "" : std::string("CUDA: ") + cudaGetErrorString(status);
}

cudaError_t words_from_device(const probe::PhiloxKey& key, Words* host) {
  Words* device = nullptr;
  cudaError_t status = cudaMalloc(&device, sizeof(Words));
  if (status != cudaSuccess) return status;
  all_words<<<(kSites + kThreads - 1) / kThreads, kThreads>>>(key, device);
  status = cudaGetLastError();
  if (status == cudaSuccess) status = cudaMemcpy(host, device, sizeof(Words), cudaMemcpyDeviceToHost);
  const cudaError_t freed = cudaFree(device);
  return status == cudaSuccess ? freed : status;
}

}  // namespace

std::string cuda_probe() {
  const std::string reason = no_device();
  if (!reason.empty()) return reason;
  const probe::PhiloxKey key = probe::philox_key(0x0123456789abcdefull, 0x00abcdef12345678ull, 2);
  static Words host, device;  // 128 KiB, too much for some stacks; the caller holds the GIL, so one call at a time
  const cudaError_t status = words_from_device(key, &device);
  if (status != cudaSuccess) return std::string("CUDA: ") + cudaGetErrorString(status);
  for (int site = 0; site < kSites; ++site) {
    words_of_site(key, site, &host);
    for (int k = 0; k < 4; ++k)
      if (host.of_site[site][k] != device.of_site[site][k])
        return "the device's random words differ from the host's, first at site " + std::to_string(site);
  }
  return "";
}

}  // namespace diffmd
