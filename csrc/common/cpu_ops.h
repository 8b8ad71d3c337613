// CPU kernels by the names of their ops, so that programs call them past torch's dispatcher.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>

namespace fastdiff {

struct CpuOp {
  using Boxed = void (*)(StableIValue* stack, std::uint64_t arguments, std::uint64_t results);
  Boxed all = nullptr;
  Boxed first_result = nullptr;  // in place of all, where nobody reads the others

  static const CpuOp* find(const std::string& name);
  static void add(const std::string& name, const CpuOp& op);
};

}  // namespace fastdiff

// Within STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library).
#define FASTDIFF_CPU_OP(name, function)    \
  library.impl(name, TORCH_BOX(function)), \
      ::fastdiff::CpuOp::add("fastdiff::" name, {TORCH_BOX(function)})
