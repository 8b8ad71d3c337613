// Attaches the kernels of fastdiff::group_norm_silu; its schema stands in fastdiff/ops.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../common/cuda_stream.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

using torch::headeronly::MemoryFormat;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;

// Only where x does not lie contiguous as well, and torch has a name for it.
bool is_channels_last(const Tensor& x) {
  return !x.is_contiguous() && (x.dim() == 4 || x.dim() == 5) && channels_lie_last(x);
}

bool covered(const Tensor& x, const std::array<const MaybeTensor*, 5>& vectors) {
  if (!kernel_dtype(x.scalar_type())) return false;
  for (const MaybeTensor* vector : vectors) {
    if (*vector && !kernel_dtype((*vector)->scalar_type())) return false;
  }
  return true;
}

ChannelVector channel_vector(const MaybeTensor& tensor) {
  if (!tensor) return {};
  const bool by_sample = tensor->dim() == 2;
  return {tensor->const_data_ptr(), by_sample ? tensor->stride(0) : 0,
          tensor->stride(by_sample ? 1 : 0), *kernel_dtype(tensor->scalar_type())};
}

// `launch` tells whether it serves these sizes.
template <class Launch>
Outputs run(const Tensor& x, std::int64_t groups, const MaybeTensor& weight,
            const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift,
            bool silu, const MaybeTensor& residual, const Launch& launch) {
  const bool by_channel = residual && residual->dim() < x.dim();
  const bool same_dtype = !residual || by_channel || residual->scalar_type() == x.scalar_type();
  const auto by_reference = [&]() -> Outputs {
    const auto [y, mean, rstd] = reference<3>("fastdiff::group_norm_silu", x, groups, weight, bias,
                                              eps, scale, shift, silu, residual);
    return {y, mean, rstd};
  };
  if (!same_dtype || !covered(x, {&weight, &bias, &scale, &shift, &residual})) {
    return by_reference();
  }
  const std::int64_t N = x.size(0), C = x.size(1);
  STD_TORCH_CHECK(groups > 0 && C % groups == 0, "fastdiff::group_norm_silu: ", groups,
                  " groups do not divide ", C, " channels");
  const bool channels_last = is_channels_last(x);
  const MemoryFormat format = !channels_last ? MemoryFormat::Contiguous
                              : x.dim() == 4 ? MemoryFormat::ChannelsLast
                                             : MemoryFormat::ChannelsLast3d;
  const Tensor input = channels_last ? x : torch::stable::contiguous(x);
  MaybeTensor like_input;
  if (residual && !by_channel) like_input = torch::stable::contiguous(*residual, format);
  const auto like_x = [&](auto sizes, ScalarType dtype, MemoryFormat memory_format) {
    return torch::stable::empty(sizes, dtype, std::nullopt, x.device(), std::nullopt,
                                memory_format);
  };
  const std::array<std::int64_t, 2> by_group{N, groups};
  Tensor y = like_x(x.sizes(), x.scalar_type(), format);
  Tensor mean = like_x(by_group, ScalarType::Float, MemoryFormat::Contiguous);
  Tensor rstd = like_x(by_group, ScalarType::Float, MemoryFormat::Contiguous);
  if (x.numel() == 0) return {y, mean, rstd};
  const bool served = launch(GroupNormSiluParams{
      input.const_data_ptr(), y.mutable_data_ptr(), static_cast<float*>(mean.mutable_data_ptr()),
      static_cast<float*>(rstd.mutable_data_ptr()),
      like_input ? like_input->const_data_ptr() : nullptr,
      by_channel ? channel_vector(residual) : ChannelVector{}, channel_vector(weight),
      channel_vector(bias), channel_vector(scale), channel_vector(shift), N, C, x.numel() / (N * C),
      groups, eps, *kernel_dtype(x.scalar_type()), channels_last, silu});
  if (!served) return by_reference();
  return {y, mean, rstd};
}

CallCounter cpu_calls("group_norm_silu.cpu");

Outputs cpu(Tensor x, std::int64_t groups, MaybeTensor weight, MaybeTensor bias, double eps,
            MaybeTensor scale, MaybeTensor shift, bool silu, MaybeTensor residual) {
  return run(x, groups, weight, bias, eps, scale, shift, silu, residual,
             [](const GroupNormSiluParams& p) {
               cpu_calls.add();
               group_norm_silu_cpu(p);
               return true;
             });
}

#ifdef FASTDIFF_CUDA
CallCounter cuda_calls("group_norm_silu.cuda");

Outputs cuda(Tensor x, std::int64_t groups, MaybeTensor weight, MaybeTensor bias, double eps,
             MaybeTensor scale, MaybeTensor shift, bool silu, MaybeTensor residual) {
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto launch = [&](GroupNormSiluParams p) {
    const std::int64_t bytes = group_norm_silu_cuda_workspace(p);
    if (bytes < 0) return false;
    const Tensor workspace = torch::stable::new_empty(x, std::array{bytes}, ScalarType::Byte);
    p.workspace = workspace.mutable_data_ptr();
    cuda_calls.add();
    const char* error = group_norm_silu_cuda(p, current_cuda_stream(device));
    STD_TORCH_CHECK(error == nullptr, "fastdiff::group_norm_silu: ", error);
    return true;
  };
  return run(x, groups, weight, bias, eps, scale, shift, silu, residual, launch);
}
#endif

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("group_norm_silu", TORCH_BOX(&fastdiff::cpu));
}

#ifdef FASTDIFF_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) {
  library.impl("group_norm_silu", TORCH_BOX(&fastdiff::cuda));
}
#endif
