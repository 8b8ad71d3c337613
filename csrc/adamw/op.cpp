// Attaches the kernel of fastdiff::adamw_; its schema stands in fastdiff/ops.
#include <cmath>

#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

using Tensors = std::vector<Tensor>;

constexpr std::int64_t kTask = 16384;  // elements that are worth a thread

CallCounter calls("adamw_.cpu");

bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (std::int64_t axis = 0; axis < a.dim(); ++axis) {
    if (a.size(axis) != b.size(axis)) return false;
    if (a.size(axis) != 1 && a.stride(axis) != b.stride(axis)) return false;
  }
  return true;
}

bool covered(const Tensor& weight, const Tensor& gradient, const Tensor& mean,
             const Tensor& square) {
  for (const Tensor* x : {&weight, &gradient, &mean, &square}) {
    if (x->scalar_type() != ScalarType::Float || !same_layout(*x, weight)) return false;
  }
  return dense(weight);
}

void adamw(Tensors weights, Tensors gradients, Tensors means, Tensors squares,
           std::vector<std::int64_t> steps, double gradient_scale, double learning_rate,
           double beta1, double beta2, double eps, double weight_decay) {
  const std::size_t count = weights.size();
  STD_TORCH_CHECK(gradients.size() == count && means.size() == count && squares.size() == count &&
                      steps.size() == count,
                  "fastdiff::adamw_: lists of different lengths");
  bool all_covered = true;
  for (std::size_t i = 0; i < count; ++i) {
    all_covered = all_covered && covered(weights[i], gradients[i], means[i], squares[i]);
  }
  if (!all_covered) {
    reference<0>("fastdiff::adamw_", weights, gradients, means, squares, steps, gradient_scale,
                 learning_rate, beta1, beta2, eps, weight_decay);
    return;
  }
  calls.add();
  std::vector<AdamWParams> params;
  params.reserve(count);
  std::vector<AdamWTask> tasks;
  for (std::size_t i = 0; i < count; ++i) {
    const double step = static_cast<double>(steps[i]);
    params.push_back(
        {floats(weights[i]), floats(means[i]), floats(squares[i]), floats(gradients[i]),
         static_cast<float>(gradient_scale), static_cast<float>(1 - learning_rate * weight_decay),
         static_cast<float>(beta1), static_cast<float>(beta2), static_cast<float>(1 - beta1),
         static_cast<float>(1 - beta2),
         static_cast<float>(learning_rate / (1 - std::pow(beta1, step))),
         static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step))), static_cast<float>(eps)});
    const std::int64_t n = weights[i].numel();
    for (std::int64_t begin = 0; begin < n; begin += kTask) {
      tasks.push_back({&params.back(), begin, std::min(n, begin + kTask)});
    }
  }
  torch::stable::parallel_for(0, static_cast<std::int64_t>(tasks.size()), 1,
                              [&](std::int64_t begin, std::int64_t end) {
                                for (std::int64_t i = begin; i < end; ++i) adamw_cpu(tasks[i]);
                              });
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("adamw_", TORCH_BOX(&fastdiff::adamw));
}
