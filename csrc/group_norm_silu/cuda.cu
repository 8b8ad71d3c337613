// One block a (sample, group): mean, then variance about it, then the output. The slab is read
// three times, the later ones from cache where it fits; the order of every sum is fixed.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "params.h"

namespace fastdiff {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr std::int64_t kMaxBlocks = 1 << 20;

__device__ float widen(float v) { return v; }
__device__ float widen(__half v) { return __half2float(v); }
__device__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ void narrow(float v, float& to) { to = v; }
__device__ void narrow(float v, __half& to) { to = __float2half_rn(v); }
__device__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T values[width];
};

__device__ float entry(const ChannelVector& v, std::int64_t sample, std::int64_t channel,
                       float absent) {
  if (v.data == nullptr) return absent;
  const std::int64_t i = sample * v.sample_stride + channel * v.channel_stride;
  switch (v.dtype) {
    case DType::float32:
      return static_cast<const float*>(v.data)[i];
    case DType::float16:
      return widen(static_cast<const __half*>(v.data)[i]);
    default:
      return widen(static_cast<const __nv_bfloat16*>(v.data)[i]);
  }
}

// The block's total, the same bits in every thread. `partial` holds a float a warp.
__device__ float block_sum(float value, float* partial) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  __syncthreads();  // `partial` may still be read from the sum before
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) total += partial[warp];
  return total;
}

// Where pack i of a slab lies, and the first channel that it holds.
template <int width, bool channels_last>
struct Slab {
  std::int64_t base, first_channel, depth, channels, spatial;

  __device__ std::int64_t packs() const { return depth * spatial / width; }
  __device__ std::int64_t element(std::int64_t i) const {
    if (!channels_last) return base + i * width;
    const std::int64_t at = i * width;
    return base + at / depth * channels + at % depth;
  }
  __device__ std::int64_t channel(std::int64_t i) const {
    const std::int64_t at = i * width;
    return first_channel + (channels_last ? at % depth : at / spatial);
  }
};

template <class T, int width, bool channels_last>
__global__ void __launch_bounds__(kThreads) kernel(const GroupNormSiluParams p) {
  using Packed = Pack<T, width>;
  __shared__ float partial[kThreads / kWarp];
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  const std::int64_t depth = p.channels / p.groups;
  const float count = static_cast<float>(depth * p.spatial);

  for (std::int64_t slab_index = blockIdx.x; slab_index < p.batch * p.groups;
       slab_index += gridDim.x) {
    const std::int64_t sample = slab_index / p.groups, group = slab_index % p.groups;
    const std::int64_t sample_base = sample * p.channels * p.spatial;
    const Slab<width, channels_last> slab{
        sample_base + group * depth * (channels_last ? 1 : p.spatial), group * depth, depth,
        p.channels, p.spatial};
    const auto load = [&](std::int64_t i) {
      return *reinterpret_cast<const Packed*>(x + slab.element(i));
    };
    // Sums are of x - origin, with origin a value of the slab: a large common offset cancels
    // exactly.
    const float origin = widen(x[slab.element(0)]);

    float sum = 0;
    for (std::int64_t i = threadIdx.x; i < slab.packs(); i += kThreads) {
      const Packed pack = load(i);
      for (int k = 0; k < width; ++k) sum += widen(pack.values[k]) - origin;
    }
    const float mean = block_sum(sum, partial) / count;  // from origin
    float squares = 0;
    for (std::int64_t i = threadIdx.x; i < slab.packs(); i += kThreads) {
      const Packed pack = load(i);
      for (int k = 0; k < width; ++k) {
        const float d = widen(pack.values[k]) - origin - mean;
        squares += d * d;
      }
    }
    const float variance = block_sum(squares, partial) / count;
    const float rstd = 1.0f / sqrtf(variance + static_cast<float>(p.eps));
    if (threadIdx.x == 0) {
      p.mean[slab_index] = origin + mean;
      p.rstd[slab_index] = rstd;
    }

    for (std::int64_t i = threadIdx.x; i < slab.packs(); i += kThreads) {
      const Packed pack = load(i);
      Packed out;
      for (int k = 0; k < width; ++k) {
        const std::int64_t channel = slab.channel(i) + (channels_last ? k : 0);
        const float modulation = 1.0f + entry(p.scale, sample, channel, 0);
        const float normal = (widen(pack.values[k]) - origin - mean) * rstd;
        const float affine = normal * entry(p.weight, 0, channel, 1) + entry(p.bias, 0, channel, 0);
        const float z = affine * modulation + entry(p.shift, sample, channel, 0);
        narrow(p.silu ? z / (1.0f + expf(-z)) : z, out.values[k]);
      }
      *reinterpret_cast<Packed*>(y + slab.element(i)) = out;
    }
  }
}

template <class T, bool channels_last>
void launch(const GroupNormSiluParams& p, cudaStream_t stream) {
  constexpr int kWide = 16 / sizeof(T);
  // Contiguous packs must not straddle channels, channels-last packs must not straddle groups.
  const std::int64_t run = channels_last ? p.channels / p.groups : p.spatial;
  const auto address =
      reinterpret_cast<std::uintptr_t>(p.x) | reinterpret_cast<std::uintptr_t>(p.y);
  const auto blocks = static_cast<unsigned>(std::min(p.batch * p.groups, kMaxBlocks));
  if (run % kWide == 0 && address % 16 == 0) {
    kernel<T, kWide, channels_last><<<blocks, kThreads, 0, stream>>>(p);
  } else {
    kernel<T, 1, channels_last><<<blocks, kThreads, 0, stream>>>(p);
  }
}

template <class T>
void launch(const GroupNormSiluParams& p, cudaStream_t stream) {
  p.channels_last ? launch<T, true>(p, stream) : launch<T, false>(p, stream);
}

}  // namespace

const char* group_norm_silu_cuda(const GroupNormSiluParams& p, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (p.dtype) {
    case DType::float32:
      launch<float>(p, stream);
      break;
    case DType::float16:
      launch<__half>(p, stream);
      break;
    case DType::bfloat16:
      launch<__nv_bfloat16>(p, stream);
      break;
  }
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastdiff
