// Mask and Score: which keys a query sees, and how a score is changed, as data.
//
// Both are small programs over the index variables
//     b   sequence in the batch, from 0
//     h   query head, from 0 (Problem::first_query_head is added, so a shard sees its global heads)
//     q   position of the query in its sequence, counted so that the last query stands at the last key:
//         q = kv_len - q_len + row. (Negative for the first rows where there are more queries than keys.)
//     k   position of the key in its sequence, from 0
// and of constants and tables. They are immutable values, cheap to copy, and safe to share between threads.
//
// Arithmetic. Integers are 64-bit and saturate; `/` and `%` round toward minus infinity; dividing by zero
// gives 0. Floats in a mask are float32, each operation rounded to nearest, so every implementation sees the
// same mask. A score is float32 in the kernels and float64 in `eager`. Floats follow IEEE 754: x / 0.0 is an
// infinity or NaN. `and`, `or`, `not` and comparisons give booleans. Every operand is evaluated: a condition
// does not guard a table's index.
//
// docs/masks.md has the grammar of the text form and the rules of interval evaluation.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/status.h"

namespace chorale {

class Program;  // src/mask/program.h

// A constant array that programs index: one dimension t[i], or two t[i, j]. Values are int32 or float32.
// Immutable; copies share the values. The name is how text and with_tables() refer to it: letters, digits and
// _, not a digit first. An index outside the table is an error of Attention::plan, found by interval
// evaluation before anything runs; write t[max(k - 1, 0)] where a program needs a neighbour.
class Table {
 public:
  static Table integers(std::string name, std::vector<std::int32_t> values);
  static Table floats(std::string name, std::vector<float> values);
  // Row-major, values.size() = rows * columns.
  static Result<Table> integers_2d(std::string name, std::int64_t rows, std::int64_t columns,
                                   std::vector<std::int32_t> values);
  static Result<Table> floats_2d(std::string name, std::int64_t rows, std::int64_t columns,
                                 std::vector<float> values);

  const std::string& name() const;
  bool is_float() const;
  int rank() const;              // 1 or 2
  std::int64_t rows() const;     // size of the first dimension
  std::int64_t columns() const;  // size of the second, 1 for rank 1
  struct Data;
  const Data& data() const { return *data_; }

 private:
  explicit Table(std::shared_ptr<const Data> data) : data_(std::move(data)) {}
  std::shared_ptr<const Data> data_;
};

// A value inside a program under construction: an integer, a float or a boolean. Mixing integers and floats
// converts to float. A type error (adding booleans, say) makes the expression invalid; Mask::from or
// Score::from reports it. Expressions share their parts and may be of any depth.
class Expr {
 public:
  Expr(int constant);           // NOLINT: constants convert
  Expr(std::int64_t constant);  // NOLINT
  Expr(double constant);        // NOLINT: a float constant
  Expr(bool constant);          // NOLINT

  struct Node;
  explicit Expr(std::shared_ptr<const Node> node) : node_(std::move(node)) {}
  const std::shared_ptr<const Node>& node() const { return node_; }

 private:
  std::shared_ptr<const Node> node_;
};
namespace expr {
Expr b();
Expr h();
Expr q();
Expr k();
Expr score();  // scale * (query . key); in Score programs only
Expr at(const Table& table, Expr i);
Expr at(const Table& table, Expr i, Expr j);
Expr min(Expr x, Expr y);
Expr max(Expr x, Expr y);
Expr abs(Expr x);
Expr select(Expr condition, Expr if_true, Expr if_false);
Expr to_float(Expr x);
Expr tanh(Expr x);
Expr exp(Expr x);
Expr log(Expr x);
Expr sqrt(Expr x);
}  // namespace expr
Expr operator+(Expr x, Expr y);
Expr operator-(Expr x, Expr y);
Expr operator*(Expr x, Expr y);
Expr operator/(Expr x, Expr y);
Expr operator%(Expr x, Expr y);
Expr operator-(Expr x);
Expr operator<(Expr x, Expr y);
Expr operator<=(Expr x, Expr y);
Expr operator>(Expr x, Expr y);
Expr operator>=(Expr x, Expr y);
Expr operator==(Expr x, Expr y);
Expr operator!=(Expr x, Expr y);
Expr operator&&(Expr x, Expr y);
Expr operator||(Expr x, Expr y);
Expr operator!(Expr x);

// Which (q, k) pairs are visible. Default: all of them.
class Mask {
 public:
  Mask();
  // From a boolean expression; fails on a type error, naming the operation.
  static Result<Mask> from(const Expr& condition);
  // From text such as "causal and q - k < 4096" or "document[q] == document[k]". Names in brackets are looked
  // up in `tables`. An error points at the column and repeats the text with a caret under it.
  static Result<Mask> parse(std::string_view text, std::span<const Table> tables = {});

  bool is_all() const;            // everything visible, known without evaluating
  std::string to_string() const;  // canonical text; parse(to_string()) gives an equal program
  const Program& program() const { return *program_; }
  // The same mask with its tables replaced by those of the same name, which must have the same rank and type;
  // tables that are not named stay, names that the mask does not use are ignored.
  Result<Mask> with_tables(std::span<const Table> tables) const;

 private:
  explicit Mask(std::shared_ptr<const Program> program) : program_(std::move(program)) {}
  std::shared_ptr<const Program> program_;
  friend class Score;
};
Mask operator&&(const Mask& x, const Mask& y);
Mask operator||(const Mask& x, const Mask& y);
Mask operator!(const Mask& x);

namespace mask {
Mask all();
Mask causal();                   // k <= q
Mask window(std::int64_t size);  // q - k < size: with causal(), exactly `size` keys
Mask window(std::int64_t left,
            std::int64_t right);      // q - k <= left and k - q <= right; below 0: no limit there
Mask prefix_lm(std::int64_t prefix);  // k < prefix or k <= q
Mask document(const Table& ids);      // ids[q] == ids[k], or ids[b, q] == ids[b, k] for a 2-d table
}  // namespace mask

// How a score is changed before the softmax. Default: not at all.
class Score {
 public:
  Score();
  // From a numeric expression of expr::score().
  static Result<Score> from(const Expr& value);
  static Result<Score> parse(std::string_view text,
                             std::span<const Table> tables = {});  // "50 * tanh(score / 50)"

  bool is_identity() const;
  std::string to_string() const;
  const Program& program() const { return *program_; }
  // d value / d score as a program of the same variables, for the backward pass.
  const Program& derivative() const { return *derivative_; }
  Result<Score> with_tables(std::span<const Table> tables) const;
  // This change first, then `next` on its result.
  Score then(const Score& next) const;

 private:
  Score(std::shared_ptr<const Program> program, std::shared_ptr<const Program> derivative)
      : program_(std::move(program)), derivative_(std::move(derivative)) {}
  std::shared_ptr<const Program> program_, derivative_;
};

namespace score {
Score identity();
Score softcap(double cap);  // cap * tanh(score / cap); 0: no cap. Throws BadResult for NaN
Score alibi(
    const Table& slopes);  // score - slopes[h] * abs(q - k); throws BadResult unless slopes has rank 1
Table alibi_slopes(
    int query_heads);  // Press et al. 2022: 2^(-8 (h + 1) / heads), with its rule for other counts
}  // namespace score

}  // namespace chorale
