// Attaches the kernels of fastdiff::strided_conv3x3, which are conv1x1's on patches of 3x3 pixels;
// its schema stands in fastdiff/ops.
#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "../conv1x1/params.h"
#include "../direct_convolution/params.h"

namespace fastdiff {
namespace {

CallCounter calls("strided_conv3x3.cpu");
CallCounter direct_calls("strided_conv3x3_direct.cpu");  // of these

// As few of equal height as lie in a cache; `row` values a row.
std::int64_t blocks_of_rows(std::int64_t rows, std::int64_t row) {
  std::int64_t blocks = 1;
  while (blocks < rows && (rows % blocks != 0 || rows / blocks * row > kImagesInCache)) ++blocks;
  return blocks;
}

Tensor strided_conv3x3(Tensor x, Tensor weight, MaybeTensor bias, MaybeTensor packed,
                       bool centered) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto from = pixels(x);
  const std::int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const std::int64_t O = weight.size(0), before = centered ? 1 : 0;
  const bool by_tiles = packed && packed->scalar_type() == ScalarType::BFloat16;
  const std::int64_t height = (H + before) / 2, width = (W + before) / 2;
  const bool covered = packed && dtype && from && C > 0 && height > 0 && width > 0;
  if (!covered || (by_tiles && dtype != DType::bfloat16)) {
    return reference<1>("fastdiff::strided_conv3x3", x, weight, bias, packed, centered)[0];
  }
  const Patches patches{C, H, W, before};
  Tensor y = empty_beside(x, {N, O, height, width}, x.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  if (y.numel() == 0) return y;
  calls.add();
  const void* const of_channels = bias ? bias->const_data_ptr() : nullptr;
  if (by_tiles) {
    direct_calls.add();
    const std::int64_t blocks = blocks_of_rows(height, width * 9 * C);
    direct_convolution_cpu({*from, Pixels{}, y.mutable_data_ptr(), packed->const_data_ptr(),
                            of_channels, N * blocks, 9 * C, O, height / blocks, width, 1, false, 1,
                            blocks, patches});
  } else {
    conv1x1_cpu({*from, Pixels{}, y.mutable_data_ptr(),
                 static_cast<const float*>(packed->const_data_ptr()), of_channels, N, 9 * C, O,
                 height, width, 1, *dtype, patches});
  }
  return y;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("strided_conv3x3", &fastdiff::strided_conv3x3);
}
