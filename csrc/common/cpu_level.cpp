#include "cpu_level.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

namespace fastdiff {
namespace {

CpuLevel of_processor() {
#if FASTDIFF_BY_LEVEL
  if (__builtin_cpu_supports("x86-64-v4")) {
    return __builtin_cpu_supports("avx512bf16") ? CpuLevel::v4_bf16 : CpuLevel::v4;
  }
  if (__builtin_cpu_supports("x86-64-v3")) return CpuLevel::v3;
#endif
  return CpuLevel::baseline;
}

constexpr std::array kNames = {"baseline", "v3", "v4", "v4_bf16"};

CpuLevel asked() {
  const char* value = std::getenv("FASTDIFF_CPU_LEVEL");
  const std::string_view name = value ? value : kNames.back();
  const auto* found = std::find(kNames.begin(), kNames.end(), name);
  return found == kNames.end() ? CpuLevel::v4_bf16 : static_cast<CpuLevel>(found - kNames.begin());
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = std::min(of_processor(), asked());
  return level;
}

}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) const char* fastdiff_cpu_level() {
  return fastdiff::kNames[static_cast<std::size_t>(fastdiff::cpu_level())];
}
