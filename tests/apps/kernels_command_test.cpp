// chorale kernels, as far as it needs no compiler: what a configuration needs, and the text of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "apps/run_command.h"

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

app::Outcome kernels(std::vector<std::string> more) {
  std::vector<std::string> words{"kernels",
                                 std::string(CHORALE_SOURCE_DIR) + "/examples/roles/short.yaml",
                                 "model.num_attention_heads=4",
                                 "model.num_key_value_heads=2",
                                 "model.head_dim=64",
                                 "model.compute_dtype=bfloat16"};
  words.insert(words.end(), more.begin(), more.end());
  return app::run_command(std::move(words));
}

TEST(KernelsCommand, ListsWhatAConfigurationNeeds) {
  const app::Outcome outcome = kernels({"model.mask=causal", "--list"});
  ASSERT_TRUE(outcome.status.has_value()) << outcome.message();
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("forward bf16 d64"), HasSubstr("decode bf16 d64"),
                                    HasSubstr("store bf16 d64"), Not(HasSubstr("#define"))));
}

TEST(KernelsCommand, PrintsConstantsAndPrograms) {
  const app::Outcome outcome =
      kernels({"model.mask=causal and window(77)", "model.score=softcap(30)", "--source"});
  ASSERT_TRUE(outcome.status.has_value()) << outcome.message();
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("#define CHORALE_HEAD_DIM 64"), HasSubstr("#include \"forward.cu\""),
                    HasSubstr("// program.cuh"), HasSubstr("program_visible"), HasSubstr("q - k < 77"),
                    HasSubstr("program_score"), HasSubstr("30.0 * tanh(score / 30.0)")));
  EXPECT_EQ(outcome.output.find("// program.cuh"), outcome.output.rfind("// program.cuh"));  // all share it
}

}  // namespace
}  // namespace chorale
