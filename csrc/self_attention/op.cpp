// Attaches the kernel of fastdiff::self_attention; its schema stands in fastdiff/ops.
#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("self_attention.cpu");
CallCounter tile_calls("self_attention_tiles.cpu");  // of these

Tensor self_attention(Tensor qkv, std::int64_t heads, bool by_tiles) {
  const auto dtype = kernel_dtype(qkv.scalar_type());
  const auto from = pixels(qkv);
  const std::int64_t N = qkv.size(0), C = qkv.size(1) / 3, height = qkv.size(2),
                     width = qkv.size(3);
  const bool follow = from && (height <= 1 || width <= 1 || from->row == width * from->pixel);
  if (!dtype || !follow) return reference<1>("fastdiff::self_attention", qkv, heads, by_tiles)[0];
  Tensor y = empty_beside(qkv, {N, C, height, width}, qkv.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  calls.add();
  if (by_tiles && *dtype == DType::bfloat16) tile_calls.add();
  if (y.numel() > 0) {
    const std::int64_t pixel = width > 1 ? from->pixel : from->row;
    self_attention_cpu({from->data, from->sample, pixel, y.mutable_data_ptr(), N, height * width,
                        heads, C / heads, *dtype, by_tiles});
  }
  return y;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("self_attention", &fastdiff::self_attention);
}
