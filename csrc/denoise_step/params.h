#pragma once

#include "../common/strided.h"

namespace fastdiff {

constexpr int kColumns = 9;

// pred = clip((k_x * x_t + k_o * out) / threshold), out = uncond + guidance_scale * (out - uncond),
// x_prev = c_0 * pred + c_x * x_t + c_o * out + c_1 * before + sigma * exp((l_0 + l_v * raw) / 2) *
// z
struct DenoiseStepParams {
  Strided x_t, output, raw, uncond, before, noise;  // but for the first two, null where absent
  Strided x_prev, pred, model_input;                // the last two null where not asked for
  Runs runs;
  const double* table;     // [S, kColumns]
  const float* threshold;  // [N], or null
  BySample step, sample_index;
  std::uint64_t seed;
  std::int64_t stream;
  float guidance_scale, clip;  // clip is infinite where there is none
  bool draws;                  // z comes from Philox
};

void denoise_step_cpu(const DenoiseStepParams& params, std::int64_t begin, std::int64_t end);

}  // namespace fastdiff
