// Mask and score programs as text. What parses is printed and parsed again, then read in all the ways a
// program is read: element by element, as rows and as tiles. They must agree.
#include <bit>
#include <string>
#include <vector>

#include "chorale/mask.h"
#include "mask/program.h"
#include "target.h"

namespace chorale::fuzz {
namespace {

constexpr std::int64_t rows = 5, columns = 40;  // of the tile that is looked at

const std::vector<Table>& tables() {
  static const std::vector<Table> all{
      Table::integers("ids", {0, 0, 1, 1, 1, 2, 5, 5}), Table::integers("sizes", {4, 1, 0, -3, 2147483647}),
      Table::integers_2d("packs", 2, 64, std::vector<std::int32_t>(128, 3)).value(),
      Table::floats("slopes", {0.5f, 0.25f, std::bit_cast<float>(0x7fc00000u)})};
  return all;
}

// "column 8: ...", with a column of the text or the one behind it.
void expect_error(const Status& status, std::string_view text) {
  ASSERT_FALSE(status.is_ok());
  const std::string& message = status.message();
  ASSERT_FALSE(message.empty());
  if (!message.starts_with("column ")) return;  // of the whole text: its size, its type
  const auto column = std::stoull(message.substr(7));
  ASSERT_GE(column, 1u);
  ASSERT_LE(column, text.size() + 1) << message;
  ASSERT_NE(message.find('^'), std::string::npos) << message;
}

template <class Rule>
void expect_same_when_parsed_again(const Rule& rule) {
  const std::string text = rule.to_string();
  const auto again = Rule::parse(text, tables());
  ASSERT_TRUE(again) << text << "\n" << again.status().message();
  ASSERT_EQ(again->to_string(), text);
  ASSERT_TRUE(again->program() == rule.program()) << text;
}

void check_mask(const Mask& mask, const Box& box) {
  const Program& program = mask.program();
  RowEvaluator evaluator(program);
  bool any = false, all = true;
  std::vector<std::uint8_t> row(columns);
  for (std::int64_t q = box.q.first; q <= box.q.last; ++q) {
    evaluator.mask({box.b.first, box.h.first, q, box.k.first}, columns, row.data());
    for (std::int64_t i = 0; i < columns; ++i) {
      const bool visible = evaluate_mask(program, {box.b.first, box.h.first, q, box.k.first + i});
      ASSERT_EQ(row[static_cast<std::size_t>(i)], visible ? 1 : 0)
          << mask.to_string() << " q " << q << " k " << i;
      any = any || visible;
      all = all && visible;
    }
  }
  const Coverage said = classify(program, box);
  ASSERT_TRUE(said != Coverage::full || all) << mask.to_string();
  ASSERT_TRUE(said != Coverage::empty || !any) << mask.to_string();
}

// A row has the same bits however it is cut.
void check_score(const Score& score, const Box& box) {
  for (const Program* program : {&score.program(), &score.derivative()}) {
    RowEvaluator evaluator(*program);
    std::vector<float> scores(columns), whole(columns), cut(columns);
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i) * 1.7f - 20;
    const Point start{box.b.first, box.h.first, box.q.first, box.k.first};
    evaluator.score(start, columns, scores.data(), whole.data());
    for (std::int64_t at = 0, part = 1; at < columns; at += part, part += 2) {
      part = std::min(part, columns - at);
      evaluator.score({start.b, start.h, start.q, start.k + at}, part, scores.data() + at, cut.data() + at);
    }
    for (std::size_t i = 0; i < whole.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(whole[i]), std::bit_cast<std::uint32_t>(cut[i]))
          << score.to_string();
  }
}

}  // namespace

// The first byte: mask or score, and where the tile lies.
void run(std::span<const std::uint8_t> input) {
  if (input.empty()) return;
  const std::uint8_t choice = input.front();
  const std::string_view text = text_of(input.subspan(1));
  const std::int64_t q = choice / 2 % 16 - 4, k = choice / 32 * 8 - 8;
  const Box box{.b = {0, 0}, .h = {1, 1}, .q = {q, q + rows - 1}, .k = {k, k + columns - 1}};
  const auto inside = [&](const Program& program) {
    const Status status = check_table_accesses(program, box);
    EXPECT_TRUE(status.is_ok() || !status.message().empty());
    return status.is_ok();
  };
  if (choice % 2 == 0) {
    const auto mask = Mask::parse(text, tables());
    if (!mask) return expect_error(mask.status(), text);
    expect_same_when_parsed_again(*mask);
    expect_same_when_parsed_again(!*mask);
    if (inside(mask->program())) check_mask(*mask, box);
  } else {
    const auto score = Score::parse(text, tables());
    if (!score) return expect_error(score.status(), text);
    expect_same_when_parsed_again(*score);
    if (inside(score->program()) && inside(score->derivative())) check_score(*score, box);
  }
}

}  // namespace chorale::fuzz
