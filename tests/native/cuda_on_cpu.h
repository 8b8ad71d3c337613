// The part of CUDA that the kernels use, for a C++ compiler: csrc/common/device.h takes this file
// where nvcc is not the compiler. Calls of the runtime answer for the GPU that the test asked for.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "ptx_on_cpu.h"
#include "short_floats.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }

// Exact where a GPU approximates: what an approximation costs, only a GPU shows.
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }

void __syncthreads();
void __syncwarp();
float __shfl_sync(unsigned mask, float value, unsigned from);
float __shfl_xor_sync(unsigned mask, float value, unsigned other);

// ---- the runtime ----

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorLaunchFailure };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrClusterLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    uint3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
const char* cudaGetErrorString(cudaError_t error);

namespace on_cpu {
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*thread)(const void*), const void* argument);
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  // Parameters come to each thread from outside of what it may read.
  const auto thread = [&]() __attribute__((no_sanitize("thread"))) { kernel(arguments...); };
  const auto call = [](const void* body) __attribute__((no_sanitize("thread"))) {
    (*static_cast<decltype(&thread)>(body))();
  };
  return on_cpu::launch(*config, reinterpret_cast<const void*>(kernel), call, &thread);
}
