// What kernels ask of a GPU beyond C++ and CUDA's own language.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#include "ptx.h"
#else
#include <cuda_on_cpu.h>  // the kernels run on the CPU, in tests/native
#endif

namespace fastdiff {

// ---- arithmetic without the calls that the exact operations' rare cases take ----

// Good to a rounding of 16-bit results.
__device__ __forceinline__ float fast_exp(float x) { return __expf(x); }
__device__ __forceinline__ float fast_divide(float a, float b) { return __fdividef(a, b); }

// To a unit in the last place, for b up to 2^126 and finite results.
__device__ __forceinline__ float divide(float a, float b) {
  const float q = __fdividef(a, b);
  return fmaf(fmaf(-q, b, a), __fdividef(1.0f, b), q);
}

// 1 / sqrt(x) to a unit in the last place; 0 of infinity.
__device__ __forceinline__ float inverse_root(float x) {
  const float y = rsqrtf(x);
  return y > 0 && y < INFINITY ? fmaf(0.5f * y, fmaf(-x * y, y, 1.0f), y) : y;
}

// ---- launching ----

struct Device {
  int multiprocessors = 1;
  std::size_t shared = 0;  // bytes that a block may ask for
  unsigned cluster = 1;    // blocks that may run together
};

inline Device current_device() {
  int index = 0, multiprocessors = 1, shared = 0, clusters = 0;
  cudaGetDevice(&index);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index);
  return {multiprocessors, static_cast<std::size_t>(shared), clusters ? 8u : 1u};
}

constexpr std::size_t kAlwaysShared = 48 * 1024;  // bytes that a block need not ask for

// How a kernel is laid out over the GPU; `cluster` blocks along x run together.
struct Grid {
  dim3 blocks;
  unsigned threads;
  std::size_t shared = 0;
  unsigned cluster = 1;
};

// Launches kernel(arguments...); the error is cudaSuccess or what the launch says.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (grid.shared > kAlwaysShared) {
    const cudaError_t status = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                    cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                    static_cast<int>(grid.shared));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

}  // namespace fastdiff
