#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace fastdiff {

// y = act((1 + scale) * (weight * (h - mean) * rstd + bias) + shift) of h = x + added + residual,
// mean and rstd by group.
struct GroupNormSiluParams {
  const void* x;         // [N, C, spatial], or [N, spatial, C] where channels_last
  void* y;               // as x
  float* mean;           // [N, groups]
  float* rstd;           // [N, groups]
  const void* residual;  // as x, null where not given
  ChannelVector added;   // null where not given
  ChannelVector weight, bias, scale, shift;
  std::int64_t batch, channels, spatial, groups;
  double eps;
  DType dtype;  // of x and y
  bool channels_last, silu;
  void* workspace = nullptr;  // of group_norm_silu_cuda_workspace bytes, on the device
};

void group_norm_silu_cpu(const GroupNormSiluParams& params);

// The gradients of y, all of them float32 but x's; that of a residual like x is x's.
struct GroupNormSiluGradientParams {
  GroupNormSiluParams forward;  // its mean and rstd are given, its y is not looked at
  const void* grad;             // of y, as x
  void* of_x;                   // as x
  float *of_weight, *of_bias;   // [channels]
  float *of_scale, *of_shift;   // [N, channels]
  float* of_added;              // [N, channels]
};

void group_norm_silu_gradient_cpu(const GroupNormSiluGradientParams& params);

// Bytes that the kernels need on the current device; -1 where they do not cover these sizes.
std::int64_t group_norm_silu_cuda_workspace(const GroupNormSiluParams& params);

// Returns the error's text, or null. `stream` is a cudaStream_t of the current device.
const char* group_norm_silu_cuda(const GroupNormSiluParams& params, void* stream);

// The same of the gradient; its workspace is forward.workspace.
std::int64_t group_norm_silu_gradient_cuda_workspace(const GroupNormSiluGradientParams& params);
const char* group_norm_silu_gradient_cuda(const GroupNormSiluGradientParams& params, void* stream);

}  // namespace fastdiff
