#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace fastdiff {

// y = softmax(q k^T / sqrt(head_channels)) v of every sample and head.
struct SelfAttentionParams {
  const void* qkv;             // [batch, tokens, 3, heads, head_channels]: a token's q, k and v
  std::int64_t sample, token;  // where its samples and tokens begin, in elements
  void* y;                     // [batch, tokens, heads, head_channels]
  std::int64_t batch, tokens, heads, head_channels;
  DType dtype;    // of both
  bool by_tiles;  // bfloat16 is multiplied as it is, by a matrix unit where there is one
};

void self_attention_cpu(const SelfAttentionParams& params);

}  // namespace fastdiff
