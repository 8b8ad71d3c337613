// CUDA's runtime on the CPU, and what Python calls.
#include <algorithm>
#include <map>
#include <vector>

#include "../../csrc/attention_block/params.h"
#include "../../csrc/group_norm_silu/params.h"
#include "cuda_on_cpu.h"
#include "machine.h"

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start;  // where this library begins

namespace {

constexpr std::size_t kAlwaysAllowed = 48 * 1024;
constexpr unsigned kMostThreads = 1024, kMostCluster = 8;

std::map<const void*, std::size_t> allowed_shared;

// A launch, its kernel told by its place in this library.
struct Launched {
  std::ptrdiff_t kernel;
  unsigned blocks, cluster;
};
std::vector<Launched> launches;  // on this GPU

}  // namespace

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = on_cpu::gpu.multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = on_cpu::gpu.shared;
      break;
    case cudaDevAttrClusterLaunch:
      *value = on_cpu::gpu.clusters;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value > on_cpu::gpu.shared) return cudaErrorInvalidValue;
  allowed_shared[kernel] = value;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? on_cpu::complaint() : "invalid argument";
}

cudaError_t on_cpu::launch(const cudaLaunchConfig_t& config, const void* kernel,
                           void (*thread)(const void*), const void* argument) {
  const unsigned cluster = config.numAttrs > 0 ? config.attrs[0].val.clusterDim.x : 1;
  const unsigned blocks = config.gridDim.x, threads = config.blockDim.x;
  const auto allowed = allowed_shared.find(kernel);
  const bool fits = config.dynamicSmemBytes <= kAlwaysAllowed ||
                    (allowed != allowed_shared.end() && config.dynamicSmemBytes <= allowed->second);
  const bool valid = blocks > 0 && threads > 0 && threads <= kMostThreads && cluster > 0 &&
                     cluster <= (gpu.clusters ? kMostCluster : 1) && blocks % cluster == 0;
  if (!fits || !valid) return cudaErrorInvalidValue;
  launches.push_back({static_cast<const char*>(kernel) - &__ehdr_start, blocks, cluster});
  const Layout layout{blocks, threads, cluster, config.dynamicSmemBytes};
  return run(layout, thread, argument) ? cudaSuccess : cudaErrorLaunchFailure;
}

#define CALLED_FROM_PYTHON extern "C" __attribute__((visibility("default")))

CALLED_FROM_PYTHON void set_gpu(int multiprocessors, int shared, int clusters) {
  on_cpu::gpu = {multiprocessors, shared, clusters};
  launches.clear();
}

CALLED_FROM_PYTHON void know_memory(void* first, std::size_t bytes, bool written) {
  on_cpu::know_memory(first, bytes, written);
}

CALLED_FROM_PYTHON void forget_memory() { on_cpu::forget_memory(); }

CALLED_FROM_PYTHON int copy_launches(Launched* to, int most) {
  const int count = std::min(most, static_cast<int>(launches.size()));
  std::copy(launches.begin(), launches.begin() + count, to);
  return count;
}

CALLED_FROM_PYTHON std::int64_t group_norm_silu_workspace(const fastdiff::GroupNormSiluParams& p) {
  return fastdiff::group_norm_silu_cuda_workspace(p);
}

CALLED_FROM_PYTHON const char* group_norm_silu(const fastdiff::GroupNormSiluParams& p) {
  return fastdiff::group_norm_silu_cuda(p, nullptr);
}

CALLED_FROM_PYTHON std::int64_t group_norm_silu_gradient_workspace(
    const fastdiff::GroupNormSiluGradientParams& p) {
  return fastdiff::group_norm_silu_gradient_cuda_workspace(p);
}

CALLED_FROM_PYTHON const char* group_norm_silu_gradient(
    const fastdiff::GroupNormSiluGradientParams& p) {
  return fastdiff::group_norm_silu_gradient_cuda(p, nullptr);
}

CALLED_FROM_PYTHON const char* attention_block(const fastdiff::AttentionBlockParams& p) {
  return fastdiff::attention_block_cuda(p, nullptr);
}
