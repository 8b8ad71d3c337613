// Attaches the kernel of fastdiff::self_attention; its schema stands in fastdiff/ops.
#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("self_attention.cpu");
CallCounter tile_calls("self_attention_tiles.cpu");  // of these

// Nothing where the kernels cannot read these images.
std::optional<Tokens> tokens_of(const Tensor& x) {
  const auto from = pixels(x);
  const std::int64_t height = x.size(2), width = x.size(3);
  if (!from || (height > 1 && width > 1 && from->row != width * from->pixel)) return std::nullopt;
  return Tokens{from->data, from->sample, width > 1 ? from->pixel : from->row};
}

Tensor self_attention(Tensor qkv, MaybeTensor image, std::int64_t heads, bool by_tiles) {
  const auto dtype = kernel_dtype(qkv.scalar_type());
  const auto first = tokens_of(qkv), same = tokens_of(image ? *image : qkv);
  const bool alike = !image || image->scalar_type() == qkv.scalar_type();
  if (!dtype || !first || !same || !alike) {
    return reference<1>("fastdiff::self_attention", qkv, image, heads, by_tiles)[0];
  }
  const std::int64_t N = qkv.size(0), C = qkv.size(1) / (image ? 1 : 3), height = qkv.size(2),
                     width = qkv.size(3);
  Tensor y = empty_beside(qkv, {N, C, height, width}, qkv.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  calls.add();
  if (by_tiles && *dtype == DType::bfloat16) tile_calls.add();
  if (y.numel() > 0) {
    const Tokens k = image ? *same : from_channel(*first, C, *dtype);
    const Tokens v = image ? *same : from_channel(*first, 2 * C, *dtype);
    self_attention_cpu({*first, k, v, y.mutable_data_ptr(), N, height * width, heads, C / heads,
                        *dtype, by_tiles});
  }
  return y;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("self_attention", &fastdiff::self_attention);
}
