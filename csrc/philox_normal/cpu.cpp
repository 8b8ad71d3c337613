#include "../common/philox.h"
#include "params.h"

namespace fastdiff {

FASTDIFF_CPU_CLONES void philox_normal_cpu(const PhiloxNormalParams& p, std::int64_t begin,
                                           std::int64_t end) {
  float buffer[kRun];
  for (std::int64_t i = begin; i < end; ++i) {
    const Run run = p.runs[i];
    const NoiseSource source{p.seed, p.sample_index[run.sample], p.draw[run.sample], p.stream};
    float* z = destination(p.z, run, buffer);
    normals(source, run.first, run.count, z);
    write(p.z, run, z);
  }
}

}  // namespace fastdiff
