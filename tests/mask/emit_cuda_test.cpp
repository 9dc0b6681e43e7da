// Emitted CUDA source against the other readings of the same programs. The source was compiled for the host,
// with the device's intrinsics in C++ (tests/mask/cuda): this shows its logic; tests/implementations runs it
// on a GPU.
#include "mask/emit_cuda.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "mask/arithmetic.h"
#include "mask/cuda_cases.h"
#include "mask/cuda_functions.h"
#include "mask/table.h"

namespace chorale {
namespace {

using testing::CudaCase;
using ::testing::HasSubstr;
using ::testing::Not;

// The tables of a case as the device would find them.
class DeviceTables {
 public:
  explicit DeviceTables(const CudaCase& entry) {
    for (const Program* program : {&entry.mask.program(), &entry.score.program()})
      for (const Table& table : program->tables()) tables_.push_back(table);
    for (const Table& table : tables_) trees_.push_back(table_tree(table));
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      const Table::Data& data = tables_[i].data();
      views_.push_back({data.is_float ? static_cast<const void*>(data.floats.data()) : data.integers.data(),
                        trees_[i].data(), static_cast<int>(device_rows(tables_[i])),
                        static_cast<int>(device_columns(tables_[i]))});
    }
  }
  const kernels::TableView* data() const { return views_.data(); }

 private:
  std::vector<Table> tables_;
  std::vector<std::vector<std::int32_t>> trees_;
  std::vector<kernels::TableView> views_;
};

class EmitCuda : public ::testing::Test {
 protected:
  int pick(int least, int most) { return std::uniform_int_distribution<int>(least, most)(random_); }
  // Near the start, where masks decide; or anywhere on a device.
  Point point() {
    const bool far = pick(0, 3) == 0;
    const int limit = far ? static_cast<int>(cuda_positions) - 1 : 99;
    return {pick(0, 2), pick(0, 7), pick(far ? -limit : 0, limit), pick(0, limit)};
  }

  const std::vector<CudaCase> cases_ = testing::cuda_cases();
  std::mt19937_64 random_{20261122};
};

bool uses_unchecked_tables(const Program& program, const Point& point) {
  const Box box{{point.b, point.b}, {point.h, point.h}, {point.q, point.q}, {point.k, point.k}};
  return !check_table_accesses(program, box).is_ok();
}

TEST_F(EmitCuda, SeesWhatTheMaskSees) {
  for (std::size_t c = 0; c < cases_.size(); ++c) {
    const DeviceTables tables(cases_[c]);
    int seen = 0, compared = 0;
    for (int i = 0; i < 2000; ++i) {
      const Point p = point();
      if (uses_unchecked_tables(cases_[c].mask.program(), p)) continue;
      const bool expected = evaluate_mask(cases_[c].mask.program(), p);
      seen += expected;
      ++compared;
      ASSERT_EQ(
          testing::cuda_functions[c].visible(tables.data(), static_cast<int>(p.b), static_cast<int>(p.h),
                                             static_cast<int>(p.q), static_cast<int>(p.k)),
          expected)
          << cases_[c].name << ": " << cases_[c].mask.to_string() << " at b " << p.b << " h " << p.h << " q "
          << p.q << " k " << p.k;
    }
    EXPECT_GT(compared, 0) << cases_[c].name;
    if (cases_[c].name == "window")
      EXPECT_THAT(seen, ::testing::AllOf(::testing::Gt(0), ::testing::Lt(compared)));
  }
}

// Scores have the CPU's bits where both do the same steps: all but tanh, and division by a constant.
TEST_F(EmitCuda, ScoresAsTheRowEvaluatorDoes) {
  int exact_cases = 0;
  for (std::size_t c = 0; c < cases_.size(); ++c) {
    const Program& program = cases_[c].score.program();
    bool exact = true;
    for (const Program::Instruction& i : program.instructions()) {
      exact &= i.op != Program::Op::tanh;
      exact &= !(i.op == Program::Op::divide && i.type == Program::Type::floating &&
                 program.instructions()[static_cast<std::size_t>(i.operands[1])].op ==
                     Program::Op::constant_float);
    }
    if (!exact && cases_[c].name != "causal") continue;
    exact_cases += exact;
    const DeviceTables tables(cases_[c]);
    RowEvaluator evaluator(program);
    for (int i = 0; i < 500; ++i) {
      const Point p = point();
      if (uses_unchecked_tables(program, p)) continue;
      const float score = static_cast<float>(pick(-4000, 4000)) / 64;
      float expected = 0;
      evaluator.score(p, 1, &score, &expected);
      const float actual =
          testing::cuda_functions[c].score(tables.data(), score, static_cast<int>(p.b), static_cast<int>(p.h),
                                           static_cast<int>(p.q), static_cast<int>(p.k));
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(actual)) << cases_[c].name << ": " << cases_[c].score.to_string();
      } else if (exact) {
        ASSERT_EQ(actual, expected) << cases_[c].name << ": " << cases_[c].score.to_string() << " of "
                                    << score;
      } else {
        ASSERT_NEAR(actual, expected, 50 * 3e-7) << score;
      }
    }
  }
  EXPECT_GT(exact_cases, 20);
}

// What is said of a box holds at each of its points; and something is said.
TEST_F(EmitCuda, CoverageIsNeverWrong) {
  int known = 0;
  for (std::size_t c = 0; c < cases_.size(); ++c) {
    const Program& mask = cases_[c].mask.program();
    const DeviceTables tables(cases_[c]);
    for (int i = 0; i < 150; ++i) {
      const int b = pick(0, 2), h = pick(0, 6), q = pick(0, 80), k = pick(0, 80);
      const int h_last = h + pick(0, 1), q_last = q + pick(0, 18), k_last = k + pick(0, 18);
      if (!check_table_accesses(mask, {{b, b}, {h, h_last}, {q, q_last}, {k, k_last}}).is_ok()) continue;
      const int coverage =
          testing::cuda_functions[c].coverage(tables.data(), b, h, h_last, q, q_last, k, k_last);
      if (coverage == 1) continue;
      ++known;
      for (int hh = h; hh <= h_last; ++hh)
        for (int qq = q; qq <= q_last; ++qq)
          for (int kk = k; kk <= k_last; ++kk)
            ASSERT_EQ(evaluate_mask(mask, {b, hh, qq, kk}), coverage == 2)
                << cases_[c].name << ": " << cases_[c].mask.to_string() << " at b " << b << " h " << hh
                << " q " << qq << " k " << kk << " of q " << q << ".." << q_last << " k " << k << ".."
                << k_last;
    }
  }
  EXPECT_GT(known, 1000);
}

// Usual masks are decided exactly, as classify() decides them, on tiles at their places.
TEST_F(EmitCuda, CoverageIsSharpForUsualMasks) {
  for (std::size_t c = 0; c < cases_.size(); ++c) {
    const std::string& name = cases_[c].name;
    if (name != "causal" && name != "window" && name != "document" && name != "prefix") continue;
    const DeviceTables tables(cases_[c]);
    for (int q = 0; q < 256; q += 32)
      for (int k = 0; k < 256; k += 32) {
        const Coverage expected =
            classify(cases_[c].mask.program(), {{0, 0}, {0, 3}, {q, q + 31}, {k, k + 31}});
        EXPECT_EQ(testing::cuda_functions[c].coverage(tables.data(), 0, 0, 3, q, q + 31, k, k + 31),
                  static_cast<int>(expected))
            << name << " q " << q << " k " << k;
      }
  }
}

TEST_F(EmitCuda, ArrangesTheExtremesAsATree) {
  for (const std::int64_t size : {1, 7, 8, 9, 100, 1024, 1025}) {
    std::vector<std::int32_t> values(static_cast<std::size_t>(size));
    for (auto& value : values) value = pick(-1000, 1000);
    const Table table = Table::integers("ids", values);
    const std::vector<std::int32_t> tree = table_tree(table);
    EXPECT_EQ(tree[2], *std::min_element(values.begin(), values.end())) << size;
    EXPECT_EQ(tree[3], *std::max_element(values.begin(), values.end())) << size;
  }
}

std::string source_of(const char* mask) {
  return emit_cuda(Mask::parse(mask).value().program(), Score().program());
}

TEST_F(EmitCuda, UsualMasksAreOneComparisonEach) {
  EXPECT_THAT(source_of("causal"), HasSubstr("const bool v2 = k <= q;\n  return v2;"));
  EXPECT_THAT(source_of("causal and window(1024)"), HasSubstr("< 1024;"));
  EXPECT_THAT(source_of("causal and window(1024)"), Not(HasSubstr("Long")));
}

TEST_F(EmitCuda, SixtyFourBitsOnlyWhereTheyAreNeeded) {
  EXPECT_THAT(source_of("q + q < k"), HasSubstr("const int v"));
  EXPECT_THAT(source_of("q + q + q < k"), HasSubstr("const Long v"));
  EXPECT_THAT(source_of("q < 5000000000"), HasSubstr("5000000000LL"));
}

// Kernels read a tile's keys once for all rows.
TEST_F(EmitCuda, TablesAtAKeyAreReadOncePerKey) {
  const std::string documents = emit_cuda(mask::document(Table::integers("ids", {1, 2})).program(),
                                          score::alibi(score::alibi_slopes(4)).program());
  EXPECT_THAT(documents, HasSubstr("count = 1;"));
  EXPECT_THAT(documents, HasSubstr("load<int>(tables[0], q);"));  // of a row
  EXPECT_THAT(documents, HasSubstr(" = key.v[0];"));
  EXPECT_THAT(source_of("causal"), HasSubstr("count = 0;"));
  // A table of a table, and one by sequence and key.
  const Table next = Table::integers("next", {1, 0});
  const std::string chained = emit_cuda(
      Mask::parse("next[next[k + 1]] <= q", std::span(&next, 1)).value().program(), Score().program());
  EXPECT_THAT(chained, HasSubstr("count = 2;"));
}

std::string score_of(const char* text) {
  const Table slopes = Table::floats("slopes", {0.5f, 0.25f});
  const std::string source =
      emit_cuda(Mask().program(), Score::parse(text, std::span(&slopes, 1)).value().program());
  const std::size_t from = source.find("float program_score");
  return source.substr(from, source.find("}\n", from) - from);
}

// In the loop over tiles every instruction of a score counts.
TEST_F(EmitCuda, UsualScoresTakeFewInstructions) {
  const std::string alibi = score_of("score - slopes[h] * abs(q - k)");
  EXPECT_THAT(alibi, HasSubstr("= fabsf(__int2float_rn(v"));
  EXPECT_THAT(alibi, HasSubstr("__fmaf_rn(score, scale, -("));
  EXPECT_THAT(alibi, Not(HasSubstr("absolute")));
  EXPECT_THAT(alibi, Not(HasSubstr("scaled")));
  EXPECT_THAT(score_of("30 * tanh(score / 30)"), HasSubstr("= fast_cap(score, __fmul_rn(scale, "));
  EXPECT_THAT(score_of("tanh(score + 1.0) * 2.0"), HasSubstr("fast_cap(v"));
  EXPECT_THAT(score_of("tanh(score) * score"), HasSubstr("= fast_tanh(scaled)"));
}

// A kernel serves every batch: no value and no size of a table is in it.
TEST_F(EmitCuda, SourceDoesNotDependOnTheTables) {
  const auto with = [](std::vector<std::int32_t> values) {
    return emit_cuda(mask::document(Table::integers("ids", std::move(values))).program(), Score().program());
  };
  EXPECT_EQ(with({1, 2, 3}), with({7, 7, 7, 7, 900000}));
}

TEST_F(EmitCuda, RefusesWhatKernelsHaveNoRoomFor) {
  Mask many = mask::causal();
  for (int i = 0; i < 9; ++i) {
    std::string name = "t";
    name += std::to_string(i);
    many = many && mask::document(Table::integers(name, {i, 2}));
  }
  EXPECT_THAT(check_cuda_programs(many.program(), Score().program()).message(),
              HasSubstr("9 tables: must be at most 8"));
  EXPECT_TRUE(check_cuda_programs(mask::causal().program(), score::softcap(30).program()).is_ok());
}

}  // namespace
}  // namespace chorale
