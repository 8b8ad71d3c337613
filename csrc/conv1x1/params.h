#pragma once

#include <cstdint>

#include "../common/dtype.h"
#include "../common/panels.h"
#include "../common/patches.h"
#include "../common/pixels.h"

namespace fastdiff {

// y = (conv(x) + bias + residual) * scale of every pixel, or of every patch, in float32.
struct Conv1x1Params {
  Pixels x;
  Pixels residual;      // as y; null where not given
  void* y;              // [N, height, width, out_channels]
  const float* packed;  // [out_channels / kPanel, channels, kPanel], the last panel filled up
  const void* bias;     // [out_channels] in x's dtype, null where not given
  std::int64_t batch, channels, out_channels, height, width;
  float scale;
  DType dtype;           // of x, residual, bias and y
  Patches patches = {};  // of x; `channels` are theirs then, height and width y's
};

void conv1x1_cpu(const Conv1x1Params& params);

}  // namespace fastdiff
