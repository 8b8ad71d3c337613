// Chooses between the kernels of the attention block, and between their shapes.
#include <algorithm>
#include <cstdint>

#include "many_heads.h"
#include "one_head.h"
#include "params.h"

namespace fastdiff {
namespace attention {
namespace {

using Launch = cudaError_t (*)(const AttentionBlockParams&, unsigned cluster, cudaStream_t);

template <class T, class S>
cudaError_t launch_one_head(const AttentionBlockParams& p, unsigned, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.batch * S::tiles(p.tokens));
  return launch(one_head<T, S>, {dim3(blocks), kThreads, S::shared(p.tokens)}, stream, p);
}

template <class T, class S>
cudaError_t launch_many_heads(const AttentionBlockParams& p, unsigned cluster,
                              cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.batch * cluster);
  return launch(many_heads<T, S>, {dim3(blocks), kThreads, S::shared, cluster}, stream, p, cluster);
}

// What a block of threads has to do.
struct Work {
  double tokens, channels;  // of the image to load and normalise
  double operations, rate;  // of tensor cores: in all, and a clock cycle
  double weights;           // bytes to stream
  std::int64_t blocks;
  int resident;  // blocks an SM
};

// An estimate in clock cycles, to choose by: tensor cores or the stream of weights, whichever is
// slower, after the image has come. The rates are not measured yet.
double estimated_time(const Work& work, const Device& device) {
  constexpr double kStreamRate = 45, kStartRate = 8;  // bytes, values a cycle
  const double products = std::max(work.operations / work.rate, work.weights / kStreamRate);
  const double start = work.tokens * work.channels / kStartRate;
  const std::int64_t rounds = (work.blocks + device.multiprocessors - 1) / device.multiprocessors;
  return rounds * products + (rounds + work.resident - 1) / work.resident * start;
}

template <class Grid>
constexpr double kRate = Grid::M == 64   ? 2300
                         : Grid::N == 64 ? 2000
                                         : 1500;

struct Choice {
  Launch launch = nullptr;
  unsigned cluster = 1;
  double time = 0;

  void consider(const Choice& other) {
    if (launch == nullptr || other.time < time) *this = other;
  }

  template <class T, class S>
  void consider_one_head(const AttentionBlockParams& p, const Device& device) {
    if (p.channels > S::width || p.tokens > S::tokens) return;
    if (S::shared(p.tokens) > device.shared) return;
    const double C = p.channels, padded = S::padded(p.tokens), matrices = p.key == nullptr ? 2 : 4;
    const Work work{padded,
                    C,
                    2 * S::rows * C * (matrices * C + 2 * padded),
                    kRate<typename S::Channels>,
                    matrices * C * C * 2,
                    p.batch * S::tiles(p.tokens),
                    S::resident};
    consider({launch_one_head<T, S>, 1, estimated_time(work, device)});
  }

  template <class T, class S>
  void consider_many_heads(const AttentionBlockParams& p, const Device& device) {
    if (p.channels > S::pitch || p.tokens > S::rows || S::shared > device.shared) return;
    for (unsigned cluster = 1; cluster <= device.cluster; ++cluster) {
      const int width = p.channels / cluster;
      if (p.heads % cluster != 0 || width % 64 != 0 || width > S::width) continue;
      const double C = p.channels;
      const Work work{S::rows,
                      C,
                      2 * S::rows * S::width * (4 * C + 2 * S::rows),
                      kRate<typename S::Channels>,
                      4 * width * C * 2,
                      p.batch * cluster,
                      S::resident};
      consider({launch_many_heads<T, S>, cluster, estimated_time(work, device)});
    }
  }
};

template <class T>
Choice best_launch(const AttentionBlockParams& p) {
  Choice choice;
  const bool served = p.tokens > 0 && p.heads > 0 && p.channels % 64 == 0 &&
                      p.channels % (16 * p.heads) == 0 && p.groups >= 0 &&
                      (p.groups == 0 || p.channels % p.groups == 0);
  if (!served) return choice;
  const Device device = current_device();
  if (p.heads > 1 && p.key != nullptr) {
    choice.consider_many_heads<T, ManyHeadsShape<256, 128, 4, 2>>(p, device);
    choice.consider_many_heads<T, ManyHeadsShape<256, 256, 4, 1>>(p, device);
    choice.consider_many_heads<T, ManyHeadsShape<512, 128, 4, 1>>(p, device);
    choice.consider_many_heads<T, ManyHeadsShape<512, 256, 4, 1>>(p, device);
    choice.consider_many_heads<T, ManyHeadsShape<768, 256, 2, 1>>(p, device);
  }
  if (p.heads == 1) {
    choice.consider_one_head<T, OneHeadShape<64, 256, 64, 4, 1>>(p, device);
    choice.consider_one_head<T, OneHeadShape<32, 256, 64, 3, 2>>(p, device);
    choice.consider_one_head<T, OneHeadShape<64, 512, 64, 3, 1>>(p, device);
    choice.consider_one_head<T, OneHeadShape<32, 512, 64, 3, 1>>(p, device);
  }
  if (p.heads == 1 && p.tokens > 64) {
    choice.consider_one_head<T, OneHeadShape<128, 256, 256, 2, 1>>(p, device);
    choice.consider_one_head<T, OneHeadShape<64, 256, 256, 4, 1>>(p, device);
    choice.consider_one_head<T, OneHeadShape<32, 256, 256, 4, 1>>(p, device);
  }
  return choice;
}

Choice best_launch(const AttentionBlockParams& p) {
  switch (p.dtype) {
    case DType::float16:
      return best_launch<__half>(p);
    case DType::bfloat16:
      return best_launch<__nv_bfloat16>(p);
    default:
      return {};
  }
}

}  // namespace
}  // namespace attention

bool attention_block_takes(const AttentionBlockParams& p) {
  return attention::best_launch(p).launch != nullptr;
}

const char* attention_block_cuda(const AttentionBlockParams& p, void* stream) {
  const attention::Choice choice = attention::best_launch(p);
  if (choice.launch == nullptr) return "no kernel serves these sizes";
  const cudaError_t status = choice.launch(p, choice.cluster, static_cast<cudaStream_t>(stream));
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

}  // namespace fastdiff
