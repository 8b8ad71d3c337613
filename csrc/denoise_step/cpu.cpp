#include "../common/philox.h"
#include "params.h"

namespace fastdiff {
namespace {

struct Row {
  float k_x, k_o, c_0, c_x, c_o, c_1, sigma, l_0, l_v;
};

Row row_of(const DenoiseStepParams& p, std::int64_t sample) {
  const double* from = p.table + kColumns * p.step[sample];
  float to[kColumns];
  std::copy(from, from + kColumns, to);
  return bit_cast<Row>(to);
}

// One run's values in float32; those absent are null.
struct Values {
  const float *x, *out, *raw, *uncond, *before, *z;
  float *x_prev, *pred;
};

FASTDIFF_INLINE void step(const DenoiseStepParams& p, const Row& row, float threshold,
                          const Values& v, int i, int lanes) {
  const Floats x = load(v.x + i, lanes);
  Floats out = load(v.out + i, lanes);
  if (v.uncond) {
    const Floats uncond = load(v.uncond + i, lanes);
    out = uncond + p.guidance_scale * (out - uncond);
  }
  Floats pred = row.k_x * x + row.k_o * out;
  if (p.threshold) pred /= threshold;
  pred = pred > p.clip ? splat(p.clip) : pred;
  pred = pred < -p.clip ? splat(-p.clip) : pred;
  Floats x_prev = row.c_0 * pred + row.c_x * x + row.c_o * out;
  if (v.before) x_prev += row.c_1 * load(v.before + i, lanes);
  if (v.z) {
    Floats sigma = splat(row.sigma);
    if (v.raw) sigma *= exp(0.5f * (row.l_0 + row.l_v * load(v.raw + i, lanes)));
    x_prev += sigma * load(v.z + i, lanes);
  }
  store(v.x_prev + i, x_prev, lanes);
  if (v.pred) store(v.pred + i, pred, lanes);
}

}  // namespace

FASTDIFF_CPU_CLONES void denoise_step_cpu(const DenoiseStepParams& p, std::int64_t begin,
                                          std::int64_t end) {
  float buffers[8][kRun];
  for (std::int64_t i = begin; i < end; ++i) {
    const Run run = p.runs[i];
    const Row row = row_of(p, run.sample);
    const float threshold = p.threshold ? p.threshold[run.sample] : 1.0f;
    if (p.draws) {
      for (const Strided& v : {p.x_t, p.output, p.raw}) prefetch(v, run);
      const std::int64_t sample = p.sample_index[run.sample], draw = p.step[run.sample] + 1;
      normals({p.seed, sample, draw, p.stream}, run.channel * p.runs.spatial + run.first, run.count,
              buffers[5]);
    }
    const Values v{read(p.x_t, run, buffers[0]),
                   read(p.output, run, buffers[1]),
                   read(p.raw, run, buffers[2]),
                   read(p.uncond, run, buffers[3]),
                   read(p.before, run, buffers[4]),
                   p.draws ? buffers[5] : read(p.noise, run, buffers[5]),
                   destination(p.x_prev, run, buffers[6]),
                   p.pred.data ? destination(p.pred, run, buffers[7]) : nullptr};
    by_vector(run.count, [&](int at, int lanes)
                             FASTDIFF_LAMBDA_INLINE { step(p, row, threshold, v, at, lanes); });
    write(p.x_prev, run, v.x_prev);
    write(p.pred, run, v.pred);
    write(p.model_input, run, v.x_prev);
  }
}

}  // namespace fastdiff
