// classify: never wrong for any program, exact for the usual masks.
#include <gtest/gtest.h>

#include "mask/program.h"
#include "random_program.h"

namespace chorale {
namespace {

using testing::RandomProgram;

Coverage brute_force(const Program& mask, const Box& box) {
  bool any = false, all = true;
  for (std::int64_t b = box.b.first; b <= box.b.last; ++b)
    for (std::int64_t h = box.h.first; h <= box.h.last; ++h)
      for (std::int64_t q = box.q.first; q <= box.q.last; ++q)
        for (std::int64_t k = box.k.first; k <= box.k.last; ++k) {
          const bool visible = evaluate_mask(mask, {b, h, q, k});
          any = any || visible;
          all = all && visible;
        }
  return all ? Coverage::full : any ? Coverage::partial : Coverage::empty;
}

TEST(Classify, NeverContradictsTheElements) {
  RandomProgram random(21);
  int decided = 0, partial = 0, missed = 0;
  for (int i = 0; i < 6000; ++i) {
    const Mask mask = Mask::from(random.boolean(1 + i % 6)).value();
    for (int tile = 0; tile < 8; ++tile) {
      const auto range = [&](std::int64_t from, std::int64_t spread, std::int64_t length) {
        const std::int64_t first = from + random.pick(spread);
        return Range{first, first + random.pick(length)};
      };
      const Box box{range(0, 2, 2), range(0, 3, 2), range(-10, 60, 9), range(-5, 60, 9)};
      const Coverage said = classify(mask.program(), box), is = brute_force(mask.program(), box);
      if (said != Coverage::partial) {
        ASSERT_EQ(said, is) << "program " << i << ": " << mask.to_string() << " q " << box.q.first << ".."
                            << box.q.last << " k " << box.k.first << ".." << box.k.last << " b "
                            << box.b.first << ".." << box.b.last << " h " << box.h.first << ".."
                            << box.h.last;
        ++decided;
      } else {
        ++partial;
        missed += is != Coverage::partial;
      }
    }
  }
  EXPECT_GT(decided, 20000);
  EXPECT_GT(partial, 3000);
  RecordProperty("decided", decided);
  RecordProperty("missed", missed);
}

TEST(Classify, NeverContradictsAtTheEndsOfTheIntegers) {
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min(),
                         most = std::numeric_limits<std::int64_t>::max();
  for (const char* text : {"q + k < 0", "q - k < 5 and k - q < 5", "q * 3 > k and k <= q", "abs(q) >= 0",
                           "-q > k or k - q <= 2", "q / 2 == k / 2", "q % 3 == k % 3",
                           "q - k < 3 and q + k > 9223372036854775800", "min(q, k) + 7 > max(q, k)"}) {
    const Mask mask = Mask::parse(text).value();
    for (const std::int64_t q : {least, least + 2, std::int64_t{-3}, most - 9, most - 5})
      for (const std::int64_t k : {least, least + 1, std::int64_t{0}, most - 8, most - 5})
        for (const std::int64_t size : {0, 3, 5}) {
          const Box box{.q = {q, q + size}, .k = {k, k + size}};
          const Coverage said = classify(mask.program(), box);
          // The loops of brute_force would overflow at the end: one less.
          if (q + size == most || k + size == most) continue;
          if (said != Coverage::partial)
            ASSERT_EQ(said, brute_force(mask.program(), box)) << text << " " << q << " " << k;
        }
  }
}

std::string name(Coverage coverage) {
  return coverage == Coverage::full ? "full" : coverage == Coverage::empty ? "empty" : "partial";
}

// The masks that people use, on every tile of several sizes, with fewer, as many and more keys than queries.
TEST(Classify, IsExactForTheUsualMasks) {
  std::vector<std::int32_t> documents;
  for (int i = 0, id = 0; i < 96; ++i) documents.push_back(id += (i * i % 17 == 3) * (1 + i % 2));
  const std::vector<Table> tables{Table::integers("ids", documents),
                                  Table::integers_2d("packs", 2, 96,
                                                     [&] {
                                                       std::vector<std::int32_t> twice(documents);
                                                       for (int i = 0; i < 96; ++i) twice.push_back(i / 29);
                                                       return twice;
                                                     }())
                                      .value(),
                                  Table::integers("windows", {1, 7, 64})};
  for (const char* text : {
           "all",
           "causal",
           "not causal",
           "window(1) and causal",
           "window(2) and causal",
           "window(5) and causal",
           "window(64) and causal",
           "window(7)",
           "window(3, 3)",
           "window(0, 0)",
           "window(9, 2)",
           "window(-1, 4)",
           "abs(q - k) <= 6",
           "k > q - 10 and k <= q",
           "prefix_lm(20)",
           "prefix_lm(1)",
           "prefix_lm(20) and window(30)",
           "causal and (window(11) or k < 4)",
           "window(16) or k < 5",
           "causal and window(10) or k < 3",
           "document(ids)",
           "document(ids) and causal",
           "document(ids) and causal and window(6)",
           "document(ids) and (causal or k < 9)",
           "document(ids) or k < 2",
           "causal and (document(ids) or k < 4)",
           "document(packs) and causal",
           "q / 16 == k / 16",
           "causal and q / 8 - k / 8 <= 2",
           "select(h == 0, causal, causal and window(8))",
           "causal and window(windows[h])",
           "q < 30 and k < 50",
           "not (causal and window(12))",
           "not document(ids)",
           "q == k",
           "q != k",
           "k - q >= 3 or q - k >= 4",
           "(q < 40) == (k < 40)",
           "causal and (q < 20 or k >= 20)",
       }) {
    const Mask mask = Mask::parse(text, tables).value();
    for (const auto& [tile_q, tile_k] : {std::pair{1, 1}, {1, 16}, {16, 16}, {7, 13}, {32, 8}, {64, 64}})
      for (const std::int64_t first_q : {0, 5})
        for (std::int64_t b = 0; b < 2; ++b)
          for (std::int64_t q = first_q; q < 96; q += tile_q)
            for (std::int64_t k = 0; k < 96; k += tile_k) {
              const std::int64_t h = (q / tile_q + k / tile_k) % 3;
              const Box box{{b, b},
                            {h, h},
                            {q, std::min<std::int64_t>(q + tile_q, 96) - 1},
                            {k, std::min<std::int64_t>(k + tile_k, 96) - 1}};
              ASSERT_EQ(name(classify(mask.program(), box)), name(brute_force(mask.program(), box)))
                  << text << " q " << box.q.first << ".." << box.q.last << " k " << box.k.first << ".."
                  << box.k.last << " h " << h << " b " << b;
            }
  }
}

TEST(Classify, QueriesBeforeTheFirstKeySeeNothing) {
  const Mask mask = mask::causal();
  EXPECT_EQ(classify(mask.program(), {.q = {-64, -1}, .k = {0, 63}}), Coverage::empty);
  EXPECT_EQ(classify(mask.program(), {.q = {-1, 0}, .k = {0, 0}}), Coverage::partial);
}

// Many alternatives: the search may give up, but must end and must not be wrong.
TEST(Classify, ManyAlternativesEnd) {
  Expr any = expr::k() == 0;
  for (int i = 1; i < 400; ++i)
    any = any || (expr::k() == 7 * i && expr::q() % 5 == i % 5) || (expr::q() - expr::k() == i);
  const Mask mask = Mask::from(any).value();
  for (std::int64_t k = 1; k < 40; k += 3) {
    const Box box{.q = {400, 410}, .k = {k, k + 2}};
    const Coverage said = classify(mask.program(), box);
    if (said != Coverage::partial) EXPECT_EQ(said, brute_force(mask.program(), box));
  }
}

TEST(Classify, ScoreProgramsConditionsOnFloatsAreNotTrusted) {
  // The index is inside for one rounding of the comparison and outside for the other: it must be refused.
  const Table table = Table::floats("t", {1.0f});
  const Score score =
      Score::parse("score + t[select(float(q) < 16777217.0, 0, 1)]", std::vector{table}).value();
  EXPECT_FALSE(check_table_accesses(score.program(), {.q = {16777216, 16777216}}).is_ok());
}

}  // namespace
}  // namespace chorale
