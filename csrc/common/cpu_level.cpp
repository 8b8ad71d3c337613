#include "cpu_level.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string_view>

#if FASTDIFF_BY_LEVEL
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

bool matrix_unit_allowed() {
#if FASTDIFF_BY_LEVEL
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;  // of leaf 7's edx
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d & kBFloat16) == 0 || (d & kTiles) == 0) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_matrix_unit() {
  static const bool has = cpu_level() == CpuLevel::v4_bf16 && matrix_unit_allowed();
  return has;
}

CpuLevel cpu_level() {
  static const CpuLevel level = std::min(of_processor(), asked());
  return level;
}

}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) const char* fastdiff_cpu_level() {
  return fastdiff::kNames[static_cast<std::size_t>(fastdiff::cpu_level())];
}

extern "C" __attribute__((visibility("default"))) bool fastdiff_has_matrix_unit() {
  return fastdiff::has_matrix_unit();
}
