// Attention with whole rows of scores. Heads are shared out among threads, and blocks of queries
// where heads are few; every sum has one order, so the bits depend neither on the threads nor on
// the batch.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "../common/panels.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr int kQueries = 32;  // of a block

struct SelfAttention {
  // In floats: a head's keys and values, and what a block of queries needs beside them.
  std::int64_t (*packed_size)(const SelfAttentionParams&);
  std::int64_t (*scratch_size)(const SelfAttentionParams&);
  void (*pack)(const SelfAttentionParams&, std::int64_t head, std::int64_t panel, float* packed);
  void (*attend)(const SelfAttentionParams&, std::int64_t head, const Range& queries,
                 const float* packed, float* scratch);
};

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../self_attention/cpu_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {

void self_attention_cpu(const SelfAttentionParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(self_attention);
  const SelfAttention kernels = kernels_for(p.dtype, p.by_tiles, has_matrix_unit());
  static thread_local Workspace packed_space;
  const std::int64_t heads = p.batch * p.heads;
  const Range panels{0, divide_up(p.tokens, kPanel)}, blocks{0, divide_up(p.tokens, kQueries)};
  const auto pack = [&](std::int64_t head, const Range& some, float* packed) {
    for (std::int64_t i = some.first; i < some.last; ++i) kernels.pack(p, head, i, packed);
  };
  const auto attend = [&](std::int64_t head, const Range& some, const float* packed) {
    static thread_local Workspace scratch_space;
    float* const scratch = scratch_space.at_least(kernels.scratch_size(p));
    for (std::int64_t i = some.first; i < some.last; ++i) {
      const Range queries{i * kQueries, std::min((i + 1) * kQueries, p.tokens)};
      kernels.attend(p, head, queries, packed, scratch);
    }
  };
  if (heads >= torch::stable::get_num_threads()) {
    torch::stable::parallel_for(0, heads, 1, [&](std::int64_t begin, std::int64_t end) {
      float* const packed = packed_space.at_least(kernels.packed_size(p));
      for (std::int64_t head = begin; head < end; ++head) {
        pack(head, panels, packed);
        attend(head, blocks, packed);
      }
    });
    return;
  }
  float* const packed = packed_space.at_least(kernels.packed_size(p));
  for (std::int64_t head = 0; head < heads; ++head) {
    torch::stable::parallel_for(0, panels.last, 1, [&](std::int64_t begin, std::int64_t end) {
      pack(head, {begin, end}, packed);
    });
    torch::stable::parallel_for(0, blocks.last, 1, [&](std::int64_t begin, std::int64_t end) {
      attend(head, {begin, end}, packed);
    });
  }
}

}  // namespace fastdiff
