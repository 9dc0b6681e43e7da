// Program: what a Mask or a Score is inside, and the ways to run it.
//
// One program, several readings, each in its own file: element by element (evaluate.cpp, the oracle's), over
// intervals (interval.cpp, which decides whether a tile of scores is empty, partial or full), and a row of
// keys at a time in vector registers (row_evaluator.cpp, the kernels').
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chorale/mask.h"
#include "chorale/status.h"

namespace chorale {

// Values of the index variables at one point.
struct Point {
  std::int64_t b = 0, h = 0, q = 0, k = 0;
};

// Inclusive ranges of the index variables: a tile of scores. Never empty: first <= last.
struct Range {
  std::int64_t first = 0, last = 0;
};
struct Box {
  Range b = {}, h = {}, q = {}, k = {};
};

enum class Coverage { empty, partial, full };

// Static single assignment in order of need: an instruction's operands are earlier instructions; the last one
// is the result. Equal subexpressions are one instruction, constants are folded.
class Program {
 public:
  enum class Type : std::uint8_t { boolean, integer, floating };
  enum class Op : std::uint8_t {
    constant_bool,
    constant_int,
    constant_float,
    b,
    h,
    q,
    k,
    score,
    add,
    subtract,
    multiply,
    divide,
    modulo,
    negate,
    minimum,
    maximum,
    absolute,
    less,
    less_equal,
    equal,
    not_equal,  // greater is less with its operands exchanged
    logical_and,
    logical_or,
    logical_not,
    select,
    to_float,
    tanh,
    exp,
    log,
    sqrt,
    table_1d,
    table_2d,
  };
  struct Instruction {
    Op op;
    Type type;  // of the result
    std::int32_t operands[3] = {-1, -1, -1};
    std::int64_t integer = 0;  // constant_bool, constant_int; table_*: index into tables()
    double floating = 0;       // constant_float
    bool operator==(const Instruction&) const = default;
  };

  Program(std::vector<Instruction> instructions, std::vector<Table> tables);

  std::span<const Instruction> instructions() const { return instructions_; }
  std::span<const Table> tables() const { return tables_; }
  const Instruction& result() const { return instructions_.back(); }
  bool uses(Op variable) const;  // one of b, h, q, k, score
  std::string to_string() const;

 private:
  std::vector<Instruction> instructions_;
  std::vector<Table> tables_;
};
// The same instructions, and tables of the same names and content.
bool operator==(const Program& x, const Program& y);

// Element by element. Masks compute floats in float32; scores in float64. Table indices must be in range.
bool evaluate_mask(const Program& mask, const Point& point);
double evaluate_score(const Program& score, const Point& point, double value);

// Whether a mask hides all, some or none of a tile's pairs. `partial` may be said of an empty or full tile,
// never the reverse.
Coverage classify(const Program& mask, const Box& box);

// ok if every table access is inside its table for every point of the box; else out_of_range, naming the
// table, the index expression's range and the table's size.
Status check_table_accesses(const Program& program, const Box& box);

// Runs one program over a row of keys [k_first, k_first + count) at a fixed b, h and q, in float32, with the
// same bits on every instruction set. Holds scratch memory: one per thread. The program must outlive it.
class RowEvaluator {
 public:
  explicit RowEvaluator(const Program& program);
  ~RowEvaluator();
  RowEvaluator(RowEvaluator&&) noexcept;

  // visible[i] = 1 or 0.
  void mask(const Point& start, std::int64_t count, std::uint8_t* visible);
  // out[i] = program(scores[i]); may be in place.
  void score(const Point& start, std::int64_t count, const float* scores, float* out);

 private:
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace chorale
