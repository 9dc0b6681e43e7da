// Mask and Score: the public faces of programs, and the combinators.
#include "chorale/mask.h"

#include <fmt/format.h>

#include <cmath>

#include "mask/expr.h"
#include "mask/parse.h"
#include "mask/table.h"

namespace chorale {

using programs::Kind;

namespace programs {
namespace {

std::shared_ptr<const Program> share(Program program) {
  return std::make_shared<const Program>(std::move(program));
}

// The expression of a whole program.
Expr whole(const Program& program) { return lift(program).back(); }

Result<Program> bind_tables(const Program& program, std::span<const Table> tables, Kind kind) {
  CHORALE_RETURN_IF_ERROR(check_names(tables));
  std::vector<Table> bound(program.tables().begin(), program.tables().end());
  for (Table& table : bound) {
    for (const Table& candidate : tables) {
      if (candidate.name() != table.name()) continue;
      const auto describe = [](const Table& t) {
        return fmt::format("{} table of rank {}", t.is_float() ? "a float" : "an integer", t.rank());
      };
      if (candidate.rank() != table.rank() || candidate.is_float() != table.is_float())
        return Status::invalid_argument(fmt::format("table {} is {}: the program needs {}", table.name(),
                                                    describe(candidate), describe(table)));
      table = candidate;
    }
  }
  // Tables that were different may have become one: the canonical form merges what reads them.
  const Program same_code({program.instructions().begin(), program.instructions().end()}, std::move(bound));
  return lower(whole(same_code), kind);
}

}  // namespace

Expr causal() { return expr::k() <= expr::q(); }
Expr window(const Expr& size) { return expr::q() - expr::k() < size; }
Expr window(const Expr& left, const Expr& right) {
  return (left < 0 || expr::q() - expr::k() <= left) && (right < 0 || expr::k() - expr::q() <= right);
}
Expr prefix_lm(const Expr& prefix) { return expr::k() < prefix || causal(); }
Expr document(const Table& ids) {
  if (ids.rank() == 1) return expr::at(ids, expr::q()) == expr::at(ids, expr::k());
  return expr::at(ids, expr::b(), expr::q()) == expr::at(ids, expr::b(), expr::k());
}
Expr softcap(const Expr& cap, const Expr& score) {
  const Expr::Node& node = *cap.node();
  const bool off = (node.op == Op::constant_int && node.integer == 0) ||
                   (node.op == Op::constant_float && node.floating == 0);
  return off ? score : cap * expr::tanh(score / cap);
}
Expr alibi(const Table& slopes, const Expr& score) {
  return score - expr::at(slopes, expr::h()) * expr::abs(expr::q() - expr::k());
}

}  // namespace programs

Mask::Mask() {
  static const auto everything = programs::share(programs::lower(Expr(true), Kind::mask).value());
  program_ = everything;
}

Result<Mask> Mask::from(const Expr& condition) {
  CHORALE_ASSIGN_OR_RETURN(Program program, programs::lower(condition, Kind::mask));
  return Mask(programs::share(std::move(program)));
}
Result<Mask> Mask::parse(std::string_view text, std::span<const Table> tables) {
  CHORALE_ASSIGN_OR_RETURN(const Expr condition, programs::parse(text, tables, Kind::mask));
  return from(condition);
}
Result<Mask> Mask::with_tables(std::span<const Table> tables) const {
  if (tables.empty()) return *this;
  CHORALE_ASSIGN_OR_RETURN(Program program, programs::bind_tables(*program_, tables, Kind::mask));
  return Mask(programs::share(std::move(program)));
}
bool Mask::is_all() const {
  return program_->result().op == Program::Op::constant_bool && program_->result().integer != 0;
}
std::string Mask::to_string() const { return program_->to_string(); }

// Parts that are valid programs make valid programs: value() cannot throw.
Mask operator&&(const Mask& x, const Mask& y) {
  return Mask::from(programs::whole(x.program()) && programs::whole(y.program())).value();
}
Mask operator||(const Mask& x, const Mask& y) {
  return Mask::from(programs::whole(x.program()) || programs::whole(y.program())).value();
}
Mask operator!(const Mask& x) { return Mask::from(!programs::whole(x.program())).value(); }

namespace mask {
Mask all() { return Mask(); }
Mask causal() { return Mask::from(programs::causal()).value(); }
Mask window(std::int64_t size) { return Mask::from(programs::window(size)).value(); }
Mask window(std::int64_t left, std::int64_t right) {
  return Mask::from(programs::window(left, right)).value();
}
Mask prefix_lm(std::int64_t prefix) { return Mask::from(programs::prefix_lm(prefix)).value(); }
Mask document(const Table& ids) { return Mask::from(programs::document(ids)).value(); }
}  // namespace mask

Score::Score() {
  static const auto same = programs::share(programs::lower(expr::score(), Kind::score).value());
  static const auto one = programs::share(programs::derivative(*same));
  program_ = same;
  derivative_ = one;
}

Result<Score> Score::from(const Expr& value) {
  CHORALE_ASSIGN_OR_RETURN(Program program, programs::lower(value, Kind::score));
  Program derivative = programs::derivative(program);
  return Score(programs::share(std::move(program)), programs::share(std::move(derivative)));
}
Result<Score> Score::parse(std::string_view text, std::span<const Table> tables) {
  CHORALE_ASSIGN_OR_RETURN(const Expr value, programs::parse(text, tables, Kind::score));
  return from(value);
}
Result<Score> Score::with_tables(std::span<const Table> tables) const {
  if (tables.empty()) return *this;
  CHORALE_ASSIGN_OR_RETURN(const Program program, programs::bind_tables(*program_, tables, Kind::score));
  return from(programs::whole(program));
}
bool Score::is_identity() const { return program_->result().op == Program::Op::score; }
std::string Score::to_string() const { return program_->to_string(); }
Score Score::then(const Score& next) const {
  return from(programs::lift(next.program(), programs::whole(*program_)).back()).value();
}

namespace score {
Score identity() { return Score(); }
Score softcap(double cap) { return Score::from(programs::softcap(cap, expr::score())).value(); }
Score alibi(const Table& slopes) { return Score::from(programs::alibi(slopes, expr::score())).value(); }

// For a power of two, 2^(-8 (h + 1) / heads). Otherwise the slopes of the power of two below, then every
// other one of the next power of two's, as in the paper's code.
Table alibi_slopes(int query_heads) {
  std::vector<float> slopes;
  int power = 1;
  while (power <= query_heads / 2) power *= 2;
  for (int h = 0; h < query_heads; ++h) {
    const double exponent = h < power ? -8.0 * (h + 1) / power : -8.0 * (2 * (h - power) + 1) / (2.0 * power);
    slopes.push_back(static_cast<float>(std::exp2(exponent)));
  }
  return Table::floats("slopes", std::move(slopes));
}
}  // namespace score

}  // namespace chorale
