// The dtypes that kernels know, free of torch.
#pragma once

#include <cstdint>

namespace fastdiff {

enum class DType { float32, float16, bfloat16 };

// A vector with an entry for each (sample, channel); `data` is null where the caller gave none.
struct ChannelVector {
  const void* data = nullptr;
  std::int64_t sample_stride = 0;
  std::int64_t channel_stride = 0;
  DType dtype = DType::float32;
};

}  // namespace fastdiff
