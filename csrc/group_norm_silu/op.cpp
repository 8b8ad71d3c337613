// Attaches the kernels of fastdiff::group_norm_silu and its gradient; their schemas stand in
// fastdiff/ops.
#include <torch/csrc/stable/accelerator.h>

#include <tuple>

#include "../common/cpu_ops.h"
#include "../common/cuda_stream.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

using torch::headeronly::MemoryFormat;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

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

// The parameters of a call, and the tensors that they point into.
struct Call {
  Tensor x;
  MaybeTensor residual;  // like x
  MemoryFormat format;
  GroupNormSiluParams params;

  Tensor empty_like_x() const {
    return empty_beside(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type(), format);
  }
  Tensor empty_floats(const std::vector<std::int64_t>& sizes) const {
    return empty_beside(x, sizes, ScalarType::Float, MemoryFormat::Contiguous);
  }
};

// Nothing where the kernels do not cover these inputs.
std::optional<Call> call(const Tensor& x, std::int64_t groups, const MaybeTensor& weight,
                         const MaybeTensor& bias, double eps, const MaybeTensor& scale,
                         const MaybeTensor& shift, bool silu, const MaybeTensor& residual) {
  const bool by_channel = residual && residual->dim() < x.dim();
  const bool same_dtype = !residual || by_channel || residual->scalar_type() == x.scalar_type();
  if (!same_dtype || !covered(x, {&weight, &bias, &scale, &shift, &residual})) return std::nullopt;
  const std::int64_t N = x.size(0), C = x.size(1);
  STD_TORCH_CHECK(groups > 0 && C % groups == 0, "fastdiff::group_norm_silu: ", groups,
                  " groups do not divide ", C, " channels");
  const bool channels_last = is_channels_last(x);
  const MemoryFormat format = !channels_last ? MemoryFormat::Contiguous
                              : x.dim() == 4 ? MemoryFormat::ChannelsLast
                                             : MemoryFormat::ChannelsLast3d;
  Call made{channels_last ? x : torch::stable::contiguous(x), std::nullopt, format, {}};
  if (residual && !by_channel) made.residual = torch::stable::contiguous(*residual, format);
  const std::int64_t spatial = x.numel() > 0 ? x.numel() / (N * C) : 0;
  made.params = {made.x.const_data_ptr(),
                 nullptr,
                 nullptr,
                 nullptr,
                 made.residual ? made.residual->const_data_ptr() : nullptr,
                 by_channel ? channel_vector(residual) : ChannelVector{},
                 channel_vector(weight),
                 channel_vector(bias),
                 channel_vector(scale),
                 channel_vector(shift),
                 N,
                 C,
                 spatial,
                 groups,
                 eps,
                 *kernel_dtype(x.scalar_type()),
                 channels_last,
                 silu};
  return made;
}

// `launch` tells whether it serves these sizes.
template <class Launch>
Outputs run(const Tensor& x, std::int64_t groups, const MaybeTensor& weight,
            const MaybeTensor& bias, double eps, const MaybeTensor& scale, const MaybeTensor& shift,
            bool silu, const MaybeTensor& residual, const Launch& launch) {
  auto made = call(x, groups, weight, bias, eps, scale, shift, silu, residual);
  if (made) {
    const Tensor y = made->empty_like_x();
    const Tensor mean = made->empty_floats({x.size(0), groups});
    const Tensor rstd = made->empty_floats({x.size(0), groups});
    made->params.y = y.mutable_data_ptr();
    made->params.mean = floats(mean);
    made->params.rstd = floats(rstd);
    if (x.numel() == 0 || launch(made->params)) return {y, mean, rstd};
  }
  const auto [y, mean, rstd] = reference<3>("fastdiff::group_norm_silu", x, groups, weight, bias,
                                            eps, scale, shift, silu, residual);
  return {y, mean, rstd};
}

CallCounter cpu_calls("group_norm_silu.cpu");

bool launch_cpu(const GroupNormSiluParams& params) {
  cpu_calls.add();
  group_norm_silu_cpu(params);
  return true;
}

Outputs cpu(Tensor x, std::int64_t groups, MaybeTensor weight, MaybeTensor bias, double eps,
            MaybeTensor scale, MaybeTensor shift, bool silu, MaybeTensor residual) {
  return run(x, groups, weight, bias, eps, scale, shift, silu, residual, launch_cpu);
}

Tensor cpu_without_statistics(Tensor x, std::int64_t groups, MaybeTensor weight, MaybeTensor bias,
                              double eps, MaybeTensor scale, MaybeTensor shift, bool silu,
                              MaybeTensor residual) {
  auto made = call(x, groups, weight, bias, eps, scale, shift, silu, residual);
  if (!made) return std::get<0>(cpu(x, groups, weight, bias, eps, scale, shift, silu, residual));
  const Tensor y = made->empty_like_x();
  made->params.y = y.mutable_data_ptr();
  if (x.numel() > 0) launch_cpu(made->params);
  return y;
}

// As `run`, of the gradient.
template <class Launch>
Gradients run_gradient(const Tensor& grad, const Tensor& x, std::int64_t groups,
                       const MaybeTensor& weight, const MaybeTensor& bias, const MaybeTensor& scale,
                       const MaybeTensor& shift, bool silu, const MaybeTensor& residual,
                       const Tensor& mean, const Tensor& rstd, const Launch& launch) {
  auto made = call(x, groups, weight, bias, 0, scale, shift, silu, residual);
  const bool covered = made && x.numel() > 0 && grad.scalar_type() == x.scalar_type() &&
                       mean.scalar_type() == ScalarType::Float &&
                       rstd.scalar_type() == ScalarType::Float;
  if (covered) {
    const std::int64_t N = x.size(0), C = x.size(1);
    const Tensor of_y = torch::stable::contiguous(grad, made->format);
    const Tensor means = torch::stable::contiguous(mean), rstds = torch::stable::contiguous(rstd);
    const Gradients of{made->empty_like_x(),       made->empty_floats({C}),
                       made->empty_floats({C}),    made->empty_floats({N, C}),
                       made->empty_floats({N, C}), made->empty_floats({N, C})};
    made->params.mean = floats(means), made->params.rstd = floats(rstds);
    const GroupNormSiluGradientParams params{made->params,
                                             of_y.const_data_ptr(),
                                             std::get<0>(of).mutable_data_ptr(),
                                             floats(std::get<1>(of)),
                                             floats(std::get<2>(of)),
                                             floats(std::get<3>(of)),
                                             floats(std::get<4>(of)),
                                             floats(std::get<5>(of))};
    if (launch(params)) return of;
  }
  const auto [of_x, of_weight, of_bias, of_scale, of_shift, of_added] =
      reference<6>("fastdiff::group_norm_silu_gradient", grad, x, groups, weight, bias, scale,
                   shift, silu, residual, mean, rstd);
  return {of_x, of_weight, of_bias, of_scale, of_shift, of_added};
}

CallCounter cpu_gradient_calls("group_norm_silu_gradient.cpu");

Gradients cpu_gradient(Tensor grad, Tensor x, std::int64_t groups, MaybeTensor weight,
                       MaybeTensor bias, MaybeTensor scale, MaybeTensor shift, bool silu,
                       MaybeTensor residual, Tensor mean, Tensor rstd) {
  return run_gradient(grad, x, groups, weight, bias, scale, shift, silu, residual, mean, rstd,
                      [](const GroupNormSiluGradientParams& p) {
                        cpu_gradient_calls.add();
                        group_norm_silu_gradient_cpu(p);
                        return true;
                      });
}

#ifdef FASTDIFF_CUDA
CallCounter cuda_calls("group_norm_silu.cuda");
CallCounter cuda_gradient_calls("group_norm_silu_gradient.cuda");

// Lets `launch` run with `bytes` of workspace, which only it sees; false where bytes say that the
// kernels do not cover these sizes.
template <class Launch>
bool with_workspace(const Tensor& x, std::int64_t bytes, CallCounter& calls, const Launch& launch) {
  if (bytes < 0) return false;
  const Tensor workspace = torch::stable::new_empty(x, std::array{bytes}, ScalarType::Byte);
  calls.add();
  const char* error =
      launch(workspace.mutable_data_ptr(), current_cuda_stream(x.get_device_index()));
  STD_TORCH_CHECK(error == nullptr, "fastdiff::group_norm_silu: ", error);
  return true;
}

Outputs cuda(Tensor x, std::int64_t groups, MaybeTensor weight, MaybeTensor bias, double eps,
             MaybeTensor scale, MaybeTensor shift, bool silu, MaybeTensor residual) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const auto launch = [&](GroupNormSiluParams p) {
    return with_workspace(x, group_norm_silu_cuda_workspace(p), cuda_calls,
                          [&](void* workspace, void* stream) {
                            p.workspace = workspace;
                            return group_norm_silu_cuda(p, stream);
                          });
  };
  return run(x, groups, weight, bias, eps, scale, shift, silu, residual, launch);
}

Gradients cuda_gradient(Tensor grad, Tensor x, std::int64_t groups, MaybeTensor weight,
                        MaybeTensor bias, MaybeTensor scale, MaybeTensor shift, bool silu,
                        MaybeTensor residual, Tensor mean, Tensor rstd) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const auto launch = [&](GroupNormSiluGradientParams p) {
    return with_workspace(x, group_norm_silu_gradient_cuda_workspace(p), cuda_gradient_calls,
                          [&](void* workspace, void* stream) {
                            p.forward.workspace = workspace;
                            return group_norm_silu_gradient_cuda(p, stream);
                          });
  };
  return run_gradient(grad, x, groups, weight, bias, scale, shift, silu, residual, mean, rstd,
                      launch);
}
#endif

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("group_norm_silu", TORCH_BOX(&fastdiff::cpu));
  fastdiff::CpuOp::add(
      "fastdiff::group_norm_silu",
      {fastdiff::recorded<&fastdiff::cpu>, fastdiff::recorded<&fastdiff::cpu_without_statistics>});
  library.impl("group_norm_silu_gradient", TORCH_BOX(&fastdiff::cpu_gradient));
}

#ifdef FASTDIFF_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) {
  library.impl("group_norm_silu", TORCH_BOX(&fastdiff::cuda));
  library.impl("group_norm_silu_gradient", TORCH_BOX(&fastdiff::cuda_gradient));
}
#endif
