// What the ops' registrations share on LibTorch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "dtype.h"
#include "huge_pages.h"
#include "pixels.h"
#include "strided.h"

namespace fastdiff {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline std::optional<DType> kernel_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      return std::nullopt;
  }
}

// Whether channels vary fastest, then the last axis, and the sample slowest, without gaps.
inline bool channels_lie_last(const Tensor& x) {
  std::int64_t expected = 1;
  const auto matches = [&](std::int64_t axis) {
    const bool match = x.size(axis) == 1 || x.stride(axis) == expected;
    expected *= x.size(axis);
    return match;
  };
  if (!matches(1)) return false;
  for (std::int64_t axis = x.dim() - 1; axis >= 2; --axis) {
    if (!matches(axis)) return false;
  }
  return matches(0);
}

// Whether no memory lies between the elements.
inline bool dense(const Tensor& x) {
  std::int64_t last = 0;
  for (std::int64_t axis = 0; axis < x.dim(); ++axis) {
    if (x.size(axis) == 0) return true;
    last += (x.size(axis) - 1) * x.stride(axis);
  }
  return last + 1 == x.numel();
}

// As the kernels take it, or nothing where its dtype or its spatial strides are not theirs.
inline std::optional<Strided> strided(const Tensor& x) {
  const auto dtype = kernel_dtype(x.scalar_type());
  if (!dtype) return std::nullopt;
  std::int64_t stride = 1, expected = 0;
  for (std::int64_t axis = x.dim() - 1; axis >= 2; --axis) {
    if (x.size(axis) == 1) continue;
    if (expected == 0) {
      stride = expected = x.stride(axis);
    } else if (x.stride(axis) != expected) {
      return std::nullopt;
    }
    expected *= x.size(axis);
  }
  return Strided{x.mutable_data_ptr(), x.dim() > 0 ? x.stride(0) : 0, x.dim() > 1 ? x.stride(1) : 0,
                 stride, *dtype};
}

// A tensor that the caller may leave out; null where it did.
inline std::optional<Strided> strided(const MaybeTensor& x) { return x ? strided(*x) : Strided{}; }

inline std::optional<Strided> strided_if(bool asked_for, const Tensor& x) {
  return asked_for ? strided(x) : Strided{};
}

// The channels from `channel` on.
inline Strided from_channel(const Strided& v, std::int64_t channel) {
  const std::int64_t size = v.dtype == DType::float32 ? 4 : 2;
  Strided rest = v;
  rest.data = static_cast<char*>(v.data) + channel * v.channel_stride * size;
  return rest;
}

inline Runs runs_of(const Tensor& x) {
  const std::int64_t N = x.size(0), C = x.dim() > 1 ? x.size(1) : 1;
  return {N, C, x.numel() > 0 ? x.numel() / (N * C) : 0};
}

// Takes channels and pixels for one axis where every tensor's lie as one.
inline void flatten_channels(Runs& runs, const std::vector<Strided>& tensors) {
  for (const Strided& v : tensors) {
    if (v.data == nullptr) continue;
    if (v.stride != 1 || (runs.channels > 1 && v.channel_stride != runs.spatial)) return;
  }
  runs.spatial *= runs.channels;
  runs.channels = 1;
}

// The runs on all threads; `kernel` takes a range of them.
template <class Kernel>
void parallel_runs(const Runs& runs, const Kernel& kernel) {
  constexpr std::int64_t kTaskWork = 16384;  // elements that are worth a thread
  const std::int64_t length = std::max<std::int64_t>(1, std::min<std::int64_t>(kRun, runs.spatial));
  torch::stable::parallel_for(0, runs.count(), std::max<std::int64_t>(1, kTaskWork / length),
                              kernel);
}

inline float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }

inline std::vector<std::int64_t> dense_strides(const std::vector<std::int64_t>& sizes,
                                               bool channels_last) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  const auto next = [&](std::size_t axis) {
    strides[axis] = stride;
    stride *= std::max<std::int64_t>(1, sizes[axis]);
  };
  if (channels_last) next(1);
  for (std::size_t axis = sizes.size(); axis-- > 0;) {
    if (!channels_last || axis != 1) next(axis);
  }
  return strides;
}

// On the CPU from huge pages where that gains, as their tensors cannot be resized.
inline Tensor empty_beside(const Tensor& x, const std::vector<std::int64_t>& sizes,
                           ScalarType dtype, torch::headeronly::MemoryFormat format) {
  if (const auto known = kernel_dtype(dtype); known && x.is_cpu()) {
    std::size_t bytes = *known == DType::float32 ? 4 : 2;
    for (const std::int64_t size : sizes) bytes *= static_cast<std::size_t>(size);
    if (void* block = huge_pages::take(bytes)) {
      const bool channels_last = format != torch::headeronly::MemoryFormat::Contiguous;
      return torch::stable::from_blob(block, sizes, dense_strides(sizes, channels_last), x.device(),
                                      dtype, huge_pages::give_back);
    }
  }
  return torch::stable::empty(sizes, dtype, std::nullopt, x.device(), std::nullopt, format);
}

inline Tensor empty_like(const Tensor& x, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(x),
                                    from(std::optional(dtype)),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// An output in x's memory format, or the empty [0] that stands for one not asked for.
inline Tensor output(const Tensor& x, std::optional<ScalarType> dtype) {
  const std::array<std::int64_t, 1> none{0};
  return dtype ? empty_like(x, *dtype) : torch::stable::new_empty(x, none);
}

// The overload `reference` of an op, for inputs that its kernel does not cover.
template <int results, class... Args>
std::array<Tensor, results> reference(const char* op, const Args&... args) {
  std::array<StableIValue, std::max<int>(sizeof...(args), results)> stack{
      torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "reference", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, results> outputs;
  for (int i = 0; i < results; ++i) outputs[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return outputs;
}

// Of [N, C, H, W]; nothing where the channels of a pixel do not lie side by side.
inline std::optional<Pixels> pixels(const Tensor& x) {
  if (x.stride(1) != 1 && x.size(1) != 1) return std::nullopt;
  return Pixels{x.const_data_ptr(), x.stride(0), x.stride(2), x.stride(3)};
}

inline BySample by_sample(const Tensor& x) {
  return {static_cast<const std::int64_t*>(x.const_data_ptr()), x.stride(0)};
}

inline BySample by_sample(const MaybeTensor& x) { return x ? by_sample(*x) : BySample{}; }

inline std::uint64_t seed_of(const MaybeTensor& seed) {
  return seed ? *static_cast<const std::uint64_t*>(seed->const_data_ptr()) : 0;
}

// The rows of a float64 table that the samples ask for.
inline const double* rows(const Tensor& table, const BySample& row, std::int64_t samples,
                          const char* op) {
  for (std::int64_t n = 0; n < samples; ++n) {
    STD_TORCH_CHECK(row[n] >= 0 && row[n] < table.size(0), op, ": row ", row[n], " of a table of ",
                    table.size(0));
  }
  return static_cast<const double*>(table.const_data_ptr());
}

}  // namespace fastdiff
