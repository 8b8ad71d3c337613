#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace fastdiff {

// [batch, tokens, heads, head_channels]; where samples and tokens begin, in elements.
struct Tokens {
  const void* data;
  std::int64_t sample, token;
};

// The channels from `channel` on.
inline Tokens from_channel(const Tokens& tokens, std::int64_t channel, DType dtype) {
  const std::int64_t size = dtype == DType::float32 ? 4 : 2;
  return {static_cast<const char*>(tokens.data) + channel * size, tokens.sample, tokens.token};
}

// y = softmax(q k^T / sqrt(head_channels)) v of every sample and head.
struct SelfAttentionParams {
  Tokens q, k, v;
  void* y;  // [batch, tokens, heads, head_channels]
  std::int64_t batch, tokens, heads, head_channels;
  DType dtype;    // of all
  bool by_tiles;  // bfloat16 is multiplied as it is, by a matrix unit where there is one
};

void self_attention_cpu(const SelfAttentionParams& params);

}  // namespace fastdiff
