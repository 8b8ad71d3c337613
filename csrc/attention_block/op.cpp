// Defines fastdiff::attention_block_fused, attention_block's arguments in one call.
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "../common/cpu_level.h"
#include "../common/cuda_stream.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "../group_norm_silu/params.h"
#include "../self_attention/params.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr const char* kOp = "fastdiff::attention_block_fused";

CallCounter cpu_calls("attention_block_fused.cpu");

std::optional<ChannelVector> channel_vector(const MaybeTensor& v) {
  if (!v) return ChannelVector{};
  const auto dtype = kernel_dtype(v->scalar_type());
  if (!dtype) return std::nullopt;
  return ChannelVector{v->const_data_ptr(), 0, v->stride(0), *dtype};
}

Tensor linear(const Tensor& x, const Tensor& weight, const MaybeTensor& bias) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(weight), from(bias)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor y = torch::stable::detail::to<Tensor>(stack[0]);
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), kOp, ": autocast has changed a dtype");
  return torch::stable::contiguous(y);
}

Tensor empty_tokens(const Tensor& x) {
  const std::int64_t N = x.size(0), C = x.size(1), T = x.size(2) * x.size(3);
  return empty_beside(x, {N, T, C}, x.scalar_type(), torch::headeronly::MemoryFormat::Contiguous);
}

// The pixels of channels-last x, normalised in groups unless that is 0.
Tensor normed_tokens(const Tensor& x, std::int64_t groups, const ChannelVector& weight,
                     const ChannelVector& bias, double eps) {
  if (groups == 0) return torch::stable::transpose(torch::stable::flatten(x, 2, 3), 1, 2);
  const Tensor n = empty_tokens(x);
  GroupNormSiluParams norm{};
  norm.x = x.const_data_ptr(), norm.y = n.mutable_data_ptr();
  norm.weight = weight, norm.bias = bias;
  norm.batch = x.size(0), norm.channels = x.size(1), norm.spatial = x.size(2) * x.size(3);
  norm.groups = groups, norm.eps = eps;
  norm.dtype = *kernel_dtype(x.scalar_type()), norm.channels_last = true;
  group_norm_silu_cpu(norm);
  return n;
}

// (x + h) * scale, channels-last, for h in x's order.
Tensor residual_sum(const Tensor& x, const Tensor& h, double scale) {
  Tensor y = empty_beside(x, {x.sizes().begin(), x.sizes().end()}, x.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  const ResidualSumParams params{x.const_data_ptr(), h.const_data_ptr(), y.mutable_data_ptr(),
                                 static_cast<float>(scale), *kernel_dtype(x.scalar_type())};
  constexpr std::int64_t kTask = 16384;  // elements that are worth a thread
  torch::stable::parallel_for(0, y.numel(), kTask, [&](std::int64_t begin, std::int64_t end) {
    residual_sum_cpu(params, begin, end);
  });
  return y;
}

// The composite, without Python between its parts.
Tensor cpu(Tensor x, MaybeTensor norm_weight, MaybeTensor norm_bias, Tensor qkv_weight,
           MaybeTensor qkv_bias, Tensor proj_weight, MaybeTensor proj_bias, std::int64_t groups,
           double group_norm_eps, std::int64_t heads, double residual_scale) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto weight = channel_vector(norm_weight), bias = channel_vector(norm_bias);
  const bool images = x.dim() == 4 && channels_lie_last(x) && x.numel() > 0;
  if (!dtype || !weight || !bias || !images) {
    return reference<1>("fastdiff::attention_block", x, norm_weight, norm_bias, qkv_weight,
                        qkv_bias, proj_weight, proj_bias, groups, group_norm_eps, heads,
                        residual_scale)[0];
  }
  const std::int64_t N = x.size(0), C = x.size(1), T = x.size(2) * x.size(3);
  STD_TORCH_CHECK(groups >= 0 && (groups == 0 || C % groups == 0) && heads > 0 && C % heads == 0 &&
                      qkv_weight.size(0) == 3 * C && proj_weight.size(0) == C,
                  kOp, ": the options do not fit ", C, " channels");
  cpu_calls.add();
  const Tensor n = normed_tokens(x, groups, *weight, *bias, group_norm_eps);
  const Tensor qkv = linear(n, qkv_weight, qkv_bias), mixed = empty_tokens(x);
  const Tokens q{qkv.const_data_ptr(), T * 3 * C, 3 * C}, k = from_channel(q, C, *dtype),
                                                          v = from_channel(q, 2 * C, *dtype);
  self_attention_cpu(
      {q, k, v, mixed.mutable_data_ptr(), N, T, heads, C / heads, *dtype, has_matrix_unit()});
  return residual_sum(x, linear(mixed, proj_weight, proj_bias), residual_scale);
}

#ifdef FASTDIFF_CUDA
CallCounter cuda_calls("attention_block_fused.cuda");

// The kernel reads 16 bytes at a time.
Tensor aligned(const Tensor& x) {
  const bool is = reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16 == 0;
  return is ? x : torch::stable::clone(x);
}

MaybeTensor dense(const MaybeTensor& weight, ScalarType dtype) {
  if (!weight) return weight;
  STD_TORCH_CHECK(weight->scalar_type() == dtype, kOp, ": x and the weights differ in dtype");
  return aligned(torch::stable::contiguous(*weight));
}

// Rows from `row` on of a dense weight or bias.
const void* from_row(const MaybeTensor& weight, std::int64_t row) {
  if (!weight) return nullptr;
  return static_cast<const std::uint16_t*>(weight->const_data_ptr()) + row * weight->stride(0);
}

Tensor cuda(Tensor x, MaybeTensor norm_weight, MaybeTensor norm_bias, Tensor qkv_weight,
            MaybeTensor qkv_bias, Tensor proj_weight, MaybeTensor proj_bias, std::int64_t groups,
            double group_norm_eps, std::int64_t heads, double residual_scale) {
  const auto device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_TORCH_CHECK(x.dim() >= 3 && channels_lie_last(x), kOp, ": x is not channels-last");
  const auto dtype = kernel_dtype(x.scalar_type());
  STD_TORCH_CHECK(dtype && *dtype != DType::float32, kOp, ": x is neither float16 nor bfloat16");
  const std::int64_t N = x.size(0), C = x.size(1), tokens = N > 0 ? x.numel() / (N * C) : 0;
  const bool folded = qkv_weight.size(0) == C;
  const auto of_norm = channel_vector(norm_weight), bias_of_norm = channel_vector(norm_bias);
  STD_TORCH_CHECK(of_norm && bias_of_norm, kOp,
                  ": the norm's weights are neither float32, float16 nor bfloat16");

  const Tensor input = aligned(x);
  const auto qkv = dense(qkv_weight, x.scalar_type()), qkv_b = dense(qkv_bias, x.scalar_type());
  const auto proj = dense(proj_weight, x.scalar_type()), proj_b = dense(proj_bias, x.scalar_type());
  Tensor y = empty_like(input, x.scalar_type());
  const AttentionBlockParams params{input.const_data_ptr(),
                                    y.mutable_data_ptr(),
                                    *of_norm,
                                    *bias_of_norm,
                                    from_row(qkv, 0),
                                    from_row(qkv_b, 0),
                                    folded ? nullptr : from_row(qkv, C),
                                    folded ? nullptr : from_row(qkv, 2 * C),
                                    folded ? nullptr : from_row(qkv_b, 2 * C),
                                    from_row(proj, 0),
                                    from_row(proj_b, 0),
                                    N,
                                    static_cast<int>(tokens),
                                    static_cast<int>(C),
                                    static_cast<int>(groups),
                                    static_cast<int>(heads),
                                    static_cast<float>(group_norm_eps),
                                    static_cast<float>(residual_scale),
                                    *dtype};
  if (x.numel() == 0) return y;
  STD_TORCH_CHECK(attention_block_takes(params), kOp, ": no kernel serves ", tokens, " tokens of ",
                  C, " channels in ", heads, " heads on this GPU");
  cuda_calls.add();
  const char* error = attention_block_cuda(params, current_cuda_stream(device));
  STD_TORCH_CHECK(error == nullptr, kOp, ": ", error);
  return y;
}
#endif

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def(
      "attention_block_fused(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor qkv_weight, "
      "Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias, int groups, float group_norm_eps, "
      "int heads, float residual_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("attention_block_fused", TORCH_BOX(&fastdiff::cpu));
}

#ifdef FASTDIFF_CUDA
STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) {
  library.impl("attention_block_fused", TORCH_BOX(&fastdiff::cuda));
}
#endif
