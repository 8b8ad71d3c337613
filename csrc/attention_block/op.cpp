// Attaches the kernel of fastdiff::attention_block_fused; its schema stands in fastdiff/ops.
#ifdef FASTDIFF_CUDA
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr const char* kOp = "fastdiff::attention_block_fused";

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

ChannelVector channel_vector(const MaybeTensor& v) {
  if (!v) return {};
  const auto dtype = kernel_dtype(v->scalar_type());
  STD_TORCH_CHECK(dtype, kOp, ": the norm's weights are neither float32, float16 nor bfloat16");
  return {v->const_data_ptr(), 0, v->stride(0), *dtype};
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

  const Tensor input = aligned(x);
  const auto qkv = dense(qkv_weight, x.scalar_type()), qkv_b = dense(qkv_bias, x.scalar_type());
  const auto proj = dense(proj_weight, x.scalar_type()), proj_b = dense(proj_bias, x.scalar_type());
  Tensor y = empty_like(input, x.scalar_type());
  const AttentionBlockParams params{input.const_data_ptr(),
                                    y.mutable_data_ptr(),
                                    channel_vector(norm_weight),
                                    channel_vector(norm_bias),
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

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def(
      "attention_block_fused(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor qkv_weight, "
      "Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias, int groups, float group_norm_eps, "
      "int heads, float residual_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CUDA, library) {
  library.impl("attention_block_fused", TORCH_BOX(&fastdiff::cuda));
}
#endif
