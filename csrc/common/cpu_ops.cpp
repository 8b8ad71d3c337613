#include "cpu_ops.h"

#include <map>

namespace fastdiff {
namespace {

// Filled while the library loads.
std::map<std::string, CpuOp>& cpu_ops() {
  static std::map<std::string, CpuOp> all;
  return all;
}

}  // namespace

const CpuOp* CpuOp::find(const std::string& name) {
  const auto found = cpu_ops().find(name);
  return found == cpu_ops().end() ? nullptr : &found->second;
}

void CpuOp::add(const std::string& name, const CpuOp& op) { cpu_ops()[name] = op; }

}  // namespace fastdiff
