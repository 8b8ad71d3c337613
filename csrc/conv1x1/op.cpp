// Attaches the kernels of fastdiff::conv1x1; its schema stands in fastdiff/ops.
#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../direct_convolution/call.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("conv1x1.cpu");
CallCounter direct_calls("conv1x1_direct.cpu");  // of these

// Nothing where the kernel does not cover these inputs.
std::optional<Tensor> by_panels(const Tensor& x, std::int64_t out_channels, const MaybeTensor& bias,
                                const Tensor& packed, const MaybeTensor& residual, double scale) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x);
  const auto added = residual ? pixels(*residual) : Pixels{};
  if (!dtype || !from || !added || x.size(1) == 0) return std::nullopt;
  const std::int64_t N = x.size(0), height = x.size(2), width = x.size(3);
  Tensor y = empty_beside(x, {N, out_channels, height, width}, x.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  if (y.numel() > 0) {
    conv1x1_cpu({*from, *added, y.mutable_data_ptr(),
                 static_cast<const float*>(packed.const_data_ptr()),
                 bias ? bias->const_data_ptr() : nullptr, N, x.size(1), out_channels, height, width,
                 static_cast<float>(scale), *dtype});
  }
  return y;
}

Tensor conv1x1(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor packed, MaybeTensor residual,
               double scale) {
  if (packed) {
    const std::int64_t O = weight.size(0);
    const bool direct = packed->scalar_type() == ScalarType::BFloat16;
    const auto y = direct ? direct_convolution(x, O, bias, *packed, residual, scale, false, 1)
                          : by_panels(x, O, bias, *packed, residual, scale);
    if (y) {
      calls.add();
      if (direct) direct_calls.add();
      return *y;
    }
  }
  return reference<1>("fastdiff::conv1x1", x, weight, bias, packed, residual, scale)[0];
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("conv1x1", &fastdiff::conv1x1);
}
