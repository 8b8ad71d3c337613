// Attaches the kernels of fastdiff::denoise_step and denoise_step_; their schemas stand in
// fastdiff/ops.
#include <limits>

#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

// The arguments but x_t, in the order of the schema.
struct Arguments {
  Tensor model_output, step, table;
  MaybeTensor uncond_output;
  double guidance_scale;
  std::optional<double> clip;
  MaybeTensor threshold, x_start_before, noise, seed, sample_index;
  std::int64_t stream;
  bool return_pred_x_start;
  std::optional<ScalarType> model_dtype;
};

template <int results>
std::array<Tensor, results> reference_of(const char* op, const Tensor& x_t, const Arguments& a) {
  return reference<results>(op, x_t, a.model_output, a.step, a.table, a.uncond_output,
                            a.guidance_scale, a.clip, a.threshold, a.x_start_before, a.noise,
                            a.seed, a.sample_index, a.stream, a.return_pred_x_start, a.model_dtype);
}

// The kernel's view of its inputs, or nothing where it does not cover them.
std::optional<DenoiseStepParams> params_of(const Tensor& x_t, const Arguments& a) {
  const auto x = strided(x_t), output = strided(a.model_output), uncond = strided(a.uncond_output),
             before = strided(a.x_start_before), noise = strided(a.noise);
  const bool vectors_fit = !a.threshold || (a.threshold->scalar_type() == ScalarType::Float &&
                                            a.threshold->is_contiguous());
  if (!x || !output || !uncond || !before || !noise || !vectors_fit || !a.table.is_contiguous() ||
      (a.model_dtype && !kernel_dtype(*a.model_dtype))) {
    return std::nullopt;
  }
  DenoiseStepParams p{};
  p.x_t = *x, p.output = *output, p.uncond = *uncond, p.before = *before, p.noise = *noise;
  p.runs = runs_of(x_t);
  if (a.model_output.size(1) > p.runs.channels) p.raw = from_channel(p.output, p.runs.channels);
  p.step = by_sample(a.step);
  p.table = rows(a.table, p.step, p.runs.batch, "fastdiff::denoise_step");
  p.threshold = a.threshold ? static_cast<const float*>(a.threshold->const_data_ptr()) : nullptr;
  p.draws = !a.noise && a.seed && a.sample_index;
  p.sample_index = by_sample(a.sample_index);
  p.seed = seed_of(a.seed);
  p.stream = a.stream;
  p.guidance_scale = static_cast<float>(a.guidance_scale);
  p.clip = static_cast<float>(a.clip.value_or(std::numeric_limits<double>::infinity()));
  return p;
}

void launch(DenoiseStepParams p, Tensor& x_prev, Tensor& pred, Tensor& model_input) {
  if (x_prev.numel() == 0) return;
  p.x_prev = *strided(x_prev);
  p.pred = *strided_if(pred.numel() > 0, pred);
  p.model_input = *strided_if(model_input.numel() > 0, model_input);
  flatten_channels(p.runs, {p.x_t, p.output, p.raw, p.uncond, p.before, p.noise, p.x_prev, p.pred,
                            p.model_input});
  parallel_runs(p.runs,
                [&](std::int64_t begin, std::int64_t end) { denoise_step_cpu(p, begin, end); });
}

Tensor pred_for(const Tensor& x_t, const Arguments& a) {
  return output(x_t, a.return_pred_x_start ? std::optional(x_t.scalar_type()) : std::nullopt);
}

CallCounter calls("denoise_step.cpu"), calls_in_place("denoise_step_.cpu");

std::tuple<Tensor, Tensor, Tensor> denoise_step(
    Tensor x_t, Tensor model_output, Tensor step, Tensor table, MaybeTensor uncond_output,
    double guidance_scale, std::optional<double> clip, MaybeTensor threshold,
    MaybeTensor x_start_before, MaybeTensor noise, MaybeTensor seed, MaybeTensor sample_index,
    std::int64_t stream, bool return_pred_x_start, std::optional<ScalarType> model_dtype) {
  const Arguments a{
      model_output,        step,           table, uncond_output, guidance_scale, clip,
      threshold,           x_start_before, noise, seed,          sample_index,   stream,
      return_pred_x_start, model_dtype};
  const auto params = params_of(x_t, a);
  if (!params) {
    const auto [x_prev, pred, model_input] = reference_of<3>("fastdiff::denoise_step", x_t, a);
    return {x_prev, pred, model_input};
  }
  calls.add();
  Tensor x_prev = output(x_t, x_t.scalar_type()), pred = pred_for(x_t, a);
  Tensor model_input = output(x_t, model_dtype);
  launch(*params, x_prev, pred, model_input);
  return {x_prev, pred, model_input};
}

std::tuple<Tensor, Tensor> denoise_step_(Tensor x_t, Tensor model_output, Tensor step, Tensor table,
                                         MaybeTensor uncond_output, double guidance_scale,
                                         std::optional<double> clip, MaybeTensor threshold,
                                         MaybeTensor x_start_before, MaybeTensor noise,
                                         MaybeTensor seed, MaybeTensor sample_index,
                                         std::int64_t stream, bool return_pred_x_start,
                                         std::optional<ScalarType> model_dtype) {
  const Arguments a{
      model_output,        step,           table, uncond_output, guidance_scale, clip,
      threshold,           x_start_before, noise, seed,          sample_index,   stream,
      return_pred_x_start, model_dtype};
  const auto params = params_of(x_t, a);
  if (!params) {
    const auto [pred, model_input] = reference_of<2>("fastdiff::denoise_step_", x_t, a);
    return {pred, model_input};
  }
  calls_in_place.add();
  Tensor pred = pred_for(x_t, a), model_input = output(x_t, model_dtype);
  launch(*params, x_t, pred, model_input);
  return {pred, model_input};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  FASTDIFF_CPU_OP("denoise_step", &fastdiff::denoise_step);
  FASTDIFF_CPU_OP("denoise_step_", &fastdiff::denoise_step_);
}
