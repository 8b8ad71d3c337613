#pragma once

#include <cstdint>

#include "../common/patches.h"
#include "../common/pixels.h"

namespace fastdiff {

// Values of images that leave half of a second-level cache to weights.
constexpr std::int64_t kImagesInCache = 512 * 1024;

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
  int kernel;               // its height and width: 1 or 3
  std::int64_t blocks = 1;  // of rows, into which samples of patches are cut: the kernel's samples
  Patches patches = {};     // of x; `channels` are theirs then, height and width y's, the kernel 1
};

void direct_convolution_cpu(const DirectConvolutionParams& params);

}  // namespace fastdiff
