// What a block of the CUDA kernels does with its part of a slab: load, statistics, output.
#pragma once

#include <type_traits>

#include "moments.h"
#include "plan.h"

namespace fastdiff {

__device__ __forceinline__ float silu(float z, float) {
  return divide(z, 1.0f + fminf(expf(-z), 8e37f));
}
// To a rounding of a short result.
template <class T>
__device__ __forceinline__ float silu(float z, T) {
  return fast_divide(z, 1.0f + fast_exp(-z));
}

// ---- packs of values, as words ----

template <class T, int width>
struct alignas(sizeof(T) * width) Pack {
  using Word = std::conditional_t<sizeof(T) * width % 4 == 0, std::uint32_t, std::uint16_t>;
  Word words[sizeof(T) * width / sizeof(Word)];
};

__device__ __forceinline__ float widen(float, std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ float widen(__nv_bfloat16, std::uint32_t bits) {
  return __uint_as_float(bits << 16);
}
__device__ __forceinline__ float widen(__half, std::uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

template <class T, int width>
__device__ __forceinline__ float value(const Pack<T, width>& pack, int k) {
  if constexpr (sizeof(T) == 4 || width == 1) return widen(T{}, pack.words[k]);
  const std::uint32_t pair = pack.words[k / 2];
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    if (k % 2 == 1) return __uint_as_float(pair & 0xffff0000u);
  }
  return widen(T{}, k % 2 == 1 ? pair >> 16 : pair & 0xffffu);
}

__device__ __forceinline__ std::uint32_t narrow(float, float v) { return __float_as_uint(v); }
__device__ __forceinline__ std::uint32_t narrow(__half, float v) {
  return __half_as_ushort(__float2half_rn(v));
}
__device__ __forceinline__ std::uint32_t narrow(__nv_bfloat16, float v) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
__device__ __forceinline__ std::uint32_t narrow(__half, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}
__device__ __forceinline__ std::uint32_t narrow(__nv_bfloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

template <class T, int width>
__device__ __forceinline__ Pack<T, width> pack(const float (&values)[width]) {
  Pack<T, width> packed;
  if constexpr (sizeof(T) == 2 && width > 1) {
#pragma unroll
    for (int k = 0; k < width; k += 2) {
      packed.words[k / 2] = narrow(T{}, values[k], values[k + 1]);
    }
  } else {
#pragma unroll
    for (int k = 0; k < width; ++k) packed.words[k] = narrow(T{}, values[k]);
  }
  return packed;
}

// ---- a channel's coefficients ----

// An entry of a channel vector, loaded and not yet looked at, so that loads do not wait for each
// other.
struct Entry {
  std::uint32_t bits;
  const ChannelVector& of;

  __device__ __forceinline__ Entry(const ChannelVector& v, std::int64_t sample,
                                   std::int64_t channel)
      : bits(0), of(v) {
    if (v.data == nullptr) return;
    const std::int64_t i = sample * v.sample_stride + channel * v.channel_stride;
    if (v.dtype == DType::float32) {
      bits = static_cast<const std::uint32_t*>(v.data)[i];
    } else {
      bits = static_cast<const std::uint16_t*>(v.data)[i];
    }
  }

  __device__ __forceinline__ float value(float absent) const {
    if (of.data == nullptr) return absent;
    if (of.dtype == DType::float32) return widen(0.0f, bits);
    if (of.dtype == DType::bfloat16) return widen(__nv_bfloat16{}, bits);
    return widen(__half{}, bits);
  }
};

// z = (x - center) * slope + offset. Before the statistics are known: what is added to x, the
// factor of the normal value and the offset.
struct alignas(16) Affine {
  float center, slope, offset;
};

__device__ __forceinline__ Affine before_statistics(const GroupNormSiluParams& p,
                                                    std::int64_t sample, std::int64_t channel) {
  const Entry added(p.added, sample, channel), weight(p.weight, 0, channel),
      bias(p.bias, 0, channel), scale(p.scale, sample, channel), shift(p.shift, sample, channel);
  const float factor = 1.0f + scale.value(0);
  return {added.value(0), weight.value(1) * factor, bias.value(0) * factor + shift.value(0)};
}

__device__ __forceinline__ Affine with_statistics(const Affine& a, const Moments& m, float rstd) {
  const float slope = a.slope * rstd, added = a.center;
  const float center = m.mean - added;
  const float carried = m.mean - center;
  const float lost = (m.mean - (center + carried)) + (carried - added);  // of the subtraction
  return {center, slope, a.offset - (m.rest + lost) * slope};
}

// ---- a block's place ----

struct Part {
  std::int64_t sample, first_row;
  int slab, part, rows;  // rows that it has

  __device__ __forceinline__ Part(const Plan& plan, unsigned block) {
    const unsigned parts = plan.parts, slabs = plan.slabs, at = block / parts;
    part = static_cast<int>(block % parts);
    slab = static_cast<int>(at % slabs);
    sample = at / slabs;
    first_row = part * plan.rows_of_part;
    const std::int64_t left = plan.rows - first_row;
    rows = static_cast<int>(left < 0 ? 0 : left < plan.rows_of_part ? left : plan.rows_of_part);
  }
  __device__ int first_channel(const Plan& plan) const { return slab * plan.slab; }
};

// A thread's column of vectors in its block's part: rows `row`, `row + down` and so on.
template <int width, bool channels_last>
struct Column {
  std::int64_t first;  // elements to vector (0, column)
  unsigned stride;     // and from row to row
  int row, down, rows, across;
  unsigned plane, first_row;

  __device__ __forceinline__ Column(const GroupNormSiluParams& p, const Plan& plan,
                                    const Part& part) {
    const unsigned wide = plan.across;
    across = channels_last ? threadIdx.x % wide : 0;
    row = channels_last ? threadIdx.x / wide : threadIdx.x;
    down = plan.down;
    rows = row < down ? part.rows : 0;
    plane = static_cast<unsigned>(p.spatial);
    first_row = static_cast<unsigned>(part.first_row);
    stride = channels_last ? static_cast<unsigned>(p.channels) : width;
    const std::int64_t channel = part.first_channel(plan);
    first = part.sample * p.channels * p.spatial + part.first_row * stride +
            (channels_last ? channel + across * width : channel * p.spatial);
  }

  // How many rows this thread has.
  __device__ int count() const {
    return row < rows ? static_cast<int>(static_cast<unsigned>(rows - row - 1) / down) + 1 : 0;
  }
  __device__ std::int64_t element(int i) const {
    return first + static_cast<unsigned>(row + i * down) * stride;
  }
  // The slab's channel in which element k of vector i lies.
  __device__ int channel(int i, int k) const {
    return channels_last ? across * width + k : (first_row + row + i * down) * width / plane;
  }
};

// A block's shared memory: moments of its threads and of its groups, coefficients of its channels,
// and the vectors that it holds.
struct Shared {
  Moments *scratch, *totals;
  Affine* table;
  unsigned char* slots;

  __device__ __forceinline__ explicit Shared(const Plan& plan) {
    scratch = reinterpret_cast<Moments*>(dynamic_shared());
    totals = scratch + plan.down * plan.columns;
    table = reinterpret_cast<Affine*>(totals + 2 * plan.groups);
    slots = reinterpret_cast<unsigned char*>(table + plan.slab);
  }
  __device__ Moments* finals(const Plan& plan) const { return totals + plan.groups; }
  static std::size_t bytes(const Plan& plan) {
    return (plan.down * plan.columns + 2 * plan.groups) * sizeof(Moments) +
           plan.slab * sizeof(Affine) + plan.held_bytes;
  }
};

__device__ __forceinline__ void load_table(const GroupNormSiluParams& p, const Plan& plan,
                                           const Part& part, const Shared& shared) {
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    shared.table[i] = before_statistics(p, part.sample, part.first_channel(plan) + i);
  }
}

// ---- vectors, and sums over them ----

// x and what is added to it of one vector.
template <class T, int width, bool with_residual>
struct Vector {
  Pack<T, width> x, residual;

  // x + residual - center
  __device__ __forceinline__ float from(float center, int k) const {
    const float own = value(x, k);
    if constexpr (!with_residual) return own - center;
    const float other = value(residual, k);
    const float sum = own + other, carried = sum - own;
    return (sum - center) + ((own - (sum - carried)) + (other - carried));
  }
};

template <class T, int width, bool with_residual>
__device__ __forceinline__ Vector<T, width, with_residual> load_at(const GroupNormSiluParams& p,
                                                                   std::int64_t element) {
  using Packed = Pack<T, width>;
  Vector<T, width, with_residual> v;
  v.x = *reinterpret_cast<const Packed*>(static_cast<const T*>(p.x) + element);
  if constexpr (with_residual) {
    v.residual = *reinterpret_cast<const Packed*>(static_cast<const T*>(p.residual) + element);
  }
  return v;
}

template <class T, int width, bool with_residual, class C>
__device__ __forceinline__ Vector<T, width, with_residual> load(const GroupNormSiluParams& p,
                                                                const C& column, int i) {
  return load_at<T, width, with_residual>(p, column.element(i));
}

// A thread's own vectors in shared memory, `threads` apart: no other thread reads them.
template <class T, int width>
struct Slots {
  using Packed = Pack<T, width>;
  Packed* first;
  int threads;

  __device__ __forceinline__ Slots(unsigned char* shared)
      : first(reinterpret_cast<Packed*>(shared) + threadIdx.x), threads(blockDim.x) {}

  template <class C>
  __device__ __forceinline__ void request(const void* tensor, const C& column, int count) const {
    const auto* const elements = static_cast<const T*>(tensor);
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const auto* const from = reinterpret_cast<const Packed*>(elements + column.element(i));
      if constexpr (sizeof(Packed) == 16) {
        copy_async(first + i * threads, from);
      } else {
        first[i * threads] = *from;
      }
    }
    commit_copies();
  }
  __device__ __forceinline__ Vector<T, width, false> operator[](int i) const {
    return {first[i * threads], {}};
  }
};

// What is added to a vector's channels; none unless `asked`.
template <int width, bool channels_last>
struct Added {
  float values[channels_last ? width : 1];
  const Affine* table;

  template <class C>
  __device__ __forceinline__ Added(bool asked, const Shared& shared, const C& column)
      : table(asked ? shared.table : nullptr) {
    if constexpr (channels_last) {
#pragma unroll
      for (int k = 0; k < width; ++k) values[k] = asked ? table[column.channel(0, k)].center : 0;
    }
  }
  // Of vector i: where the layout is contiguous all its elements are of one channel.
  template <class C>
  __device__ __forceinline__ void turn_to(const C& column, int i) {
    if constexpr (!channels_last) {
      values[0] = table == nullptr ? 0 : table[column.channel(i, 0)].center;
    }
  }
  __device__ __forceinline__ float at(int k) const { return values[channels_last ? k : 0]; }
};

// Sums by pieces of width / pieces channels.
template <int width, int pieces>
struct Sums {
  float at[pieces] = {};

  template <class V, class A>
  __device__ __forceinline__ void add(const V& v, const A& added, const float (&pivot)[pieces]) {
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const int piece = k / (width / pieces);
      at[piece] += v.from(pivot[piece] - added.at(k), k);
    }
  }
  template <class V, class A>
  __device__ __forceinline__ void add_squares(const V& v, const A& added,
                                              const float (&center)[pieces]) {
#pragma unroll
    for (int k = 0; k < width; ++k) {
      const int piece = k / (width / pieces);
      const float d = v.from(center[piece] - added.at(k), k);
      at[piece] += d * d;
    }
  }
};

// A value of each piece, from which sums are taken.
template <int width, int pieces, class V, class A>
__device__ __forceinline__ void pivots_of(const V& v, const A& added, float (&pivot)[pieces]) {
#pragma unroll
  for (int piece = 0; piece < pieces; ++piece) {
    const int k = piece * (width / pieces);
    pivot[piece] = v.from(0, k) + added.at(k);
  }
}

// The moments of each group of the slab, of this block's part, to `totals`.
template <int pieces, class C>
__device__ __forceinline__ void merge_block(const GroupNormSiluParams& p, const Plan& plan,
                                            const Part& part, const C& column,
                                            const Moments (&own)[pieces], Moments* scratch,
                                            Moments* totals) {
  if (column.row < plan.down) {
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
      scratch[column.row * plan.columns + column.across * pieces + piece] = own[piece];
    }
  }
  __syncthreads();
  const unsigned wide = plan.columns_of_group;
  const float count = static_cast<float>(part.rows) * plan.values_of_row;
  for (int group = threadIdx.x / kWarp; group < plan.groups; group += blockDim.x / kWarp) {
    const Moments* const first = scratch + group * wide;
    const Moments total = merge(plan.down * wide, count, *first, [&](unsigned i) {
      return wide == 1 ? first[i * plan.columns] : first[i / wide * plan.columns + i % wide];
    });
    if (threadIdx.x % kWarp == 0) totals[group] = part.rows > 0 ? total : Moments{};
  }
}

// By one lane of a group: its statistics for the caller of the op, and 1 / std kept in place of M2.
__device__ __forceinline__ Moments finish(const GroupNormSiluParams& p, const Plan& plan,
                                          const Part& part, int group, Moments m) {
  m.squares = inverse_root(divide(m.squares, m.count) + static_cast<float>(p.eps));
  if (part.part == 0) {
    const std::int64_t at = part.sample * p.groups + part.slab * plan.groups + group;
    p.mean[at] = m.mean;
    p.rstd[at] = m.squares;
  }
  return m;
}

// Barriers stand around: finals are written before, the table is read after.
__device__ __forceinline__ void finish_table(const GroupNormSiluParams& p, const Plan& plan,
                                             const Shared& shared) {
  __syncthreads();
  const unsigned depth = plan.slab / plan.groups;
  for (int i = threadIdx.x; i < plan.slab; i += blockDim.x) {
    const Moments m = shared.finals(plan)[i / depth];
    shared.table[i] = with_statistics(shared.table[i], m, m.squares);
  }
  __syncthreads();
}

template <int width, bool channels_last>
struct Coefficients {
  Affine own[channels_last ? width : 1];
  const Affine* table;

  template <class C>
  __device__ __forceinline__ Coefficients(const Shared& shared, const C& column)
      : table(shared.table) {
    if constexpr (channels_last) {
#pragma unroll
      for (int k = 0; k < width; ++k) own[k] = table[column.channel(0, k)];
    }
  }
};

template <class T, int width, bool channels_last, class V, class C>
__device__ __forceinline__ void write(const GroupNormSiluParams& p, const V& v, const C& column,
                                      int i,
                                      const Coefficients<width, channels_last>& coefficients) {
  float out[width];
  Affine a;
  if constexpr (!channels_last) a = coefficients.table[column.channel(i, 0)];
#pragma unroll
  for (int k = 0; k < width; ++k) {
    if constexpr (channels_last) a = coefficients.own[k];
    const float z = fmaf(v.from(a.center, k), a.slope, a.offset);
    out[k] = p.silu ? silu(z, T{}) : z;
  }
  T* const y = static_cast<T*>(p.y) + column.element(i);
  *reinterpret_cast<Pack<T, width>*>(y) = pack<T>(out);
}

}  // namespace fastdiff
