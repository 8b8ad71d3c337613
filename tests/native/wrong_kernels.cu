// Kernels that each do one thing wrong, so that tests can see it reported.
#include <cstring>

#include "../../csrc/common/device.h"

namespace fastdiff {
namespace {

__device__ float* shared() { return reinterpret_cast<float*>(dynamic_shared()); }

// Right: the others differ from it by one fault.
__global__ void turned_round(float* x, int n) {
  const int i = threadIdx.x;
  shared()[i] = x[i];
  __syncthreads();
  x[i] = shared()[n - 1 - i];
}

__global__ void read_past_global(float* x, int n) { shared()[threadIdx.x] = x[threadIdx.x + 1]; }

__global__ void write_past_global(float* x, int n) { x[threadIdx.x + 1] = 0; }

__global__ void read_past_shared(float* x, int n) {
  shared()[threadIdx.x] = 0;
  __syncthreads();
  x[threadIdx.x] = shared()[threadIdx.x + 1];
}

__global__ void read_unwritten(float* x, int n) { x[threadIdx.x] = shared()[threadIdx.x]; }

__global__ void forget_barrier(float* x, int n) {
  const int i = threadIdx.x;
  shared()[i] = x[i];
  x[i] = shared()[n - 1 - i];
}

__global__ void forget_second_barrier(float* x, int n) {
  turned_round(x, n);
  shared()[threadIdx.x] = 0;
}

__global__ void barrier_of_a_warp_alone(float* x, int n) {
  const int i = threadIdx.x;
  shared()[i] = x[i];
  __syncwarp();
  x[i] = shared()[n - 1 - i];
}

__global__ void barrier_of_a_part(float* x, int n) {
  if (threadIdx.x != 7) __syncthreads();
}

__global__ void shuffle_of_a_part(float* x, int n) {
  if (threadIdx.x % 2 == 0) {
    x[threadIdx.x] = __shfl_sync(0xffffffffu, 1.0f, 0);
  } else {
    __syncwarp();
  }
}

__global__ void forget_to_wait(float* x, int n) {
  float* const to = shared() + 4 * threadIdx.x;
  copy_async(to, x + threadIdx.x / 4 * 4);
  commit_copies();
  wait_copies<1>();
  x[threadIdx.x] = to[0];
}

__global__ void misaligned(float* x, int n) {
  struct alignas(16) Four {
    float of[4];
  };
  reinterpret_cast<Four*>(x + 1)->of[0] = 0;
}

__global__ void write_same_place(float* x, int n) {
  if (threadIdx.x == 0) x[0] = static_cast<float>(blockIdx.x);
}

__global__ void leave_cluster_early(float* x, int n) {
  shared()[threadIdx.x] = 0;
  x[blockIdx.x * n + threadIdx.x] = read_of_cluster(shared() + threadIdx.x, 1 - cluster_rank());
}

const struct {
  const char* name;
  void (*kernel)(float*, int);
  unsigned blocks = 1, cluster = 1;
} kKernels[] = {{"turned_round", turned_round},
                {"read_past_global", read_past_global},
                {"write_past_global", write_past_global},
                {"read_past_shared", read_past_shared},
                {"read_unwritten", read_unwritten},
                {"forget_barrier", forget_barrier},
                {"forget_second_barrier", forget_second_barrier},
                {"barrier_of_a_warp_alone", barrier_of_a_warp_alone},
                {"barrier_of_a_part", barrier_of_a_part},
                {"shuffle_of_a_part", shuffle_of_a_part},
                {"forget_to_wait", forget_to_wait},
                {"misaligned", misaligned},
                {"write_same_place", write_same_place, 2},
                {"leave_cluster_early", leave_cluster_early, 2, 2}};

}  // namespace
}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) const char* wrong_kernel(const char* name,
                                                                           float* x, int n) {
  using namespace fastdiff;
  for (const auto& wrong : kKernels) {
    if (std::strcmp(wrong.name, name) != 0) continue;
    const std::size_t shared = n * sizeof(float) * (wrong.kernel == forget_to_wait ? 4 : 1);
    const Grid grid{dim3(wrong.blocks), static_cast<unsigned>(n), shared, wrong.cluster};
    const cudaError_t status = launch(wrong.kernel, grid, nullptr, x, n);
    return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
  }
  return "there is no such kernel";
}
