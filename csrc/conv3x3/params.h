#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "../common/panels.h"
#include "../common/pixels.h"

namespace fastdiff {

// y = (conv(x) + bias + residual) * scale by Winograd's F(2x2, 3x3): Lavin and Gray 2016,
// section 4.1.
struct Conv3x3Params {
  Pixels x;             // of height x width, or of half of them where `upsample`d before
  Pixels residual;      // as y; null where not given
  void* y;              // [N, height, width, out_channels]
  const float* packed;  // [out_channels / kPanel, 16, channels, kPanel], the last panel filled up
  const void* bias;     // [out_channels] in x's dtype, null where not given
  std::int64_t batch, channels, out_channels, height, width;
  float scale;
  DType dtype;  // of x, residual, bias and y
  bool upsample;
};

void conv3x3_cpu(const Conv3x3Params& params);

// Weights [columns, rows, 3, 3] by their strides, negative where the kernel is turned round: output
// channels are columns, input channels rows.
struct PackParams {
  const float* weight;
  std::int64_t columns, rows, column_stride, row_stride, y_stride, x_stride;
  void* packed;  // as in Conv3x3Params, or in DirectConvolutionParams
};

void pack_conv3x3_cpu(const PackParams& params);
void pack_conv3x3_direct_cpu(const PackParams& params);

// The gradients of y = conv(x) + bias.
struct Conv3x3GradientParams {
  Pixels x;       // as in Conv3x3Params
  Pixels grad;    // of y
  float* weight;  // [out_channels, 3, 3, channels]
  float* bias;    // [out_channels]
  std::int64_t batch, channels, out_channels, height, width;
  DType dtype;  // of x and grad
  bool upsample;
};

// By F(3x3, 2x2): the same tiles, the transforms' transposes.
void conv3x3_gradient_cpu(const Conv3x3GradientParams& params);

// Of bfloat16, by products as they are: with room for so many elements of copies.
std::int64_t direct_gradient_room(const Conv3x3GradientParams& params);
void conv3x3_direct_gradient_cpu(const Conv3x3GradientParams& params, void* room);

}  // namespace fastdiff
