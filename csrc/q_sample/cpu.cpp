#include "../common/philox.h"
#include "params.h"

namespace fastdiff {
namespace {

FASTDIFF_INLINE void mix(float of_x, float of_z, const float* x, const float* z, float* to,
                         int count) {
  by_vector(count, [&](int i, int lanes) FASTDIFF_LAMBDA_INLINE {
    store(to + i, of_x * load(x + i, lanes) + of_z * load(z + i, lanes), lanes);
  });
}

}  // namespace

FASTDIFF_CPU_CLONES void q_sample_cpu(const QSampleParams& p, std::int64_t begin,
                                      std::int64_t end) {
  float x_buffer[kRun], z_buffer[kRun], mixed_buffer[kRun];
  for (std::int64_t i = begin; i < end; ++i) {
    const Run run = p.runs[i];
    const double* row = p.table + 4 * p.t[run.sample];
    const float* z = read(p.noise, run, z_buffer);
    if (z == nullptr) {
      prefetch(p.x_start, run);
      const NoiseSource source{p.seed, p.sample_index[run.sample], p.draw[run.sample], p.stream};
      float* drawn = destination(p.z, run, z_buffer);
      normals(source, run.channel * p.runs.spatial + run.first, run.count, drawn);
      write(p.z, run, drawn);
      z = drawn;
    }
    const float* x = read(p.x_start, run, x_buffer);
    for (const Strided& mixture : {p.x_t, p.target}) {
      if (mixture.data != nullptr) {
        float* to = destination(mixture, run, mixed_buffer);
        mix(static_cast<float>(row[0]), static_cast<float>(row[1]), x, z, to, run.count);
        write(mixture, run, to);
      }
      row += 2;
    }
  }
}

}  // namespace fastdiff
