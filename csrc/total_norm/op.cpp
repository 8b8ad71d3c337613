// Attaches the kernel of fastdiff::total_norm; its schema stands in fastdiff/ops.
#include <cmath>

#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

constexpr std::int64_t kTask = 65536;  // elements that are worth a thread

CallCounter calls("total_norm.cpu");

Tensor total_norm(std::vector<Tensor> tensors) {
  std::vector<SquaresTask> tasks;
  for (const Tensor& x : tensors) {
    if (x.scalar_type() != ScalarType::Float || !dense(x)) {
      return reference<1>("fastdiff::total_norm", tensors)[0];
    }
    const float* data = static_cast<const float*>(x.const_data_ptr());
    for (std::int64_t begin = 0; begin < x.numel(); begin += kTask) {
      tasks.push_back({data, begin, std::min(x.numel(), begin + kTask)});
    }
  }
  if (tasks.empty()) return reference<1>("fastdiff::total_norm", tensors)[0];
  calls.add();
  std::vector<double> sums(tasks.size());
  torch::stable::parallel_for(0, static_cast<std::int64_t>(tasks.size()), 1,
                              [&](std::int64_t begin, std::int64_t end) {
                                for (std::int64_t i = begin; i < end; ++i)
                                  sums[i] = sum_of_squares_cpu(tasks[i]);
                              });
  double total = 0;
  for (const double sum : sums) total += sum;
  Tensor norm = torch::stable::new_empty(tensors[0], std::array<std::int64_t, 0>{});
  *static_cast<float*>(norm.mutable_data_ptr()) = static_cast<float>(std::sqrt(total));
  return norm;
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("total_norm", TORCH_BOX(&fastdiff::total_norm));
}
