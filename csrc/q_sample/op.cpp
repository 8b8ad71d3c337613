// Attaches the kernel of fastdiff::q_sample; its schema stands in fastdiff/ops.
#include "../common/native_calls.h"
#include "../common/tensors.h"
#include "params.h"

namespace fastdiff {
namespace {

using Outputs = std::tuple<Tensor, Tensor, Tensor>;

CallCounter calls("q_sample.cpu");

Outputs q_sample(Tensor x_start, Tensor t, Tensor table, MaybeTensor noise, MaybeTensor seed,
                 MaybeTensor sample_index, MaybeTensor draw, std::int64_t stream, bool return_noise,
                 bool return_target) {
  const auto dtype = x_start.scalar_type();
  const auto asked = [&](bool wanted) {
    return output(x_start, wanted ? std::optional(dtype) : std::nullopt);
  };
  const auto source = strided(x_start), given = strided(noise);
  if (!source || !given || !table.is_contiguous()) {
    const auto [x_t, z, target] =
        reference<3>("fastdiff::q_sample", x_start, t, table, noise, seed, sample_index, draw,
                     stream, return_noise, return_target);
    return {x_t, z, target};
  }
  Tensor x_t = asked(true), z = asked(return_noise), target = asked(return_target);
  if (x_start.numel() == 0) return {x_t, z, target};
  calls.add();
  QSampleParams params{*source,
                       *given,
                       *strided(x_t),
                       *strided_if(return_noise, z),
                       *strided_if(return_target, target),
                       runs_of(x_start),
                       rows(table, by_sample(t), x_start.size(0), "fastdiff::q_sample"),
                       by_sample(t),
                       by_sample(sample_index),
                       by_sample(draw),
                       seed_of(seed),
                       stream};
  flatten_channels(params.runs,
                   {params.x_start, params.noise, params.x_t, params.z, params.target});
  parallel_runs(params.runs,
                [&](std::int64_t begin, std::int64_t end) { q_sample_cpu(params, begin, end); });
  return {x_t, z, target};
}

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library) {
  library.impl("q_sample", TORCH_BOX(&fastdiff::q_sample));
}
