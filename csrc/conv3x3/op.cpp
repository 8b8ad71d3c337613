// Attaches the kernels of fastdiff::conv3x3 and its gradient; their schemas stand in fastdiff/ops.
#include <tuple>

#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("conv3x3.cpu");
CallCounter gradient_calls("conv3x3_gradient.cpu");

// Nothing where the channels of a pixel do not lie side by side.
std::optional<Pixels> pixels(const Tensor& x) {
  if (x.stride(1) != 1 && x.size(1) != 1) return std::nullopt;
  return Pixels{x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3)};
}

Tensor conv3x3(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor packed, MaybeTensor residual,
               double scale, bool upsample) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x);
  const auto added = residual ? pixels(*residual) : Pixels{};
  const std::int64_t factor = upsample ? 2 : 1, O = weight.size(0);
  const std::array<std::int64_t, 4> sizes{x.size(0), O, factor * x.size(2), factor * x.size(3)};
  const bool fills_tiles = sizes[2] > 1 && sizes[3] > 1;
  if (!packed || !dtype || !from || !added || !fills_tiles) {
    return reference<1>("fastdiff::conv3x3", x, weight, bias, packed, residual, scale, upsample)[0];
  }
  Tensor y = torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                  torch::headeronly::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  calls.add();
  conv3x3_cpu({*from, *added, y.mutable_data_ptr(),
               static_cast<const float*>(packed->const_data_ptr()),
               bias ? bias->const_data_ptr() : nullptr, sizes[0], x.size(1), O, sizes[2], sizes[3],
               static_cast<float>(scale), *dtype, upsample});
  return y;
}

std::tuple<Tensor, Tensor> conv3x3_gradient(Tensor x, Tensor grad, bool upsample) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x), of_y = pixels(grad);
  const std::int64_t O = grad.size(1), C = x.size(1), H = grad.size(2), W = grad.size(3);
  if (!dtype || !from || !of_y || H < 2 || W < 2 || O * C == 0) {
    const auto [weight, bias] = reference<2>("fastdiff::conv3x3_gradient", x, grad, upsample);
    return {weight, bias};
  }
  const auto like_x = [&](auto sizes, torch::headeronly::MemoryFormat format) {
    return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                format);
  };
  Tensor weight = like_x(std::array<std::int64_t, 4>{O, C, 3, 3},
                         torch::headeronly::MemoryFormat::ChannelsLast);
  Tensor bias = like_x(std::array<std::int64_t, 1>{O}, torch::headeronly::MemoryFormat::Contiguous);
  gradient_calls.add();
  conv3x3_gradient_cpu({*from, *of_y, weight.mutable_data_ptr(), bias.mutable_data_ptr(), x.size(0),
                        C, O, H, W, *dtype, upsample});
  return {weight, bias};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("conv3x3", TORCH_BOX(&fastdiff::conv3x3));
  library.impl("conv3x3_gradient", TORCH_BOX(&fastdiff::conv3x3_gradient));
}
