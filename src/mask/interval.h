// Bounds: what a value can be somewhere in a tile; and the arithmetic of bounds.
//
// Every function here keeps one promise: a value that can occur is inside. Where that is all that is known,
// bounds are as wide as they must be. docs/masks.md has the rules.
#pragma once

#include <limits>
#include <span>
#include <vector>

#include "mask/arithmetic.h"

namespace chorale::programs {

// A boolean is an integer of 0 or 1. Only the fields of the instruction's type mean anything.
struct Bounds {
  Integer least = least_integer, most = most_integer;
  float least_float = -std::numeric_limits<float>::infinity(),
        most_float = std::numeric_limits<float>::infinity();
  bool may_be_nan = true;

  static Bounds any(Type type);
  static Bounds integers(Integer least, Integer most) { return {least, most, 0, 0, false}; }
  static Bounds floats(float least, float most, bool may_be_nan) { return {0, 0, least, most, may_be_nan}; }

  bool is_point(Type type) const {
    return type == Type::floating ? !may_be_nan && least_float == most_float && least_float != 0
                                  : least == most;
  }
  bool is_empty(Type type) const {
    return type == Type::floating ? !may_be_nan && !(least_float <= most_float) : least > most;
  }
  // Keeps what is also in `other`; says whether anything was lost.
  bool narrow(const Bounds& other, Type type);
  void widen(const Bounds& other, Type type);
};

// The values of every instruction over a box. Floats of scores are not followed: eager's have more bits than
// the kernels'.
class Interval {
 public:
  Interval(const Program& program, const Box& box);

  const Bounds& operator[](std::int32_t instruction) const {
    return bounds_[static_cast<std::size_t>(instruction)];
  }
  const Bounds& result() const { return bounds_.back(); }

  // Demands that an instruction have a value inside these bounds. Then propagate() narrows operands by
  // results and results by operands until nothing changes, or for long enough; false if no point of the box
  // can meet the demands.
  void require(std::int32_t instruction, const Bounds& bounds);
  bool propagate();

  // A boolean that is not known, on which one that is known depends: trying both of its values may settle the
  // matter. -1 if there is none.
  std::int32_t undecided() const;

 private:
  Bounds forward(const Program::Instruction& instruction) const;  // what the operands allow
  Bounds look_up(const Program::Instruction& instruction) const;
  void backward(std::int32_t i);  // what the result demands of the operands
  void backward_logic(const Program::Instruction& instruction, bool result);
  void backward_comparison(Op op, std::int32_t x, std::int32_t y, bool result);
  void backward_arithmetic(const Program::Instruction& instruction, const Bounds& result);
  void at_least(std::int32_t i, __int128 least);
  void at_most(std::int32_t i, __int128 most);

  bool is_true(std::int32_t i) const { return (*this)[i].least == 1; }
  bool is_false(std::int32_t i) const { return (*this)[i].most == 0; }
  const Program::Instruction& at(std::int32_t i) const {
    return program_->instructions()[static_cast<std::size_t>(i)];
  }
  std::int32_t size() const { return static_cast<std::int32_t>(bounds_.size()); }

  const Program* program_;
  Box box_;
  bool follow_floats_;
  std::vector<Bounds> bounds_;
  bool changed_ = false, contradiction_ = false;
};

}  // namespace chorale::programs
