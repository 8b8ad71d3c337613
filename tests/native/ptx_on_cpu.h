// What csrc/common/ptx.h gives the kernels, in C++. The meaning is that of the PTX ISA.
#pragma once

#include <math.h>

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "short_floats.h"

namespace on_cpu {

// A lane's operands of mma.m16n8k16, in float32: a, then b.
struct Operands {
  float a[4][2], b[2][2];
};

void multiply_add(float (&sums)[4], const Operands& own);
void wait_copies(std::size_t pending);

}  // namespace on_cpu

namespace fastdiff {

unsigned char* dynamic_shared();

void copy_async(void* to_shared, const void* from, bool valid = true);
void commit_copies();
template <int pending>
void wait_copies() {
  on_cpu::wait_copies(pending);
}

template <bool transposed>
void load_matrices(std::uint32_t (&to)[4], const void* shared_row);

inline void multiply_add(__nv_bfloat16, float (&d)[4], const std::uint32_t (&a)[4],
                         std::uint32_t b0, std::uint32_t b1) {
  const auto two = [](std::uint32_t pair, float (&to)[2]) {
    to[0] = __uint_as_float(pair << 16);
    to[1] = __uint_as_float(pair & 0xffff0000u);
  };
  on_cpu::Operands own;
  for (int i = 0; i < 4; ++i) two(a[i], own.a[i]);
  two(b0, own.b[0]);
  two(b1, own.b[1]);
  on_cpu::multiply_add(d, own);
}

inline void multiply_add(__half, float (&d)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                         std::uint32_t b1) {
  const auto two = [](std::uint32_t pair, float (&to)[2]) {
    to[0] = __half2float({static_cast<std::uint16_t>(pair)});
    to[1] = __half2float({static_cast<std::uint16_t>(pair >> 16)});
  };
  on_cpu::Operands own;
  for (int i = 0; i < 4; ++i) two(a[i], own.a[i]);
  two(b0, own.b[0]);
  two(b1, own.b[1]);
  on_cpu::multiply_add(d, own);
}

inline float power_of_two(float x) {
  const float power = exp2f(x);
  return power < FLT_MIN ? 0 : power;
}

unsigned cluster_rank();
void cluster_barrier();
float read_of_cluster(const float* shared, unsigned rank);
void read_of_cluster(std::uint32_t (&to)[4], const void* shared, unsigned rank);

}  // namespace fastdiff
