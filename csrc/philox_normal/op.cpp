// Attaches the kernel of fastdiff::philox_normal; its schema stands in fastdiff/ops.
#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

CallCounter calls("philox_normal.cpu");

Tensor philox_normal(std::vector<std::int64_t> shape, Tensor seed, Tensor sample_index, Tensor draw,
                     std::int64_t stream, ScalarType dtype) {
  if (!kernel_dtype(dtype)) {
    return reference<1>("fastdiff::philox_normal", shape, seed, sample_index, draw, stream,
                        dtype)[0];
  }
  Tensor z = torch::stable::new_empty(sample_index, shape, dtype);
  if (z.numel() == 0) return z;
  calls.add();
  const std::int64_t N = z.size(0), elements = z.numel() / N;
  const PhiloxNormalParams params{
      {z.mutable_data_ptr(), elements, elements, 1, *kernel_dtype(dtype)},
      {N, 1, elements},
      seed_of(seed),
      by_sample(sample_index),
      by_sample(draw),
      stream};
  parallel_runs(params.runs, [&](std::int64_t begin, std::int64_t end) {
    philox_normal_cpu(params, begin, end);
  });
  return z;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("philox_normal", &fastdiff::philox_normal);
}
