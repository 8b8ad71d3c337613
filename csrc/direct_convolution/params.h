#pragma once

#include <array>
#include <cstdint>

#include "../common/pixels.h"

namespace fastdiff {

// y = (conv(x) + bias + residual) * scale in bfloat16, stride 1, with kernel / 2 pixels of zeros
// around x, as a product of matrices for each pixel of the kernel.
struct DirectConvolutionParams {
  Pixels x;         // of height x width, or of half of them where `upsample`d before
  Pixels residual;  // as y; null where not given
  void* y;          // [N, height, width, out_channels]
  const void*
      packed;        // [out_channels / 32, channels / 32, kernel^2, 2, 16, 16, 2], both filled up:
                     // of a panel the halves of its output channels, of these pairs of channels
  const void* bias;  // [out_channels], null where not given
  std::int64_t batch, channels, out_channels, height, width;
  float scale;
  bool upsample;
  int kernel;  // its height and width: 1 or 3
};

void direct_convolution_cpu(const DirectConvolutionParams& params);

// Weights [out_channels, channels, 3, 3] by their strides to `packed`; where they are `turned`,
// those of the gradient of x: input channels for output channels, each kernel turned round.
struct TilePackParams {
  const float* weight;
  std::int64_t out_channels, channels, out_stride, in_stride, y_stride, x_stride;
  bool turned;

  std::array<std::int64_t, 2> blocks() const;  // of 32 channels, those of `packed` first
  void* packed;                                // as in DirectConvolutionParams
};

void pack_tiles_cpu(const TilePackParams& params);

// The gradients of y = conv(x) + bias, 3x3, for x and y in bfloat16.
struct DirectGradientParams {
  Pixels x;       // as in DirectConvolutionParams
  Pixels grad;    // of y
  float* weight;  // [out_channels, 3, 3, channels]
  float* bias;    // [out_channels]
  std::int64_t batch, channels, out_channels, height, width;
  bool upsample;

  std::int64_t copies_size() const;  // elements of the copies that lie for the products
  void* copies;
};

void direct_gradient_cpu(const DirectGradientParams& params);

}  // namespace fastdiff
