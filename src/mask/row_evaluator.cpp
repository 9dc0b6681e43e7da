// A program over a row of keys. What does not depend on the key (or the score) is computed once a row, as a
// single value; the rest in plain loops over arrays, a block of keys at a time so that they stay in the
// cache.
#include <algorithm>
#include <array>
#include <cassert>

#include "mask/arithmetic.h"
#include "mask/table.h"

namespace chorale {

using namespace programs;

namespace {

constexpr std::int64_t block = 256;

// A value that is the same for the whole row, where a loop expects an array.
template <class T>
struct Uniform {
  T value;
  T operator[](std::int64_t) const { return value; }
};

}  // namespace

struct RowEvaluator::Scratch {
  explicit Scratch(const Program& p);

  // Runs the program for keys [start.k, start.k + count), count <= block, with these scores.
  void run(const Point& start, std::int64_t count, const float* scores);
  // Copies the result, wherever it lies.
  template <class T>
  void copy_result(std::int64_t count, T* out);

 private:
  using Instruction = Program::Instruction;

  void run_uniform(std::size_t i, const Point& start);
  void run_array(std::size_t i, const Point& start, std::int64_t count);
  void run_unary(std::size_t i, std::int64_t count);
  void run_binary(std::size_t i, std::int64_t count);
  template <class T>
  void run_select(std::size_t i, std::int64_t count);
  template <class T>
  void run_table(std::size_t i, std::span<const T> values, std::int64_t count);

  std::size_t operand(std::size_t i, int j) const {
    return static_cast<std::size_t>(program->instructions()[i].operands[j]);
  }
  const Table::Data& table_of(const Instruction& instruction) const {
    return program->tables()[static_cast<std::size_t>(instruction.integer)].data();
  }
  bool is_uniform(std::size_t i) const { return slots[i].array == nullptr; }
  template <class T>
  T* array(std::size_t i) {
    return static_cast<T*>(slots[i].array);
  }

  // Calls use(x) with the instruction's value as something to index: an array, or one value for all.
  template <class T, class Use>
  void with(std::size_t i, Use&& use) {
    if (is_uniform(i))
      use(Uniform<T>{slots[i].value.template get<T>()});
    else
      use(static_cast<const T*>(array<T>(i)));
  }

  struct Slot {
    Scalar<float> value;    // uniform instructions
    void* array = nullptr;  // others: block Integers, floats or Booleans, by the instruction's type
  };
  const Program* program;
  std::vector<Slot> slots;
  std::vector<Integer> integers;  // the arrays' memory
  std::vector<float> floats;
  std::vector<Boolean> booleans;
};

RowEvaluator::Scratch::Scratch(const Program& p) : program(&p), slots(p.instructions().size()) {
  // Which instructions vary along the row; then arrays for them.
  std::vector<bool> varies(slots.size(), false);
  std::array<std::size_t, 3> arrays{};
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const Instruction& instruction = p.instructions()[i];
    varies[i] = instruction.op == Op::k || instruction.op == Op::score;
    for (int j = 0; j < arity(instruction.op); ++j) varies[i] = varies[i] || varies[operand(i, j)];
    if (varies[i]) ++arrays[static_cast<std::size_t>(instruction.type)];
  }
  booleans.resize(arrays[static_cast<std::size_t>(Type::boolean)] * block);
  integers.resize(arrays[static_cast<std::size_t>(Type::integer)] * block);
  floats.resize(arrays[static_cast<std::size_t>(Type::floating)] * block);
  arrays = {};
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (!varies[i]) continue;
    const Type type = p.instructions()[i].type;
    const std::size_t offset = arrays[static_cast<std::size_t>(type)]++ * block;
    slots[i].array = type == Type::boolean   ? static_cast<void*>(&booleans[offset])
                     : type == Type::integer ? static_cast<void*>(&integers[offset])
                                             : static_cast<void*>(&floats[offset]);
  }
}

void RowEvaluator::Scratch::run(const Point& start, std::int64_t count, const float* scores) {
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (program->instructions()[i].op == Op::score)
      std::copy_n(scores, count, array<float>(i));
    else if (is_uniform(i))
      run_uniform(i, start);
    else
      run_array(i, start, count);
  }
}

void RowEvaluator::Scratch::run_uniform(std::size_t i, const Point& start) {
  const Instruction& instruction = program->instructions()[i];
  Scalar<float>& value = slots[i].value;
  const auto x = [&](int j) {
    return j < arity(instruction.op) ? slots[operand(i, j)].value : Scalar<float>();
  };
  switch (instruction.op) {
    case Op::constant_bool:
    case Op::constant_int:
      value.integer = instruction.integer;
      break;
    case Op::constant_float:
      value.floating = static_cast<float>(instruction.floating);
      break;
    case Op::b:
      value.integer = start.b;
      break;
    case Op::h:
      value.integer = start.h;
      break;
    case Op::q:
      value.integer = start.q;
      break;
    case Op::table_1d:
    case Op::table_2d: {
      const Table::Data& table = table_of(instruction);
      const Integer row = x(0).integer, column = x(1).integer;
      assert(row >= 0 && row < table.rows && column >= 0 && column < table.columns);
      const auto index = static_cast<std::size_t>(row * table.columns + column);
      value =
          table.is_float ? Scalar<float>::of(table.floats[index]) : Scalar<float>::of(table.integers[index]);
      break;
    }
    default:
      value = apply<float>(instruction.op, program->instructions()[operand(i, 0)].type, x(0), x(1), x(2));
  }
}

void RowEvaluator::Scratch::run_array(std::size_t i, const Point& start, std::int64_t count) {
  const Instruction& instruction = program->instructions()[i];
  switch (instruction.op) {
    case Op::k: {
      Integer* k = array<Integer>(i);
      for (std::int64_t n = 0; n < count; ++n) k[n] = start.k + n;
      return;
    }
    case Op::table_1d:
    case Op::table_2d: {
      const Table::Data& table = table_of(instruction);
      return table.is_float ? run_table<float>(i, table.floats, count)
                            : run_table<std::int32_t>(i, table.integers, count);
    }
    case Op::select:
      if (instruction.type == Type::boolean) return run_select<Boolean>(i, count);
      return instruction.type == Type::integer ? run_select<Integer>(i, count) : run_select<float>(i, count);
    case Op::tanh:
      return simd::tanh(array<float>(operand(i, 0)), array<float>(i), count);
    case Op::exp:
      return simd::exp(array<float>(operand(i, 0)), array<float>(i), count);
    case Op::log:
      return simd::log(array<float>(operand(i, 0)), array<float>(i), count);
    default:
      return arity(instruction.op) == 1 ? run_unary(i, count) : run_binary(i, count);
  }
}

void RowEvaluator::Scratch::run_unary(std::size_t i, std::int64_t count) {
  visit_unary<float>(program->instructions()[i].op, program->instructions()[operand(i, 0)].type,
                     [&](auto function) {
                       using T = typename Signature<decltype(function)>::Operand;
                       const T* x = array<T>(operand(i, 0));
                       auto* out = array<typename Signature<decltype(function)>::Result>(i);
                       for (std::int64_t n = 0; n < count; ++n) out[n] = function(x[n]);
                     });
}

void RowEvaluator::Scratch::run_binary(std::size_t i, std::int64_t count) {
  visit_binary<float>(program->instructions()[i].op, program->instructions()[operand(i, 0)].type,
                      [&](auto function) {
                        using T = typename Signature<decltype(function)>::Operand;
                        auto* out = array<typename Signature<decltype(function)>::Result>(i);
                        with<T>(operand(i, 0), [&](auto x) {
                          with<T>(operand(i, 1), [&](auto y) {
                            for (std::int64_t n = 0; n < count; ++n) out[n] = function(x[n], y[n]);
                          });
                        });
                      });
}

template <class T>
void RowEvaluator::Scratch::run_select(std::size_t i, std::int64_t count) {
  T* out = array<T>(i);
  with<Boolean>(operand(i, 0), [&](auto condition) {
    with<T>(operand(i, 1), [&](auto x) {
      with<T>(operand(i, 2), [&](auto y) {
        for (std::int64_t n = 0; n < count; ++n) out[n] = condition[n] != 0 ? x[n] : y[n];
      });
    });
  });
}

template <class T>
void RowEvaluator::Scratch::run_table(std::size_t i, std::span<const T> values, std::int64_t count) {
  const Instruction& instruction = program->instructions()[i];
  auto* out = array<std::conditional_t<std::is_same_v<T, float>, float, Integer>>(i);
  const Integer columns = table_of(instruction).columns;
  const auto gather = [&](auto row, auto column) {
    for (std::int64_t n = 0; n < count; ++n) {
      const Integer index = row[n] * columns + column[n];
      assert(column[n] >= 0 && column[n] < columns && index >= 0 &&
             index < static_cast<Integer>(values.size()));
      out[n] = values[static_cast<std::size_t>(index)];
    }
  };
  with<Integer>(operand(i, 0), [&](auto row) {
    if (instruction.op == Op::table_1d) return gather(row, Uniform<Integer>{0});
    with<Integer>(operand(i, 1), [&](auto column) { gather(row, column); });
  });
}

template <class T>
void RowEvaluator::Scratch::copy_result(std::int64_t count, T* out) {
  const std::size_t last = slots.size() - 1;
  if (is_uniform(last))
    std::fill_n(out, count, slots[last].value.template get<T>());
  else
    std::copy_n(array<T>(last), count, out);
}

RowEvaluator::RowEvaluator(const Program& program) : scratch_(std::make_unique<Scratch>(program)) {}
RowEvaluator::~RowEvaluator() = default;
RowEvaluator::RowEvaluator(RowEvaluator&&) noexcept = default;

void RowEvaluator::mask(const Point& start, std::int64_t count, std::uint8_t* visible) {
  for (std::int64_t done = 0; done < count; done += block) {
    const std::int64_t part = std::min(block, count - done);
    scratch_->run({start.b, start.h, start.q, start.k + done}, part, nullptr);
    scratch_->copy_result(part, visible + done);
  }
}

void RowEvaluator::score(const Point& start, std::int64_t count, const float* scores, float* out) {
  for (std::int64_t done = 0; done < count; done += block) {
    const std::int64_t part = std::min(block, count - done);
    scratch_->run({start.b, start.h, start.q, start.k + done}, part, scores + done);
    scratch_->copy_result(part, out + done);
  }
}

}  // namespace chorale
