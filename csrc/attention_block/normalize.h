// GroupNorm of an image in shared memory.
#pragma once

#include "params.h"
#include "tiles.h"

namespace fastdiff::attention {

__device__ inline float entry(const ChannelVector& v, int channel, float absent) {
  if (v.data == nullptr) return absent;
  const std::int64_t i = channel * v.channel_stride;
  switch (v.dtype) {
    case DType::float32:
      return static_cast<const float*>(v.data)[i];
    case DType::float16:
      return __half2float(static_cast<const __half*>(v.data)[i]);
    default:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(v.data)[i]);
  }
}

// A thread's part of [rows, channels]: one chunk of channels, and every `strides`th row.
struct Share {
  int chunk, first_row, stride;

  __device__ explicit Share(int channels) {
    const int chunks = channels / 8;
    stride = kThreads / chunks;
    chunk = threadIdx.x % chunks;
    first_row = threadIdx.x / chunks;
  }
  __device__ bool idle() const { return first_row >= stride; }
  static __device__ int rows(int first, int stride, int tokens) {
    return first < tokens ? (tokens - first - 1) / stride + 1 : 0;
  }
};

// Requests [tokens, C] and zeros up to `rows`, in one group of copies.
template <int pitch, class T>
__device__ void request_image(T* panel, const T* x, const Share& share, int tokens, int rows,
                              int channels) {
  if (!share.idle()) {
    for (int row = share.first_row; row < rows; row += share.stride) {
      const bool present = row < tokens;
      copy_async(panel + place<pitch>(row, share.chunk),
                 x + (present ? row * channels : 0) + share.chunk * 8, present);
    }
  }
  commit_copies();
}

struct Moments {
  float mean, squares;  // squares: sum of (value - mean)^2
};

// Moments of eight channels over the thread's rows: sums are of value - pivot, a value of the
// channel, so that a common offset cancels exactly.
template <int pitch, class T>
__device__ void moments_of_share(const T* panel, const Share& share, int tokens,
                                 Moments (&moments)[8]) {
  float pivot[8] = {}, sum[8] = {}, squares[8] = {}, value[8];
  const int rows = Share::rows(share.first_row, share.stride, tokens);
  if (rows > 0) widen<T>(chunk_at(panel, place<pitch>(share.first_row, share.chunk)), pivot);
  for (int row = share.first_row; row < tokens; row += share.stride) {
    widen<T>(chunk_at(panel, place<pitch>(row, share.chunk)), value);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float d = value[k] - pivot[k];
      sum[k] += d;
      squares[k] += d * d;
    }
  }
  const float count = static_cast<float>(max(rows, 1));
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const float from_pivot = sum[k] / count;
    moments[k] = {pivot[k] + from_pivot, fmaxf(squares[k] - sum[k] * from_pivot, 0.0f)};
  }
}

// Scratch holds [share.stride][channels] moments of the threads' shares. Leaves a channel's moments
// in its first row.
__device__ inline void merge_shares(Moments* scratch, int stride, int tokens, int channels) {
  for (int channel = threadIdx.x; channel < channels; channel += kThreads) {
    float mean = 0, squares = 0;
    for (int i = 0; i < stride; ++i) {
      mean += scratch[i * channels + channel].mean * Share::rows(i, stride, tokens);
    }
    mean /= tokens;
    for (int i = 0; i < stride; ++i) {
      const Moments part = scratch[i * channels + channel];
      const float d = part.mean - mean;
      squares += part.squares + d * d * Share::rows(i, stride, tokens);
    }
    scratch[channel] = {mean, squares};
  }
}

// normal = (x - mean) * scale + bias
struct Affine {
  float mean, scale, bias;
};

__device__ inline Affine affine_of_channel(const AttentionBlockParams& p, const Moments* channels,
                                           int channel) {
  const int depth = p.channels / p.groups;
  const Moments* group = channels + channel / depth * depth;
  float mean = 0, squares = 0;
  for (int i = 0; i < depth; ++i) mean += group[i].mean;
  mean /= depth;
  for (int i = 0; i < depth; ++i) {
    const float d = group[i].mean - mean;
    squares += group[i].squares + d * d * p.tokens;
  }
  const float variance = squares / (static_cast<float>(depth) * p.tokens);
  return {mean, entry(p.norm_weight, channel, 1) / sqrtf(variance + p.eps),
          entry(p.norm_bias, channel, 0)};
}

// Normalises the image in its panel. `scratch` holds 16 KB; barriers stand between its uses, and
// none at the end.
template <int pitch, class T>
__device__ void normalize(const AttentionBlockParams& p, T* panel, const Share& share,
                          unsigned char* scratch) {
  auto* const moments = reinterpret_cast<Moments*>(scratch);
  auto* const affines = reinterpret_cast<Affine*>(moments + p.channels);
  if (!share.idle()) {
    Moments own[8];
    moments_of_share<pitch>(panel, share, p.tokens, own);
    for (int k = 0; k < 8; ++k) {
      moments[share.first_row * p.channels + share.chunk * 8 + k] = own[k];
    }
  }
  __syncthreads();
  merge_shares(moments, share.stride, p.tokens, p.channels);
  __syncthreads();
  for (int channel = threadIdx.x; channel < p.channels; channel += kThreads) {
    affines[channel] = affine_of_channel(p, moments, channel);
  }
  __syncthreads();
  if (share.idle()) return;
  Affine affine[8];
#pragma unroll
  for (int k = 0; k < 8; ++k) affine[k] = affines[share.chunk * 8 + k];
  for (int row = share.first_row; row < p.tokens; row += share.stride) {
    Chunk& chunk = chunk_at(panel, place<pitch>(row, share.chunk));
    float value[8];
    widen<T>(chunk, value);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      value[k] = fmaf(value[k] - affine[k].mean, affine[k].scale, affine[k].bias);
    }
    chunk = narrow<T>(value);
  }
}

}  // namespace fastdiff::attention
