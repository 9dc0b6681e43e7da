// `chorale resolve`: what it prints, and when it says no.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "apps/run_command.h"

namespace chorale::app {
namespace {

using ::testing::HasSubstr;

Outcome run(std::vector<std::string> arguments) {
  ::unsetenv("CHORALE_ATTN_IMPLEMENTATION");
  ::unsetenv("VERL_ATTN_IMPLEMENTATION");
  arguments.insert(arguments.begin(), "resolve");
  return run_command(std::move(arguments));
}

const std::string examples = CHORALE_SOURCE_DIR "/examples/roles/";

TEST(ResolveCommand, PrintsAndSucceedsWhereParityHolds) {
  const Outcome outcome = run({examples + "short.yaml"});
  ASSERT_TRUE(outcome.status.has_value()) << outcome.status.status().message();
  EXPECT_EQ(*outcome.status, exit_ok);
  EXPECT_THAT(outcome.output, HasSubstr("parity: bitwise; actor and rollout agree to the bit"));
}

TEST(ResolveCommand, RefusesWithTheWholePicture) {
  const Outcome outcome = run({examples + "parity_refused.yaml", "--json"});
  EXPECT_EQ(outcome.status.status().code(), Code::parity_violation);
  EXPECT_EQ(nlohmann::json::parse(outcome.output).at("parity").at("agree"), false);
  EXPECT_TRUE(run({examples + "parity_refused.yaml", "parity=off"}).status.has_value());
}

TEST(ResolveCommand, TakesOverrides) {
  const Outcome outcome =
      run({examples + "short.yaml", "rollout.attn_implementation=eager", "--json", "parity=off"});
  ASSERT_TRUE(outcome.status.has_value()) << outcome.status.status().message();
  const auto json = nlohmann::json::parse(outcome.output);
  EXPECT_EQ(json.at("roles").at("rollout").at(0).at("source"), "command line (rollout.attn_implementation)");
  EXPECT_EQ(json.at("parity").at("agree"), false);
}

TEST(ResolveCommand, FailsWithoutPrintingHalf) {
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"/no/such/file.yaml"},
        {CHORALE_SOURCE_DIR},
        {"/dev/null"},
        {examples + "short.yaml", "actor.attn_implementation=flash_attention_3"},
        {examples + "short.yaml", "nonsense"}}) {
    const Outcome outcome = run(arguments);
    EXPECT_FALSE(outcome.status.has_value()) << arguments.back();
    EXPECT_FALSE(outcome.status.status().message().empty());
    EXPECT_EQ(outcome.output, "");
  }
}

}  // namespace
}  // namespace chorale::app
