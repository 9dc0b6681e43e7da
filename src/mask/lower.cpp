// lower: from an expression to a program in its one canonical form.
#include <bit>
#include <cmath>
#include <functional>
#include <unordered_map>

#include "mask/expr.h"
#include "mask/table.h"

namespace chorale::programs {
namespace {

using Instruction = Program::Instruction;

// Visits what is reachable from `root`, each node once, operands before users and from the left. Uses no
// stack of the machine's, however deep the graph. operands(node) is a range of nodes.
template <class Key, class Operands, class Visit>
void post_order(Key root, const Operands& operands, const Visit& visit) {
  std::unordered_map<Key, bool> done;  // false: waiting for its operands
  std::vector<Key> waiting{root};
  while (!waiting.empty()) {
    const Key node = waiting.back();
    const auto [entry, is_new] = done.try_emplace(node, false);
    if (is_new) {
      const auto range = operands(node);
      for (auto operand = range.rbegin(); operand != range.rend(); ++operand)
        if (!done.contains(*operand)) waiting.push_back(*operand);
      continue;
    }
    waiting.pop_back();
    if (std::exchange(entry->second, true)) continue;  // a second user had put it on the list again
    visit(node);
  }
}

// Appends instructions, equal ones once and simple ones simplified.
class Emitter {
 public:
  explicit Emitter(Kind kind) : kind_(kind) {}

  std::int32_t emit(Instruction instruction, const std::optional<Table>& table) {
    if (instruction.op == Op::constant_float && kind_ == Kind::mask)
      instruction.floating = static_cast<float>(instruction.floating);
    if (table) instruction.integer = table_index(*table);
    if (const auto folded = fold(instruction)) return append(*folded);
    if (const auto same = identity(instruction)) return *same;
    return append(instruction);
  }

  // What `root` needs, in canonical order.
  Program finish(std::int32_t root) const {
    std::vector<Instruction> kept;
    std::vector<Table> tables;
    std::unordered_map<std::int32_t, std::int32_t> position;
    std::unordered_map<std::int64_t, std::int64_t> table_position;
    const auto operands = [&](std::int32_t i) {
      const Instruction& instruction = at(i);
      return std::vector<std::int32_t>(instruction.operands, instruction.operands + arity(instruction.op));
    };
    post_order(root, operands, [&](std::int32_t i) {
      Instruction instruction = at(i);
      for (int j = 0; j < arity(instruction.op); ++j)
        instruction.operands[j] = position.at(instruction.operands[j]);
      if (is_table(instruction.op)) {
        const auto [entry, is_new] =
            table_position.try_emplace(instruction.integer, static_cast<std::int64_t>(tables.size()));
        if (is_new) tables.push_back(tables_[static_cast<std::size_t>(instruction.integer)]);
        instruction.integer = entry->second;
      }
      position[i] = static_cast<std::int32_t>(kept.size());
      kept.push_back(instruction);
    });
    return Program(std::move(kept), std::move(tables));
  }

 private:
  const Instruction& at(std::int32_t i) const { return instructions_[static_cast<std::size_t>(i)]; }

  // Floats by their bits: 0 and -0 are different constants.
  struct Hash {
    std::size_t operator()(const Instruction& i) const {
      std::size_t hash = static_cast<std::size_t>(i.op) * 4 + static_cast<std::size_t>(i.type);
      const std::uint64_t parts[] = {
          static_cast<std::uint32_t>(i.operands[0]), static_cast<std::uint32_t>(i.operands[1]),
          static_cast<std::uint32_t>(i.operands[2]), static_cast<std::uint64_t>(i.integer),
          std::bit_cast<std::uint64_t>(i.floating)};
      for (const std::uint64_t part : parts) hash = (hash ^ part) * 0x9E3779B97F4A7C15u + (hash >> 29);
      return hash;
    }
  };
  struct Equal {
    bool operator()(const Instruction& x, const Instruction& y) const {
      return x == y && std::signbit(x.floating) == std::signbit(y.floating);
    }
  };
  std::int32_t append(const Instruction& instruction) {
    const auto [entry, is_new] =
        known_.try_emplace(instruction, static_cast<std::int32_t>(instructions_.size()));
    if (is_new) instructions_.push_back(instruction);
    return entry->second;
  }

  std::int64_t table_index(const Table& table) {
    for (std::size_t i = 0; i < tables_.size(); ++i)
      if (&tables_[i].data() == &table.data() || tables_[i].data().same_content(table.data()))
        return static_cast<std::int64_t>(i);
    tables_.push_back(table);
    return static_cast<std::int64_t>(tables_.size()) - 1;
  }

  // The constant that an operation on constants gives. NaN is no constant: it stays an operation.
  std::optional<Instruction> fold(const Instruction& instruction) const {
    const int count = arity(instruction.op);
    if (count == 0 || is_table(instruction.op)) return std::nullopt;
    for (int i = 0; i < count; ++i)
      if (!is_constant(at(instruction.operands[i]).op)) return std::nullopt;
    const std::optional<Instruction> result =
        kind_ == Kind::mask ? fold_in<float>(instruction) : fold_in<double>(instruction);
    return result;
  }
  template <class Float>
  std::optional<Instruction> fold_in(const Instruction& instruction) const {
    Scalar<Float> x[3];
    for (int i = 0; i < arity(instruction.op); ++i) {
      const Instruction& operand = at(instruction.operands[i]);
      x[i] = {operand.integer, static_cast<Float>(operand.floating)};
    }
    const Scalar<Float> value =
        apply<Float>(instruction.op, at(instruction.operands[0]).type, x[0], x[1], x[2]);
    switch (instruction.type) {
      case Type::boolean:
        return Instruction{.op = Op::constant_bool, .type = Type::boolean, .integer = value.integer};
      case Type::integer:
        return Instruction{.op = Op::constant_int, .type = Type::integer, .integer = value.integer};
      case Type::floating:
        break;
    }
    if (std::isnan(value.floating)) return std::nullopt;
    return Instruction{.op = Op::constant_float, .type = Type::floating, .floating = value.floating};
  }

  bool is_integer(std::int32_t i, std::int64_t value) const {
    return at(i).op == Op::constant_int && at(i).integer == value;
  }
  bool is_float(std::int32_t i, double value) const {
    return at(i).op == Op::constant_float && at(i).floating == value;
  }
  bool is_boolean(std::int32_t i, bool value) const {
    return at(i).op == Op::constant_bool && at(i).integer == value;
  }

  // The earlier instruction that this one always equals. Only what holds for every value: x * 0.0 is not 0
  // for an infinite x, x + 0.0 is not x for -0.
  std::optional<std::int32_t> identity(const Instruction& instruction) const {
    const std::int32_t x = instruction.operands[0], y = instruction.operands[1], z = instruction.operands[2];
    switch (instruction.op) {
      case Op::logical_and:
        if (is_boolean(x, true) || is_boolean(y, false) || x == y) return y;
        if (is_boolean(y, true) || is_boolean(x, false)) return x;
        break;
      case Op::logical_or:
        if (is_boolean(x, false) || is_boolean(y, true) || x == y) return y;
        if (is_boolean(y, false) || is_boolean(x, true)) return x;
        break;
      case Op::logical_not:
        if (at(x).op == Op::logical_not) return at(x).operands[0];
        break;
      case Op::select:
        if (is_boolean(x, true) || y == z) return y;
        if (is_boolean(x, false)) return z;
        break;
      case Op::minimum:
      case Op::maximum:
        if (x == y) return x;
        break;
      case Op::add:
        if (is_integer(x, 0)) return y;
        if (is_integer(y, 0)) return x;
        break;
      case Op::subtract:
        if (is_integer(y, 0) || (is_float(y, 0) && !std::signbit(at(y).floating))) return x;
        break;
      case Op::multiply:
        if (is_integer(x, 1) || is_float(x, 1) || is_integer(y, 0)) return y;
        if (is_integer(y, 1) || is_float(y, 1) || is_integer(x, 0)) return x;
        break;
      case Op::divide:
        if (is_integer(y, 1) || is_float(y, 1)) return x;
        break;
      default:
        break;
    }
    return std::nullopt;
  }

  Kind kind_;
  std::vector<Instruction> instructions_;
  std::vector<Table> tables_;
  std::unordered_map<Instruction, std::int32_t, Hash, Equal> known_;
};

}  // namespace

Result<Program> lower(const Expr& root, Kind kind) {
  const Type wanted = kind == Kind::mask ? Type::boolean : Type::floating;
  const Expr result = kind == Kind::score ? to_float(root) : root;
  CHORALE_RETURN_IF_ERROR(root.node()->error);
  CHORALE_RETURN_IF_ERROR(result.node()->error);
  if (result.node()->type != wanted)
    return Status::invalid_argument(std::string("a mask must be a boolean, not ") +
                                    std::string(name(result.node()->type)));

  Emitter emitter(kind);
  std::unordered_map<const Expr::Node*, std::int32_t> emitted;
  bool uses_score = false;
  const auto operands = [](const Expr::Node* node) {
    std::vector<const Expr::Node*> range;
    for (int i = 0; i < arity(node->op); ++i)
      range.push_back(node->operands[static_cast<std::size_t>(i)].get());
    return range;
  };
  post_order(static_cast<const Expr::Node*>(result.node().get()), operands, [&](const Expr::Node* node) {
    Instruction instruction{
        .op = node->op, .type = node->type, .integer = node->integer, .floating = node->floating};
    for (int i = 0; i < arity(node->op); ++i)
      instruction.operands[i] = emitted.at(node->operands[static_cast<std::size_t>(i)].get());
    uses_score |= node->op == Op::score;
    emitted[node] = emitter.emit(instruction, node->table);
  });
  if (uses_score && kind == Kind::mask)
    return Status::invalid_argument("'score' can only be used in a score program, not in a mask");
  return emitter.finish(emitted.at(result.node().get()));
}

}  // namespace chorale::programs
