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

#if FASTDIFF_BY_LEVEL
bool has_amx() {
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;  // of leaf 7's edx
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBFloat16) && (d & kTiles);
}

// Whether the system lets this process use it.
bool gets_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

CpuLevel of_processor() {
  if (!__builtin_cpu_supports("x86-64-v4")) {
    return __builtin_cpu_supports("x86-64-v3") ? CpuLevel::v3 : CpuLevel::baseline;
  }
  if (!__builtin_cpu_supports("avx512bf16")) return CpuLevel::v4;
  return has_amx() ? CpuLevel::v4_amx : CpuLevel::v4_bf16;
}
#else
bool gets_amx() { return false; }

CpuLevel of_processor() { return CpuLevel::baseline; }
#endif

constexpr std::array kNames = {"baseline", "v3", "v4", "v4_bf16", "v4_amx"};

CpuLevel asked() {
  const char* value = std::getenv("FASTDIFF_CPU_LEVEL");
  const std::string_view name = value ? value : kNames.back();
  const auto* found = std::find(kNames.begin(), kNames.end(), name);
  return found == kNames.end() ? CpuLevel::v4_amx : static_cast<CpuLevel>(found - kNames.begin());
}

CpuLevel allowed() {
  const CpuLevel level = std::min(of_processor(), asked());
  return level == CpuLevel::v4_amx && !gets_amx() ? CpuLevel::v4_bf16 : level;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = allowed();
  return level;
}

}  // namespace fastdiff

extern "C" __attribute__((visibility("default"))) const char* fastdiff_cpu_level() {
  return fastdiff::kNames[static_cast<std::size_t>(fastdiff::cpu_level())];
}

extern "C" __attribute__((visibility("default"))) bool fastdiff_has_matrix_unit() {
  return fastdiff::has_matrix_unit();
}
