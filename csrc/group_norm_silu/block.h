// What a block of the CUDA kernels does with its part of a slab: load, statistics, output.
#pragma once

#include "moments.h"
#include "plan.h"

namespace fastdiff {

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, __half& to) { to = __float2half_rn(v); }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

__device__ __forceinline__ float silu(float z, float) {
  return divide(z, 1.0f + fminf(expf(-z), 8e37f));
}
// To a rounding of a short result.
template <class T>
__device__ __forceinline__ float silu(float z, T) {
  return fast_divide(z, 1.0f + fast_exp(-z));
}

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  T values[width];
};

__device__ inline float entry(const ChannelVector& v, std::int64_t sample, std::int64_t channel,
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

// z = (h - mean) * (gain * rstd) + offset, before the statistics are known.
struct Modulation {
  float gain, offset;
};

__device__ inline Modulation modulation(const GroupNormSiluParams& p, std::int64_t sample,
                                        std::int64_t channel) {
  const float scale = 1.0f + entry(p.scale, sample, channel, 0);
  return {entry(p.weight, 0, channel, 1) * scale,
          entry(p.bias, 0, channel, 0) * scale + entry(p.shift, sample, channel, 0)};
}

// Statistics of a group as the output needs them.
struct alignas(16) Normal {
  float mean, rest, rstd;
};

__device__ inline Normal normal_of(const Moments& m, double eps) {
  return {m.mean, m.rest, inverse_root(m.squares / m.count + static_cast<float>(eps))};
}

// z = (x - center) * slope + offset
struct alignas(16) Affine {
  float center, slope, offset;
};

__device__ inline Affine affine(const Normal& n, const Modulation& m, float added) {
  const float slope = m.gain * n.rstd;
  const float center = n.mean - added;
  const float carried = n.mean - center;
  const float lost = (n.mean - (center + carried)) + (carried - added);  // of the subtraction
  return {center, slope, m.offset - (n.rest + lost) * slope};
}

// Where a block stands.
struct Part {
  std::int64_t sample;
  int slab, part, rows;  // rows that it has
  std::int64_t first_row;

  __device__ Part(const Plan& plan, unsigned block) {
    const unsigned parts = plan.parts, slabs = plan.slabs, at = block / parts;
    part = static_cast<int>(block % parts);
    slab = static_cast<int>(at % slabs);
    sample = at / slabs;
    first_row = part * plan.rows_of_part;
    const std::int64_t left = plan.rows - first_row;
    rows = static_cast<int>(left < 0 ? 0 : left < plan.rows_of_part ? left : plan.rows_of_part);
  }
};

// A thread's column of vectors in its block's part: rows `row`, `row + down` and so on.
template <class T, int width, bool channels_last>
struct Column {
  using Packed = Pack<T, width>;
  std::int64_t first, stride;  // elements to vector (0, column), and from row to row
  int row, down, rows, across;
  int channel;  // of the first element of row 0
  unsigned plane;
  unsigned first_row;

  __device__ Column(const GroupNormSiluParams& p, const Plan& plan, const Part& part) {
    across = threadIdx.x % plan.across;
    row = threadIdx.x / plan.across;
    down = plan.down;
    rows = row < down ? part.rows : 0;
    channel = part.slab * plan.slab + (channels_last ? across * width : 0);
    plane = static_cast<unsigned>(p.spatial);
    first_row = static_cast<unsigned>(part.first_row);
    stride = channels_last ? p.channels : width;
    first = part.sample * p.channels * p.spatial + part.first_row * stride +
            (channels_last ? channel : channel * p.spatial);
  }

  // The rows that this thread has from `from` on, `down` apart.
  __device__ int count(int from = 0) const {
    const int start = row + from * down;
    return start < rows ? (rows - start - 1) / down + 1 : 0;
  }
  __device__ std::int64_t element(int i) const { return first + (row + i * down) * stride; }
  // The channel of all elements of vector i where the layout is contiguous.
  __device__ int channel_of(int i) const {
    return channel + (first_row + row + i * down) * width / plane;
  }
};

// Vectors in registers, the additions to them unmade.
template <class T, int width, int held, bool with_residual>
struct Held {
  Pack<T, width> x[held], residual[with_residual ? held : 1];

  template <class C>
  __device__ __forceinline__ void load(const GroupNormSiluParams& p, const C& column, int from,
                                       int count) {
    using Packed = Pack<T, width>;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (i < count) {
        const std::int64_t at = column.element(from + i);
        x[i] = *reinterpret_cast<const Packed*>(static_cast<const T*>(p.x) + at);
        if constexpr (with_residual) {
          residual[i] = *reinterpret_cast<const Packed*>(static_cast<const T*>(p.residual) + at);
        }
      }
    }
  }

  // Without this the widened values of one use would stay in registers until the next.
  __device__ __forceinline__ void forget() {
    if constexpr (sizeof(T) * width % 4 == 0 && sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < held; ++i) fastdiff::forget(x[i]);
    }
  }

  // x + residual - center
  __device__ __forceinline__ float from(float center, int i, int k) const {
    const float d = widen(x[i].values[k]) - center;
    return with_residual ? d + widen(residual[i].values[k]) : d;
  }
};

// Moments of the `count` held vectors, by pieces of width / pieces channels. `added` of a channel
// or, where the layout is contiguous, of a vector.
template <int width, int held, int pieces, bool channels_last, class H>
__device__ __forceinline__ void moments_of(H& h, int count, const float* added,
                                           Moments (&moments)[pieces]) {
  constexpr int kPiece = width / pieces;
  float pivot[pieces], offset[pieces];
  const float n = static_cast<float>(count * kPiece);
#pragma unroll
  for (int piece = 0; piece < pieces; ++piece) {
    const int at = piece * kPiece;
    pivot[piece] = count > 0 ? h.from(0, 0, at) + added[channels_last ? at : 0] : 0.0f;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (i < count) {
#pragma unroll
        for (int k = at; k < at + kPiece; ++k) {
          sum += h.from(pivot[piece] - added[channels_last ? k : i], i, k);
        }
      }
    }
    offset[piece] = count > 0 ? fast_divide(sum, n) : 0.0f;
  }
  h.forget();
#pragma unroll
  for (int piece = 0; piece < pieces; ++piece) {
    const int at = piece * kPiece;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < held; ++i) {
      if (i < count) {
#pragma unroll
        for (int k = at; k < at + kPiece; ++k) {
          const float d = h.from(pivot[piece] - added[channels_last ? k : i], i, k) - offset[piece];
          squares += d * d;
        }
      }
    }
    moments[piece] = moments_from(n, pivot[piece], offset[piece], squares);
  }
  h.forget();
}

// A block's shared memory: moments of its threads, of its groups, and what follows from them.
struct Shared {
  Moments *scratch, *totals;
  Normal* normals;
  Affine* table;

  __device__ explicit Shared(const Plan& plan) {
    scratch = reinterpret_cast<Moments*>(dynamic_shared());
    totals = scratch + plan.down * plan.columns;
    normals = reinterpret_cast<Normal*>(totals + plan.groups);
    table = reinterpret_cast<Affine*>(normals + plan.groups);
  }
  static std::size_t bytes(const Plan& plan, bool channels_last) {
    return (plan.down * plan.columns + plan.groups) * sizeof(Moments) +
           plan.groups * sizeof(Normal) + (channels_last ? 0 : plan.slab * sizeof(Affine));
  }
};

// The moments of each group of the slab, of this block's part, to `totals`; `scratch` holds
// [down][columns].
template <int pieces, class C>
__device__ __forceinline__ void merge_block(const Plan& plan, const C& column,
                                            const Moments (&own)[pieces], Moments* scratch,
                                            Moments* totals) {
  if (column.row < plan.down) {
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
      scratch[column.row * plan.columns + column.across * pieces + piece] = own[piece];
    }
  }
  __syncthreads();
  const int lane = threadIdx.x % kWarp, wide = plan.columns_of_group;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    Moments sum;
    for (int i = lane; i < plan.down * wide; i += kWarp) {
      sum = merge(sum, scratch[i / wide * plan.columns + group * wide + i % wide]);
    }
    sum = merge_lanes(sum);
    if (lane == 0) totals[group] = sum;
  }
}

// A thread's coefficients for the channels that it keeps to, or a table of the slab's channels in
// shared memory where vectors change channel from row to row.
template <int width, bool channels_last>
struct Coefficients {
  Affine own[channels_last ? width : 1];
  const Affine* table;

  template <class C>
  __device__ __forceinline__ const Affine& at(const C& column, int i, int k) const {
    return channels_last ? own[channels_last ? k : 0]
                         : table[column.channel_of(i) - column.channel];
  }
};

template <class T, int width, int held, bool channels_last, class H, class C>
__device__ __forceinline__ void write(const GroupNormSiluParams& p, const H& h, const C& column,
                                      int from, int count,
                                      const Coefficients<width, channels_last>& coefficients) {
  T* const y = static_cast<T*>(p.y);
  const bool activated = p.silu;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    if (i < count) {
      Pack<T, width> out;
      Affine a = coefficients.at(column, from + i, 0);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        if (channels_last) a = coefficients.at(column, from + i, k);
        const float z = fmaf(h.from(a.center, i, k), a.slope, a.offset);
        narrow(activated ? silu(z, T{}) : z, out.values[k]);
      }
      *reinterpret_cast<Pack<T, width>*>(y + column.element(from + i)) = out;
    }
  }
}

// What is known of a thread's channels before the statistics.
template <int width, bool channels_last>
struct Known {
  Modulation modulation[channels_last ? width : 1];
  float added[channels_last ? width : 1];

  __device__ Known(const GroupNormSiluParams& p, std::int64_t sample, int channel) {
    if constexpr (channels_last) {
#pragma unroll
      for (int k = 0; k < width; ++k) {
        modulation[k] = fastdiff::modulation(p, sample, channel + k);
        added[k] = entry(p.added, sample, channel + k, 0);
      }
    }
  }

  // Barriers of the block stand in here, contiguous layouts need them.
  __device__ Coefficients<width, channels_last> with(const GroupNormSiluParams& p, const Plan& plan,
                                                     const Part& part, int across,
                                                     const Shared& shared) const {
    Coefficients<width, channels_last> c;
    c.table = shared.table;
    if constexpr (channels_last) {
      const int depth = static_cast<int>(p.channels / p.groups);
#pragma unroll
      for (int k = 0; k < width; ++k) {
        const int group = min((across * width + k) / depth, plan.groups - 1);
        c.own[k] = affine(shared.normals[group], modulation[k], added[k]);
      }
    } else {
      for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
        const int channel = part.slab * plan.slab + i;
        shared.table[i] = affine(shared.normals[0], fastdiff::modulation(p, part.sample, channel),
                                 entry(p.added, part.sample, channel, 0));
      }
      __syncthreads();
    }
    return c;
  }
};

// What is added to the channel of each held vector of a contiguous layout.
template <int held, class C>
__device__ __forceinline__ void added_by_row(const GroupNormSiluParams& p, const Part& part,
                                             const C& column, int from, int count,
                                             float (&added)[held]) {
#pragma unroll
  for (int i = 0; i < held; ++i) {
    added[i] = 0;
    if (p.added.data != nullptr && i < count) {
      added[i] = entry(p.added, part.sample, column.channel_of(from + i), 0);
    }
  }
}

template <int width, int held, int pieces, bool channels_last, class H, class C>
__device__ __forceinline__ void moments_of(const GroupNormSiluParams& p, const Part& part,
                                           const C& column, H& h, int from, int count,
                                           const Known<width, channels_last>& known,
                                           Moments (&moments)[pieces]) {
  if constexpr (channels_last) {
    moments_of<width, held, pieces, true>(h, count, known.added, moments);
  } else {
    float added[held];
    added_by_row<held>(p, part, column, from, count, added);
    moments_of<width, held, pieces, false>(h, count, added, moments);
  }
}

__device__ inline void keep(const GroupNormSiluParams& p, const Plan& plan, const Part& part,
                            int group, const Normal& n) {
  const std::int64_t at = part.sample * p.groups + part.slab * plan.groups + group;
  p.mean[at] = n.mean;
  p.rstd[at] = n.rstd;
}

}  // namespace fastdiff
