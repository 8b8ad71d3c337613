// Arguments of a call that fastdiff/engine/recording.py has recorded.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "tensors.h"

namespace fastdiff {

// As the recorder numbers them.
enum class Kind : std::int64_t {
  none,
  boolean,
  integer,
  number,
  text,
  memory_format,
  dtype,
  tensor,
  integers,
  numbers,
  tensors,
  nothings,  // an empty list of whatever type
};

constexpr std::array kDtypes{ScalarType::Float, ScalarType::Double, ScalarType::Half,
                             ScalarType::BFloat16};

struct Argument {
  Kind kind;
  bool optional;  // its type, which the ABI hands over by pointer
  // A tensor's slot, a number's bits, a text's place among the words, a dtype's in kDtypes.
  std::vector<std::int64_t> values;
};

using Slots = std::vector<MaybeTensor>;

inline double number(std::int64_t bits) { return std::bit_cast<double>(bits); }

template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};

// As a C++ function takes it.
template <class T>
T value_as(const Argument& argument, const Slots& slots) {
  const auto& values = argument.values;
  if constexpr (IsOptional<T>::value) {
    using Value = typename T::value_type;
    return argument.kind == Kind::none ? T() : T(value_as<Value>(argument, slots));
  } else if constexpr (std::is_same_v<T, Tensor>) {
    return slots.at(values.at(0)).value();
  } else if constexpr (std::is_same_v<T, double>) {
    return number(values.at(0));
  } else if constexpr (std::is_same_v<T, ScalarType>) {
    return kDtypes.at(values.at(0));
  } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) {
    return values;
  } else {
    static_assert(std::is_integral_v<T>);
    return static_cast<T>(values.at(0));
  }
}

}  // namespace fastdiff
