// Attaches the kernels of fastdiff::conv3x3 and its gradients; their schemas stand in fastdiff/ops.
#include <tuple>

#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "../direct_convolution/call.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("conv3x3.cpu");
CallCounter direct_calls("conv3x3_direct.cpu");  // of these
CallCounter pack_calls("conv3x3_pack.cpu");
CallCounter gradient_calls("conv3x3_gradient.cpu");
CallCounter direct_gradient_calls("conv3x3_direct_gradient.cpu");  // of these
CallCounter input_gradient_calls("conv3x3_input_gradient.cpu");

using torch::headeronly::MemoryFormat;

Tensor conv3x3(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor packed, MaybeTensor residual,
               double scale, bool upsample) {
  const std::int64_t factor = upsample ? 2 : 1, O = weight.size(0);
  if (packed && packed->scalar_type() == ScalarType::BFloat16) {
    if (bias && bias->scalar_type() != x.scalar_type()) {
      bias = torch::stable::to(*bias, x.scalar_type());
    }
    if (auto y = direct_convolution(x, O, bias, *packed, residual, scale, upsample, 3)) {
      calls.add();
      direct_calls.add();
      return *y;
    }
    packed.reset();
  }
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x);
  const auto added = residual ? pixels(*residual) : Pixels{};
  const std::array<std::int64_t, 4> sizes{x.size(0), O, factor * x.size(2), factor * x.size(3)};
  const bool fills_tiles = x.size(1) > 0 && sizes[2] > 1 && sizes[3] > 1;
  if (!packed || !dtype || !from || !added || !fills_tiles) {
    return reference<1>("fastdiff::conv3x3", x, weight, bias, packed, residual, scale, upsample)[0];
  }
  Tensor y =
      empty_beside(x, {sizes.begin(), sizes.end()}, x.scalar_type(), MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  calls.add();
  conv3x3_cpu({*from, *added, y.mutable_data_ptr(),
               static_cast<const float*>(packed->const_data_ptr()),
               bias ? bias->const_data_ptr() : nullptr, sizes[0], x.size(1), O, sizes[2], sizes[3],
               static_cast<float>(scale), *dtype, upsample});
  return y;
}

// Of a float32 weight, or of its gradient's convolution: transposed, and each kernel turned round.
Tensor packed(const Tensor& weight, bool turned, bool by_tiles) {
  const std::int64_t O = weight.size(0), C = weight.size(1);
  const std::int64_t columns = turned ? C : O, rows = turned ? O : C;
  const std::int64_t panels = (columns + kPanel - 1) / kPanel, blocks = (rows + 31) / 32;
  const std::int64_t y = weight.stride(2), x = weight.stride(3), sign = turned ? -1 : 1;
  const float* from = static_cast<const float*>(weight.const_data_ptr());
  PackParams params{
      from + (turned ? 2 * (y + x) : 0), columns,  rows,    weight.stride(turned ? 1 : 0),
      weight.stride(turned ? 0 : 1),     sign * y, sign * x};
  const auto make = [&](std::vector<std::int64_t> sizes, ScalarType dtype, auto pack) {
    Tensor to = empty_beside(weight, sizes, dtype, MemoryFormat::Contiguous);
    params.packed = to.mutable_data_ptr();
    pack(params);
    return to;
  };
  if (!by_tiles) return make({panels, 16, rows, kPanel}, ScalarType::Float, pack_conv3x3_cpu);
  return make({panels, blocks, 9, 2, 16, 16, 2}, ScalarType::BFloat16, pack_conv3x3_direct_cpu);
}

Tensor conv3x3_pack(Tensor weight, bool by_tiles) {
  if (weight.scalar_type() != ScalarType::Float) {
    return reference<1>("fastdiff::conv3x3_pack", weight, by_tiles)[0];
  }
  pack_calls.add();
  return packed(weight, false, by_tiles);
}

// By tiles where bfloat16 meets a weight of float32.
Tensor conv3x3_input_gradient(Tensor grad, Tensor weight) {
  const auto from = pixels(grad);
  const std::int64_t N = grad.size(0), O = grad.size(1), H = grad.size(2), W = grad.size(3);
  const std::int64_t C = weight.size(1);
  const auto dtype = grad.scalar_type();
  const bool by_tiles = dtype == ScalarType::BFloat16;
  const bool fills_tiles = by_tiles || (H > 1 && W > 1);
  const bool covered = weight.scalar_type() == ScalarType::Float &&
                       (by_tiles || dtype == ScalarType::Float) && fills_tiles;
  if (!covered || !from || N * O * C == 0) {
    return reference<1>("fastdiff::conv3x3_input_gradient", grad, weight)[0];
  }
  input_gradient_calls.add();
  const Tensor turned = packed(weight, true, by_tiles);
  if (by_tiles) {
    return *direct_convolution(grad, C, std::nullopt, turned, std::nullopt, 1, false, 3);
  }
  Tensor x = empty_beside(grad, {N, C, H, W}, dtype, MemoryFormat::ChannelsLast);
  conv3x3_cpu({*from, Pixels{}, x.mutable_data_ptr(),
               static_cast<const float*>(turned.const_data_ptr()), nullptr, N, O, C, H, W, 1,
               DType::float32, false});
  return x;
}

std::tuple<Tensor, Tensor> conv3x3_gradient(Tensor x, Tensor grad, bool upsample, bool by_tiles) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x), of_y = pixels(grad);
  const std::int64_t N = x.size(0), O = grad.size(1), C = x.size(1), H = grad.size(2),
                     W = grad.size(3);
  by_tiles = by_tiles && dtype == DType::bfloat16;
  const bool fills_tiles = by_tiles || (H > 1 && W > 1);
  if (!dtype || !from || !of_y || !fills_tiles || O * C == 0) {
    const auto [weight, bias] =
        reference<2>("fastdiff::conv3x3_gradient", x, grad, upsample, by_tiles);
    return {weight, bias};
  }
  Tensor weight = empty_beside(x, {O, C, 3, 3}, ScalarType::Float, MemoryFormat::ChannelsLast);
  Tensor bias = empty_beside(x, {O}, ScalarType::Float, MemoryFormat::Contiguous);
  gradient_calls.add();
  const Conv3x3GradientParams params{*from, *of_y, floats(weight), floats(bias), N, C, O,
                                     H,     W,     *dtype,         upsample};
  if (by_tiles) {
    direct_gradient_calls.add();
    const Tensor room =
        empty_beside(x, {direct_gradient_room(params)}, x.scalar_type(), MemoryFormat::Contiguous);
    conv3x3_direct_gradient_cpu(params, room.mutable_data_ptr());
  } else {
    conv3x3_gradient_cpu(params);
  }
  return {weight, bias};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("conv3x3", &fastdiff::conv3x3);
  library.impl("conv3x3_pack", TORCH_BOX(&fastdiff::conv3x3_pack));
  library.impl("conv3x3_input_gradient", TORCH_BOX(&fastdiff::conv3x3_input_gradient));
  library.impl("conv3x3_gradient", TORCH_BOX(&fastdiff::conv3x3_gradient));
}
