// Attaches the kernel of fastdiff::join_channels; its schema stands in fastdiff/ops.
#include <cstring>

#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kTask = 65536;  // bytes that are worth a thread

CallCounter calls("join_channels.cpu");

// A pixel's channels, and where those of all pixels begin.
struct Part {
  Pixels pixels;
  std::int64_t size;  // of a channel
  std::size_t bytes;  // of a pixel's channels

  const char* at(std::int64_t n, std::int64_t row, std::int64_t column) const {
    const std::int64_t element = n * pixels.sample + row * pixels.row + column * pixels.pixel;
    return static_cast<const char*>(pixels.data) + element * size;
  }
};

std::optional<Part> part(const Tensor& x) {
  const auto dtype = kernel_dtype(x.scalar_type());
  const auto channels = pixels(x);
  if (!dtype || !channels) return std::nullopt;
  const std::int64_t size = *dtype == DType::float32 ? 4 : 2;
  return Part{*channels, size, static_cast<std::size_t>(x.size(1) * size)};
}

Tensor join_channels(Tensor a, Tensor b) {
  const auto first = part(a), second = part(b);
  if (!first || !second) return reference<1>("fastdiff::join_channels", a, b)[0];
  const std::int64_t N = a.size(0), height = a.size(2), width = a.size(3);
  Tensor y = empty_beside(a, {N, a.size(1) + b.size(1), height, width}, a.scalar_type(),
                          torch::headeronly::MemoryFormat::ChannelsLast);
  calls.add();
  if (y.numel() == 0) return y;
  const std::size_t bytes = first->bytes + second->bytes;
  char* to = static_cast<char*>(y.mutable_data_ptr());
  const auto rows_for = kTask / (width * static_cast<std::int64_t>(bytes)) + 1;
  torch::stable::parallel_for(0, N * height, rows_for, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      for (std::int64_t column = 0; column < width; ++column) {
        char* pixel = to + (row * width + column) * static_cast<std::int64_t>(bytes);
        std::memcpy(pixel, first->at(row / height, row % height, column), first->bytes);
        std::memcpy(pixel + first->bytes, second->at(row / height, row % height, column),
                    second->bytes);
      }
    }
  });
  return y;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("join_channels", &fastdiff::join_channels);
}
