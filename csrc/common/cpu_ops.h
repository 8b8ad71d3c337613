// CPU kernels by the names of their ops, so that programs call them past torch's dispatcher and
// without a copy of any handle.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "recorded.h"

namespace fastdiff {

struct CpuOp {
  // Leaves as many results as are asked for in these slots.
  using Call = void (*)(const std::vector<Argument>& arguments, Slots& slots,
                        const std::vector<std::int64_t>& results);
  Call all = nullptr;
  Call first_result = nullptr;  // in place of all, where nobody reads the others

  static const CpuOp* find(const std::string& name);
  static void add(const std::string& name, const CpuOp& op);
};

template <class Result, class... Parameters>
void call_recorded(Result (*op)(Parameters...), const std::vector<Argument>& arguments,
                   Slots& slots, const std::vector<std::int64_t>& results) {
  const auto call = [&]<std::size_t... i>(std::index_sequence<i...>) {
    return op(value_as<Parameters>(arguments.at(i), slots)...);
  };
  Result result = call(std::index_sequence_for<Parameters...>());
  if constexpr (std::is_same_v<Result, Tensor>) {
    slots.at(results.at(0)) = std::move(result);
  } else {
    const auto keep = [&](auto&... tensors) {
      std::size_t i = 0;
      ((i < results.size() ? void(slots.at(results[i]) = std::move(tensors)) : void(), ++i), ...);
    };
    std::apply(keep, result);
  }
}

template <auto op>
void recorded(const std::vector<Argument>& arguments, Slots& slots,
              const std::vector<std::int64_t>& results) {
  call_recorded(op, arguments, slots, results);
}

}  // namespace fastdiff

// Within STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, library).
#define FASTDIFF_CPU_OP(name, function)    \
  library.impl(name, TORCH_BOX(function)), \
      ::fastdiff::CpuOp::add("fastdiff::" name, {::fastdiff::recorded<function>})
