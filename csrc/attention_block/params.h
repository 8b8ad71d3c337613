#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace fastdiff {

// y = (x + proj(softmax(q k^T / sqrt(C)) v)) * residual_scale with q, k, v = linear(group_norm(x)).
// Weights are [C, C], a row an output channel, in x's dtype; biases [C] or null.
struct AttentionBlockParams {
  const void* x;                         // [N, tokens, C]
  void* y;                               // as x
  ChannelVector norm_weight, norm_bias;  // null where not given
  // Folded, where `key` is null: `query` holds W_k^T W_q, its bias W_k^T b_q, `proj` W_o W_v.
  const void *query, *query_bias, *key, *value, *value_bias, *proj, *proj_bias;
  std::int64_t batch;
  int tokens, channels, groups, heads;
  float eps, residual_scale;
  DType dtype;  // of x, y, weights and biases: float16 or bfloat16
};

// Whether the current device's kernel serves these sizes.
bool attention_block_takes(const AttentionBlockParams& params);

// Returns the error's text, or null. `stream` is a cudaStream_t of the current device.
const char* attention_block_cuda(const AttentionBlockParams& params, void* stream);

// y = (x + h) * scale.
struct ResidualSumParams {
  const void *x, *h;
  void* y;
  float scale;
  DType dtype;  // of all
};

void residual_sum_cpu(const ResidualSumParams& params, std::int64_t begin, std::int64_t end);

}  // namespace fastdiff
