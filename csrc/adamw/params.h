#pragma once

#include <cstdint>

namespace fastdiff {

// AdamW's step of some weights: Loshchilov and Hutter 2019, algorithm 2.
struct AdamWParams {
  float *weight, *mean, *square;
  const float* gradient;
  float gradient_scale;        // of what is in `gradient`
  float kept;                  // of the weight: 1 - learning_rate * weight_decay
  float beta1, beta2;          // kept of the mean and of the square
  float new_mean, new_square;  // 1 - beta
  float step_size;             // learning_rate / (1 - beta1^step)
  float inverse_root;          // 1 / sqrt(1 - beta2^step)
  float eps;
};

// The elements from `begin` to `end`, in the order of memory.
struct AdamWTask {
  const AdamWParams* params;
  std::int64_t begin, end;
};

void adamw_cpu(const AdamWTask& task);

}  // namespace fastdiff
