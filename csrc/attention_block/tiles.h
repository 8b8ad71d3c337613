// Matrix products of a block of warps: operands in shared memory, sums in registers.
#pragma once

#include "../common/device.h"

namespace fastdiff::attention {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kDepth = 32;  // of the slices in which weights come

// ---- 16-bit values, two in a word and eight in a chunk ----

struct alignas(16) Chunk {
  std::uint32_t pairs[4];
};

template <class T>
struct Pair;

template <>
struct Pair<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ Type narrow(float low, float high) { return __floats2bfloat162_rn(low, high); }
};

template <>
struct Pair<__half> {
  using Type = __half2;
  static __device__ Type narrow(float low, float high) { return __floats2half2_rn(low, high); }
};

template <class T>
__device__ __forceinline__ std::uint32_t narrow(float low, float high) {
  const typename Pair<T>::Type pair = Pair<T>::narrow(low, high);
  return reinterpret_cast<const std::uint32_t&>(pair);
}

template <class T>
__device__ __forceinline__ void widen(std::uint32_t bits, float& low, float& high) {
  const auto& pair = reinterpret_cast<const typename Pair<T>::Type&>(bits);
  low = __low2float(pair);
  high = __high2float(pair);
}

template <class T>
__device__ __forceinline__ void widen(const Chunk& chunk, float (&values)[8]) {
  for (int k = 0; k < 4; ++k) widen<T>(chunk.pairs[k], values[2 * k], values[2 * k + 1]);
}

template <class T>
__device__ __forceinline__ Chunk narrow(const float (&values)[8]) {
  Chunk chunk;
  for (int k = 0; k < 4; ++k) chunk.pairs[k] = narrow<T>(values[2 * k], values[2 * k + 1]);
  return chunk;
}

// ---- panels: rows of `pitch` values in shared memory ----

// The chunks of a row trade places by this, so that neither eight successive rows nor a thread's
// interleaved columns (below) meet in a bank.
__device__ __forceinline__ int swizzle(int row) {
  return (row & 1) << 2 | ((row >> 1 ^ row >> 3) & 3);
}

template <int pitch>
constexpr int kSwizzled = pitch % 64 == 0 ? 7 : 3;  // a row of 32 values has four chunks

template <int pitch>
__device__ __forceinline__ int place(int row, int chunk) {
  return row * pitch + (chunk ^ (swizzle(row) & kSwizzled<pitch>)) * 8;
}

template <class T>
__device__ __forceinline__ Chunk& chunk_at(T* panel, int offset) {
  return *reinterpret_cast<Chunk*>(panel + offset);
}

template <class T>
__device__ __forceinline__ const Chunk& chunk_at(const T* panel, int offset) {
  return *reinterpret_cast<const Chunk*>(panel + offset);
}

// ---- operands of mma.m16n8k16, sixteen rows or columns at a time ----

// A warp's walk over a panel whose rows run along k. Interleaved, columns 2 q, 2 q + 1 of four
// successive tiles are columns 8 q to 8 q + 7 of the product, so that a thread's sums lie together.
template <int pitch, bool interleaved>
struct AlongRows {
  int offset, chunk;

  __device__ explicit AlongRows(int first_row) {
    const int lane = threadIdx.x % kWarp;
    const int row =
        first_row + (interleaved ? lane % 8 / 2 * 8 + lane / 16 * 2 + lane % 2 : lane % 16);
    offset = row * pitch;
    chunk = (swizzle(row) & kSwizzled<pitch>)^(interleaved ? lane / 8 % 2 : lane / 16);
  }

  template <class T>
  __device__ void load(std::uint32_t (&to)[4], const T* panel, int sixteen, int k) const {
    const int rows = interleaved ? sixteen / 2 * 32 + sixteen % 2 * 4 : sixteen * 16;
    load_matrices<false>(to,
                         panel + offset + rows * pitch + ((k / 8) ^ chunk ^ (sixteen % 2 * 2)) * 8);
  }
};

// A warp's walk over a panel whose rows run across k.
template <int pitch>
struct AcrossRows {
  int offset, chunk;

  __device__ explicit AcrossRows(int first_column) {
    const int lane = threadIdx.x % kWarp;
    offset = lane % 16 * pitch;
    chunk = (first_column / 8) ^ swizzle(lane % 16) ^ (lane / 16);
  }

  template <class T>
  __device__ void load(std::uint32_t (&to)[4], const T* panel, int sixteen, int k) const {
    load_matrices<true>(
        to, panel + offset + k * pitch + (chunk ^ (k / 16 % 2 * 2) ^ (sixteen * 2)) * 8);
  }
};

template <int M, int N>
struct Fragments {
  std::uint32_t a[M / 16][4], b[N / 16][4];

  template <class T, class A, class B>
  __device__ __forceinline__ void load(const A& walk_a, const T* panel_a, int k_a, const B& walk_b,
                                       const T* panel_b, int k_b) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) walk_a.load(a[i], panel_a, i, k_a);
#pragma unroll
    for (int j = 0; j < N / 16; ++j) walk_b.load(b[j], panel_b, j, k_b);
  }
};

// ---- sums: a warp's M x N part of a product ----

// How eight warps share a product of `rows` x `columns`.
template <int rows, int columns>
struct Grid8 {
  static constexpr int N = columns <= 128 || (columns == 256 && rows == 32) ? 32 : 64;
  static constexpr int across = columns / N;
  static constexpr int M = columns == 64 ? 16 : rows * across / kWarps;
  static constexpr int down = rows / M;

  static __device__ int row() { return threadIdx.x / kWarp / across * M; }
  static __device__ int column() { return threadIdx.x / kWarp % across * N; }
  static __device__ bool idle() { return threadIdx.x / kWarp >= across * down; }
};

template <int M, int N>
struct Sums {
  float at[M / 16][N / 8][4];

  __device__ __forceinline__ void fill(float value) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
#pragma unroll
      for (int j = 0; j < N / 8; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) at[i][j][e] = value;
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void add_product(const Fragments<M, N>& f) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
#pragma unroll
      for (int j = 0; j < N / 16; ++j) {
        multiply_add(T{}, at[i][2 * j], f.a[i], f.b[j][0], f.b[j][1]);
        multiply_add(T{}, at[i][2 * j + 1], f.a[i], f.b[j][2], f.b[j][3]);
      }
    }
  }

  // Row r is [i][.][2 half + .] with r = 16 i + 8 half + lane / 4.
  template <class Visit>
  static __device__ __forceinline__ void each_row(const Visit& visit) {
#pragma unroll
    for (int i = 0; i < M / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        visit(i, half, 16 * i + 8 * half + static_cast<int>(threadIdx.x % kWarp) / 4);
      }
    }
  }

  // The column of [.][j][0]; that of [.][j][1] follows.
  template <bool interleaved>
  static __device__ __forceinline__ int column(int j) {
    const int lane = threadIdx.x % kWarp;
    return interleaved ? j / 4 * 32 + lane % 4 * 8 + j % 4 * 2 : j * 8 + lane % 4 * 2;
  }

  // Interleaved: the eight successive columns from column(4 * group) on.
  __device__ __forceinline__ void eight(int i, int half, int group, float (&values)[8]) const {
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = at[i][4 * group + k / 2][2 * half + k % 2];
  }

  // Writes the sums times factor(i, half, row) to a panel, rounded to T.
  template <bool interleaved, int pitch, class T, class Factor>
  __device__ __forceinline__ void store(T* panel, int first_row, int first_column,
                                        const Factor& factor) const {
    each_row([&](int i, int half, int row) {
      const float scale = factor(i, half, first_row + row);
      if constexpr (interleaved) {
#pragma unroll
        for (int group = 0; group < N / 32; ++group) {
          float values[8];
          eight(i, half, group, values);
#pragma unroll
          for (int k = 0; k < 8; ++k) values[k] *= scale;
          const int at_column = first_column + column<true>(4 * group);
          chunk_at(panel, place<pitch>(first_row + row, at_column / 8)) = narrow<T>(values);
        }
      } else {
#pragma unroll
        for (int j = 0; j < N / 8; ++j) {
          const int at_column = first_column + column<false>(j);
          const int offset = place<pitch>(first_row + row, at_column / 8) + at_column % 8;
          reinterpret_cast<std::uint32_t&>(panel[offset]) =
              narrow<T>(at[i][j][2 * half] * scale, at[i][j][2 * half + 1] * scale);
        }
      }
    });
  }
};

// sums += a b with both panels in shared memory; fragments are loaded a step ahead.
template <class T, class A, class B, int M, int N>
__device__ __forceinline__ void multiply(Sums<M, N>& sums, const A& walk_a, const T* panel_a,
                                         const B& walk_b, const T* panel_b, int depth) {
  Fragments<M, N> fragments[2];
  fragments[0].load(walk_a, panel_a, 0, walk_b, panel_b, 0);
#pragma unroll 1
  for (int k = 0; k < depth; k += 32) {
    fragments[1].load(walk_a, panel_a, k + 16, walk_b, panel_b, k + 16);
    sums.template add_product<T>(fragments[0]);
    if (k + 32 < depth) fragments[0].load(walk_a, panel_a, k + 32, walk_b, panel_b, k + 32);
    sums.template add_product<T>(fragments[1]);
  }
}

}  // namespace fastdiff::attention
