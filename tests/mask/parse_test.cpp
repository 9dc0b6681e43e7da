#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "chorale/mask.h"
#include "mask/program.h"

namespace chorale {
namespace {

std::vector<Table> some_tables() {
  return {Table::integers("ids", {0, 0, 1, 1}), Table::integers_2d("grid", 2, 2, {1, 2, 3, 4}).value(),
          Table::floats("slopes", {0.5f, 0.25f})};
}

std::string mask_text(std::string_view text) {
  const auto mask = Mask::parse(text, some_tables());
  return mask ? mask->to_string() : mask.status().message();
}
std::string score_text(std::string_view text) {
  const auto score = Score::parse(text, some_tables());
  return score ? score->to_string() : score.status().message();
}

TEST(Parse, Masks) {
  const std::pair<const char*, const char*> cases[] = {
      {"causal and q - k < 4096", "k <= q and q - k < 4096"},
      {"causal() && window(4096)", "k <= q and q - k < 4096"},
      {"all", "true"},
      {"ids[q] == ids[k]", "ids[q] == ids[k]"},
      {"document(ids)", "ids[q] == ids[k]"},
      {"document(grid)", "grid[b, q] == grid[b, k]"},
      {"window(512) or k < 4", "q - k < 512 or k < 4"},
      {"window(8, 2)", "q - k <= 8 and k - q <= 2"},
      {"window(-1, 2)", "k - q <= 2"},
      {"window(-1, -1)", "true"},
      {"prefix_lm(128)", "k < 128 or k <= q"},
      {"window(ids[h])", "q - k < ids[h]"},
      {"q_idx >= kv_idx", "k <= q"},
      {"not causal", "not k <= q"},
      {"!causal || !(q < 3)", "not k <= q or not q < 3"},
      {"not not causal", "k <= q"},
      {"true and causal or false", "k <= q"},
      // `and` before `or`, `not` before `and`, comparisons before `not`, arithmetic before comparisons.
      {"q < 1 or q < 2 and q < 3", "q < 1 or q < 2 and q < 3"},
      {"(q < 1 or q < 2) and q < 3", "(q < 1 or q < 2) and q < 3"},
      {"not q < 1 and q < 2", "not q < 1 and q < 2"},
      {"not (q < 1 and q < 2)", "not (q < 1 and q < 2)"},
      {"q - (k - 1) - 2 < -3 * -k", "q - (k - 1) - 2 < -3 * -k"},
      {"-q % 4 == (b + h) * 2", "-q % 4 == (b + h) * 2"},
      {"q / 64 == k / 64", "q / 64 == k / 64"},
      {"select(h == 0, 16, 64) > q - k", "q - k < select(h == 0, 16, 64)"},
      {"(q < 4) == (k < 4)", "(q < 4) == (k < 4)"},
      {"q * 0.5 < 3", "float(q) * 0.5 < 3.0"},
      {"0.1 < .5 and q * 1e3 >= 2.", "2.0 <= float(q) * 1000.0"},
      {"abs(q - k) <= 3 + 4", "abs(q - k) <= 7"},
      {"max(q, k) != min(k, 3)", "max(q, k) != min(k, 3)"},
      {"tanh(q) < exp(1) and sqrt(k) > log(k)", nullptr},
      {"let d = q - k; 0 <= d and d < 5", "0 <= q - k and q - k < 5"},
      {"-9223372036854775808 < q", "-9223372036854775808 < q"},
      {"-9223372036854775807 - 2 == q", "-9223372036854775808 == q"},
      {"7 / 0 + 7 % 0 == q and -7 / 2 == k and -7 % 4 == h", "0 == q and -4 == k and 1 == h"},
      {"  causal\n\tand\r\n q < 4 ", "k <= q and q < 4"},
      {"float(q) < inf", "float(q) < inf"},
      {"q < 4 and q < 4", "q < 4"},
      {"causal and (h % 2 == 0 or window(1024))", "k <= q and (h % 2 == 0 or q - k < 1024)"},
      {"causal and (q - k) % 4 == 0", "k <= q and (q - k) % 4 == 0"},
      {"prefix_lm(ids[b])", "k < ids[b] or k <= q"},
  };
  for (const auto& [text, expected] : cases) {
    const auto mask = Mask::parse(text, some_tables());
    ASSERT_TRUE(mask.has_value()) << text << ": " << mask.status().message();
    if (expected != nullptr) EXPECT_EQ(mask->to_string(), expected) << text;
    EXPECT_EQ(mask_text(mask->to_string()), mask->to_string());
  }
}

TEST(Parse, Scores) {
  const std::pair<const char*, const char*> cases[] = {
      {"score", "score"},
      {"softcap(50)", "50.0 * tanh(score / 50.0)"},
      {"50 * tanh(score / 50)", "50.0 * tanh(score / 50.0)"},
      {"softcap(0)", "score"},
      {"alibi(slopes)", "score - slopes[h] * float(abs(q - k))"},
      {"softcap(20) then alibi(slopes)", "20.0 * tanh(score / 20.0) - slopes[h] * float(abs(q - k))"},
      {"score + 1 then 2 * score then score - q", "2.0 * (score + 1.0) - float(q)"},
      {"select(causal, score, -inf)", "select(k <= q, score, -inf)"},
      {"3", "3.0"},
      {"q", "float(q)"},
      {"score * 0.1", "score * 0.1"},
      {"score * 1.0 / 1 - 0.0", "score"},
      {"score + 0.0 * score", "score + 0.0 * score"},
  };
  for (const auto& [text, expected] : cases) EXPECT_EQ(score_text(text), expected) << text;
}

struct Bad {
  const char* text;
  int column;
  const char* says;
};

void expect_error(const std::string& message, const Bad& bad) {
  const std::string start = "column " + std::to_string(bad.column) + ": ";
  EXPECT_EQ(message.substr(0, start.size()), start) << bad.text << "\n" << message;
  EXPECT_NE(message.find(bad.says), std::string::npos) << bad.text << "\n" << message;
  const std::string caret = "\n  " + std::string(static_cast<std::size_t>(bad.column) - 1, ' ') + "^";
  EXPECT_TRUE(message.ends_with(caret)) << message;
  EXPECT_NE(message.find(std::string("\n  ") + bad.text + "\n"), std::string::npos) << message;
}

TEST(Parse, MaskErrorsPointAtTheColumn) {
  const Bad cases[] = {
      {"", 1, "expected a value, not the end"},
      {"causal and", 11, "expected a value, not the end"},
      {"causal causal", 8, "expected an operator or the end, not 'causal'"},
      {"(q < 3", 7, "expected ')'"},
      {"q < 3)", 6, "expected an operator or the end, not ')'"},
      {"0 <= q < 5", 8, "comparisons do not chain"},
      {"q == k == b", 8, "comparisons do not chain"},
      {"q", 1, "a mask must be a boolean, not an integer"},
      {"1.5", 1, "a mask must be a boolean, not a float"},
      {"causal + 1 < 2", 8, "'+' needs numbers, not a boolean"},
      {"q and causal", 3, "'and' needs booleans, not an integer"},
      {"not q", 1, "'not' needs booleans"},
      {"-causal", 1, "'-' needs numbers"},
      {"q == causal", 3, "'==' cannot take an integer and a boolean"},
      {"q % 1.5 == 0", 3, "'%' needs integers, not a float"},
      {"select(q, 1, 2) < 3", 1, "the condition of 'select' must be a boolean"},
      {"select(causal, 1, causal)", 1, "'select' cannot take"},
      {"float(causal) < 1", 1, "'float' needs numbers"},
      {"q == not causal", 6, "put it and its operand in parentheses"},
      {"ids == 3", 1, "table 'ids' needs an index"},
      {"idz[q] == 3", 1, "table 'idz' is not known: the tables are ids, grid, slopes"},
      {"ids[q, k] == 3", 1, "table ids needs one index, not 2"},
      {"grid[q] == 3", 1, "table grid needs two indices, not 1"},
      {"grid[q, k, q, -k] == 3", 1, "table grid needs two indices, not 4"},
      {"ids[] == 3", 1, "table ids needs one index, not 0"},
      {"ids[0.5] == 3", 1, "an index of table ids needs integers, not a float"},
      {"ids[q == 3", 11, "expected ']', not the end"},
      {"ids[q 3] == 3", 7, "expected ']', not '3'"},
      {"ids[q == 3] == 3", 1, "an index of table ids needs integers, not a boolean"},
      {"document(4)", 10, "'document' needs the name of a table, not '4'"},
      {"document(doc)", 10, "table 'doc' is not known"},
      {"document ids", 10, "expected '(', not 'ids'"},
      {"window", 7, "expected '(' after 'window'"},
      {"window()", 1, "'window' takes 1 or 2 arguments, not 0"},
      {"window(1, 2, 3)", 1, "'window' takes 1 or 2 arguments, not 3"},
      {"window(1.5)", 1, "'window' needs integers, not a float"},
      {"q < 2 and window(0)", 11, "shows no key: the size must be at least 1"},
      {"causal(3)", 1, "'causal' takes 0 arguments, not 1"},
      {"min(q) < 3", 1, "'min' takes 2 arguments, not 1"},
      {"score < 3", 1, "'score' can only be used in a score program"},
      {"softcap(5) < 3", 1, "'softcap' can only be used in a score program"},
      {"alibi(slopes) < 3", 1, "'alibi' can only be used in a score program"},
      {"causal then causal", 8, "'then' can only be used in a score program"},
      {"casual", 1, "'casual' is not known"},
      {"causal & q < 3", 8, "write 'and'"},
      {"causal | q < 3", 8, "write 'or'"},
      {"~causal", 1, "write 'not'"},
      {"q // 2 == 0", 3, "'/' between integers rounds down"},
      {"q ** 2 == 0", 3, "write x * x"},
      {"q < 3 ? true : false", 7, "write select"},
      {"q # 3", 3, "'#' means nothing here"},
      {"q ≤ k", 3, "'≤' means nothing here"},
      {"9223372036854775808 < q", 1, "beyond 64 bits"},
      {"q < -9223372036854775809", 6, "beyond 64 bits"},
      {"q < 1e999", 5, "beyond the range of a float"},
      {"q < 12abc", 7, "'a' cannot follow a number"},
      {"q < 1.2.3", 8, "'.' cannot follow a number"},
      {"let q = 3; q < 3", 5, "'let' needs a new name, not 'q'"},
      {"let d = 3; let d = 4; d < 3", 16, "'let' needs a new name, not 'd'"},
      {"let = 3; q < 3", 5, "'let' needs a new name, not '='"},
      {"let d 3; q < 3", 7, "expected '=', not '3'"},
      {"let d = 3", 10, "expected ';', not the end"},
      {"d < 3; let d = 3", 1, "'d' is not known"},
      {"q < , 3", 5, "expected a value, not ','"},
      {"or q < 3", 1, "expected a value, not 'or'"},
  };
  for (const Bad& bad : cases) {
    const auto mask = Mask::parse(bad.text, some_tables());
    ASSERT_FALSE(mask.has_value()) << bad.text;
    EXPECT_EQ(mask.status().code(), Code::invalid_argument);
    expect_error(mask.status().message(), bad);
  }
}

TEST(Parse, ScoreErrorsPointAtTheColumn) {
  const Bad cases[] = {
      {"causal", 1, "a score must be a number, not a boolean"},
      {"score < 3", 1, "a score must be a number"},
      {"score then causal", 12, "a score must be a number"},
      {"softcap(causal)", 1, "needs numbers, not a boolean"},
      {"alibi(grid)", 7, "table grid needs two indices"},
      {"tanh(score", 11, "expected ')'"},
      {"score +* 2", 8, "expected a value, not '*'"},
  };
  for (const Bad& bad : cases) {
    const auto score = Score::parse(bad.text, some_tables());
    ASSERT_FALSE(score.has_value()) << bad.text;
    expect_error(score.status().message(), bad);
  }
}

TEST(Parse, ColumnsCountCharactersAndLongTextsAreShortened) {
  std::string text(100, ' ');
  text += "q < $ and " + std::string(100, 'x');
  const std::string message = mask_text(text);
  EXPECT_EQ(message.substr(0, 12), "column 105: ") << message;
  const std::size_t excerpt = message.find('\n') + 1, caret = message.rfind('\n') + 1;
  EXPECT_LT(message.size(), 200u);
  EXPECT_EQ(message[excerpt + message.substr(caret).find('^')], '$') << message;
}

TEST(Parse, HostileTextsFailInWords) {
  for (const char open : {'(', '-', '!'}) {
    const std::string deep(200000, open);
    EXPECT_NE(mask_text(deep).find("nested more than 256 deep"), std::string::npos) << open;
  }
  std::string calls;
  for (int i = 0; i < 100000; ++i) calls += "abs(";
  EXPECT_NE(mask_text(calls).find("nested more than"), std::string::npos);
  EXPECT_NE(mask_text(std::string((1 << 20) + 1, ' ')).find("at most 1048576 are read"), std::string::npos);
  EXPECT_NE(mask_text(std::string("q \0 k", 5)).find("byte 0x00"), std::string::npos);
  EXPECT_NE(mask_text("q \xff k").find("byte 0xff"), std::string::npos);
  EXPECT_NE(mask_text("q \xe2\x89").find("column 3"), std::string::npos);
}

TEST(Parse, LongChainsAreNotDeep) {
  std::string text = "k == 0";
  for (int i = 1; i < 20000; ++i) text += " or k == " + std::to_string(3 * i);
  const auto mask = Mask::parse(text);
  ASSERT_TRUE(mask.has_value()) << mask.status().message();
  EXPECT_EQ(mask->to_string(), text);
  const auto again = Mask::parse(mask->to_string());
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->program(), mask->program());
  EXPECT_TRUE(evaluate_mask(mask->program(), {.k = 59997}));
  EXPECT_FALSE(evaluate_mask(mask->program(), {.k = 59998}));
}

TEST(Parse, TablesOfOneNameAreRefused) {
  const std::vector<Table> twice{Table::integers("ids", {1}), Table::integers("ids", {2})};
  const auto mask = Mask::parse("causal", twice);
  ASSERT_FALSE(mask.has_value());
  EXPECT_EQ(mask.status().message(), "two tables are named 'ids': names must differ");
}

}  // namespace
}  // namespace chorale
