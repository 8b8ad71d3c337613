// fastdiff::program, run_program and forget_program: calls of operators, recorded by
// fastdiff/engine/recording.py, run one after the other without Python between them.
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <tuple>
#include <utility>

#include "../common/cpu_ops.h"
#include "../common/native_calls.h"
#include "../common/tensors.h"

namespace fastdiff {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;
using Words = std::vector<std::string>;

CallCounter runs("program.cpu");

struct Call {
  std::string op, overload;
  std::vector<Argument> arguments;
  bool returns_list;
  std::vector<std::int64_t> results;  // their slots
  std::vector<std::int64_t> unread;   // slots that no later call reads
  CpuOp::Call kernel = nullptr;       // our own, which needs no dispatcher

  bool wants_first_result_alone() const {
    return std::all_of(results.begin() + 1, results.end(), [this](std::int64_t slot) {
      return std::find(unread.begin(), unread.end(), slot) != unread.end();
    });
  }
};

struct Program {
  Words words;
  Slots constants;  // the slots before the first call, but for the inputs
  std::vector<Call> calls;
  std::vector<std::int64_t> outputs;
};

// Takes the recorder's integers one after the other.
class Reader {
 public:
  explicit Reader(const std::vector<std::int64_t>& code) : code_(code) {}
  bool done() const { return at_ == code_.size(); }
  std::int64_t next() {
    STD_TORCH_CHECK(at_ < code_.size(), "program: the code ends within a call");
    return code_[at_++];
  }
  std::vector<std::int64_t> list() {
    std::vector<std::int64_t> values(static_cast<std::size_t>(next()));
    for (std::int64_t& value : values) value = next();
    return values;
  }

 private:
  const std::vector<std::int64_t>& code_;
  std::size_t at_ = 0;
};

Call read_call(Reader& code, const Words& words) {
  Call call;
  call.op = words.at(code.next());
  call.overload = words.at(code.next());
  call.arguments.resize(static_cast<std::size_t>(code.next()));
  for (Argument& argument : call.arguments) {
    argument.kind = static_cast<Kind>(code.next());
    argument.optional = code.next() != 0;
    argument.values = code.list();
  }
  call.returns_list = code.next() != 0;
  call.results = code.list();
  call.unread = code.list();
  if (const CpuOp* own = CpuOp::find(call.op); own && call.overload.empty()) {
    call.kernel = own->all;
    if (own->first_result && call.wants_first_result_alone()) {
      call.kernel = own->first_result;
      call.results.resize(1);
    }
  }
  return call;
}

template <class Value>
StableIValue handed(const Argument& argument, const Value& value) {
  return argument.optional ? from(std::optional<Value>(value)) : from(value);
}

// A reference of its own, which the operator takes.
StableIValue value_of(const Argument& argument, const Slots& slots, const Words& words) {
  const auto& values = argument.values;
  switch (argument.kind) {
    case Kind::none:
      return from(std::nullopt);
    case Kind::boolean:
      return handed(argument, values[0] != 0);
    case Kind::integer:
      return handed(argument, values[0]);
    case Kind::number:
      return handed(argument, number(values[0]));
    case Kind::text:
      return handed(argument, words.at(values[0]));
    case Kind::memory_format:
      return handed(argument, static_cast<torch::headeronly::MemoryFormat>(values[0]));
    case Kind::dtype:
      return handed(argument, kDtypes.at(values[0]));
    case Kind::tensor:
      return handed(argument, slots.at(values[0]).value());
    case Kind::integers:
      return handed(argument, values);
    case Kind::numbers: {
      std::vector<double> numbers;
      for (const std::int64_t bits : values) numbers.push_back(number(bits));
      return handed(argument, numbers);
    }
    case Kind::tensors: {
      std::vector<Tensor> tensors;
      for (const std::int64_t slot : values) tensors.push_back(slots.at(slot).value());
      return handed(argument, tensors);
    }
    case Kind::nothings:
      return handed(argument, std::vector<std::int64_t>());
  }
  STD_TORCH_CHECK(false, "program: an argument of an unknown kind");
}

// aten::add of two tensors: its schema has a number of whatever type, which the ABI's calls lack.
Tensor sum(const Call& call, const Slots& slots) {
  const auto operand = [&](int i) { return slots.at(call.arguments.at(i).values.at(0))->get(); };
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_add_Tensor(operand(0), operand(1), 1.0, &handle));
  return Tensor(handle);
}

std::vector<Tensor> tensors_of(const std::vector<StableIValue>& stack, std::size_t count) {
  std::vector<Tensor> tensors;
  for (std::size_t i = 0; i < count; ++i) tensors.push_back(to<Tensor>(stack[i]));
  return tensors;
}

std::vector<Tensor> results_of(const Call& call, const Slots& slots, const Words& words) {
  if (call.op == "aten::add") return {sum(call, slots)};
  std::vector<StableIValue> stack;
  stack.reserve(std::max(call.arguments.size(), call.results.size()));
  for (const Argument& argument : call.arguments) {
    stack.push_back(value_of(argument, slots, words));
  }
  if (!call.returns_list) stack.resize(std::max(stack.size(), call.results.size()));
  // Without a version: the recorder read the schemas of the torch that runs.
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_call_dispatcher(call.op.c_str(), call.overload.c_str(), stack.data()));
  if (call.returns_list) return to<std::vector<Tensor>>(stack[0]);
  return tensors_of(stack, call.results.size());
}

void run(const Call& call, Slots& slots, const Words& words) {
  if (call.kernel) {
    call.kernel(call.arguments, slots, call.results);
  } else {
    auto results = results_of(call, slots, words);
    for (std::size_t i = 0; i < call.results.size(); ++i) {
      slots.at(call.results[i]) = std::move(results.at(i));
    }
  }
  for (const std::int64_t slot : call.unread) slots[slot].reset();
}

// By number, since the stable ABI hands over no objects.
class Programs {
 public:
  std::int64_t add(std::shared_ptr<const Program> program) {
    const std::lock_guard lock(mutex_);
    programs_.emplace(++last_, std::move(program));
    return last_;
  }
  std::shared_ptr<const Program> find(std::int64_t number) {
    const std::lock_guard lock(mutex_);
    const auto found = programs_.find(number);
    STD_TORCH_CHECK(found != programs_.end(), "run_program: there is no program ", number);
    return found->second;
  }
  std::int64_t remove(std::int64_t number) {
    std::shared_ptr<const Program> last;  // whose tensors go without the lock
    const std::lock_guard lock(mutex_);
    if (const auto found = programs_.find(number); found != programs_.end()) {
      last = std::move(found->second);
      programs_.erase(found);
    }
    return static_cast<std::int64_t>(programs_.size());
  }

 private:
  std::mutex mutex_;
  std::map<std::int64_t, std::shared_ptr<const Program>> programs_;
  std::int64_t last_ = 0;
};

Programs& programs() {
  // Never ended: what it holds may not be freed after torch's own static objects.
  static Programs& all = *new Programs;
  return all;
}

std::int64_t program(Words words, std::vector<std::int64_t> code, std::vector<Tensor> constants) {
  auto made = std::make_shared<Program>();
  made->words = std::move(words);
  Reader reader(code);
  made->constants.resize(static_cast<std::size_t>(reader.next()));
  made->outputs = reader.list();
  const auto slots = reader.list();
  for (std::size_t i = 0; i < slots.size(); ++i) {
    made->constants.at(slots[i]) = constants.at(i);
  }
  while (!reader.done()) made->calls.push_back(read_call(reader, made->words));
  return programs().add(std::move(made));
}

std::vector<Tensor> tensors_at(std::span<const std::int64_t> places, const Slots& slots) {
  std::vector<Tensor> tensors;
  for (const std::int64_t slot : places) tensors.push_back(slots.at(slot).value());
  return tensors;
}

// A place in a program is the call that comes next, then the slots of the tensors that are there
// besides the constants: the inputs, before the first. At the end, with the outputs, it is empty.
using Place = std::vector<std::int64_t>;

Place place_before(std::size_t next, const Program& program, const Slots& slots) {
  Place place{static_cast<std::int64_t>(next)};
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    if (slots[slot] && !program.constants[slot]) place.push_back(static_cast<std::int64_t>(slot));
  }
  return place;
}

// Stops between two calls once `seconds` have passed, so that Python hears Ctrl-C.
std::tuple<std::vector<Tensor>, Place> run_program(std::int64_t number, std::vector<Tensor> given,
                                                   Place place, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto began = Clock::now();
  const auto program = programs().find(number);
  Slots slots = program->constants;
  for (std::size_t i = 0; i < given.size(); ++i) slots.at(place.at(i + 1)) = std::move(given[i]);
  const auto& calls = program->calls;
  for (auto next = static_cast<std::size_t>(place.at(0)); next < calls.size();) {
    run(calls[next++], slots, program->words);
    const std::chrono::duration<double> took = Clock::now() - began;
    if (took.count() >= seconds && next < calls.size()) {
      place = place_before(next, *program, slots);
      return {tensors_at(std::span(place).subspan(1), slots), place};
    }
  }
  runs.add();
  return {tensors_at(program->outputs, slots), {}};
}

// How many are left.
std::int64_t forget_program(std::int64_t number) { return programs().remove(number); }

}  // namespace
}  // namespace fastdiff

STABLE_TORCH_LIBRARY_FRAGMENT(fastdiff, library) {
  library.def("program(str[] words, int[] code, Tensor[] constants) -> int");
  library.def(
      "run_program(int program, Tensor[] given, int[] place, float seconds)"
      " -> (Tensor[] results, int[] place)");
  library.def("forget_program(int program) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CompositeExplicitAutograd, library) {
  library.impl("program", TORCH_BOX(&fastdiff::program));
  library.impl("run_program", TORCH_BOX(&fastdiff::run_program));
  library.impl("forget_program", TORCH_BOX(&fastdiff::forget_program));
}
