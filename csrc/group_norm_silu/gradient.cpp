// With h = (x - mean) * rstd and dz the gradient of what SiLU takes, every gradient follows from
// each channel's sums of dz, dz * h and h; a second pass over x and y's gradient makes that of x.
#include <array>
#include <vector>

#include "cpu_stages.h"

namespace fastdiff {
namespace {

// Rows of channels: the gradient of x is slope * dz - ((x - center) * linear + constant).
struct Backward {
  Coefficients forward;
  float *constant, *linear;
};

// A sample's parts of what is summed over samples, [channels] each.
struct OfParameters {
  double *weight, *bias;
};

struct Kernels {
  void (*slabs)(const GroupNormSiluGradientParams&, std::int64_t begin, std::int64_t end,
                double* of_parameters);
  void (*begin)(const GroupNormSiluGradientParams&, std::int64_t sample, const Rows&,
                const Coefficients&);
  void (*sum_tile)(const GroupNormSiluGradientParams&, const Tile&, const Coefficients&,
                   float* sums);
  void (*merge)(const GroupNormSiluGradientParams&, std::int64_t sample, const float* sums,
                std::int64_t tiles, const Rows&, const Backward&, const OfParameters&);
  void (*output_tile)(const GroupNormSiluGradientParams&, const Tile&, const Backward&);
};

OfParameters of_sample(const GroupNormSiluGradientParams& p, double* parts, std::int64_t sample) {
  const std::int64_t C = p.forward.channels;
  return {parts + 2 * sample * C, parts + (2 * sample + 1) * C};
}

}  // namespace
}  // namespace fastdiff

#define FASTDIFF_KERNELS "../group_norm_silu/gradient_kernels.h"
#include "../common/cpu_targets.h"

namespace fastdiff {
namespace {

class Stages {
  const GroupNormSiluGradientParams& p_;
  const Kernels& kernels_;
  double* const of_parameters_;
  const std::int64_t C_ = p_.forward.channels;
  const Tiles tiles_{C_, p_.forward.spatial};
  const std::unique_ptr<float[]> sums_{new float[p_.forward.batch * tiles_.of_sample * 3 * C_]};
  const std::unique_ptr<float[]> coefficients_{new float[p_.forward.batch * 5 * C_]};

  Backward coefficients(std::int64_t sample) const {
    float* row = coefficients_.get() + sample * 5 * C_;
    return {{row, row + C_, row + 2 * C_}, row + 3 * C_, row + 4 * C_};
  }
  float* sums(std::int64_t tile) const { return sums_.get() + tile * 3 * C_; }

 public:
  Stages(const GroupNormSiluGradientParams& p, const Kernels& kernels, double* of_parameters)
      : p_(p), kernels_(kernels), of_parameters_(of_parameters) {}

  void begin(std::int64_t sample, const Rows& rows) const {
    kernels_.begin(p_, sample, rows, coefficients(sample).forward);
  }
  void sum(std::int64_t i) const {
    kernels_.sum_tile(p_, tiles_[i], coefficients(i / tiles_.of_sample).forward, sums(i));
  }
  void merge(std::int64_t sample, const Rows& rows) const {
    kernels_.merge(p_, sample, sums(sample * tiles_.of_sample), tiles_.of_sample, rows,
                   coefficients(sample), of_sample(p_, of_parameters_, sample));
  }
  void output(std::int64_t i) const {
    kernels_.output_tile(p_, tiles_[i], coefficients(i / tiles_.of_sample));
  }
};

void sum_over_samples(const GroupNormSiluGradientParams& p, double* parts) {
  const std::int64_t C = p.forward.channels;
  std::vector<double> sums(2 * C);
  for (std::int64_t n = 0; n < p.forward.batch; ++n) {
    for (std::int64_t i = 0; i < 2 * C; ++i) sums[i] += parts[n * 2 * C + i];
  }
  for (std::int64_t c = 0; c < C; ++c) {
    p.of_weight[c] = static_cast<float>(sums[c]);
    p.of_bias[c] = static_cast<float>(sums[C + c]);
  }
}

}  // namespace

void group_norm_silu_gradient_cpu(const GroupNormSiluGradientParams& p) {
  static const auto kernels_for = FASTDIFF_FOR_THIS_PROCESSOR(kernels);
  const GroupNormSiluParams& forward = p.forward;
  const Kernels kernels = kernels_for(forward.dtype, forward.residual != nullptr);
  const std::unique_ptr<double[]> parts(new double[forward.batch * 2 * forward.channels]);
  if (forward.channels_last) {
    channels_last(forward, Stages(p, kernels, parts.get()));
  } else {
    parallel(
        forward.batch * forward.groups, forward.channels / forward.groups * forward.spatial,
        [&](std::int64_t begin, std::int64_t end) { kernels.slabs(p, begin, end, parts.get()); });
  }
  sum_over_samples(p, parts.get());
}

}  // namespace fastdiff
