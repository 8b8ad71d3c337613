// The kernel called on tensors.
#pragma once

#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {

// The [N, out_channels, H, W] output; nothing where the kernel does not cover these inputs.
inline std::optional<Tensor> direct_convolution(const Tensor& x, std::int64_t out_channels,
                                                const MaybeTensor& bias, const Tensor& packed,
                                                const MaybeTensor& residual, double scale,
                                                bool upsample, int kernel) {
  const auto from = pixels(x);
  const auto added = residual ? pixels(*residual) : Pixels{};
  const bool short_ones =
      x.scalar_type() == ScalarType::BFloat16 && packed.scalar_type() == ScalarType::BFloat16;
  if (!short_ones || !from || !added || x.size(1) == 0) return std::nullopt;
  const std::int64_t factor = upsample ? 2 : 1;
  const std::int64_t N = x.size(0), height = factor * x.size(2), width = factor * x.size(3);
  Tensor y = empty_beside(x, {N, out_channels, height, width}, x.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  if (y.numel() > 0) {
    direct_convolution_cpu({*from, *added, y.mutable_data_ptr(), packed.const_data_ptr(),
                            bias ? bias->const_data_ptr() : nullptr, N, x.size(1), out_channels,
                            height, width, static_cast<float>(scale), upsample, kernel});
  }
  return y;
}

}  // namespace fastdiff
