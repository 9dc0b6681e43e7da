// Roles: who decides, what is chosen and why, parity, and how it is all told.
#include "chorale/roles.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "roles/config.h"
#include "roles/state.h"

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr const char* ours = "CHORALE_ATTN_IMPLEMENTATION";
constexpr const char* verls = "VERL_ATTN_IMPLEMENTATION";
const std::string model =
    "model: {num_hidden_layers: 8, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 32}\n";
const Device device = Device::cpu(1);

class RolesTest : public ::testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }
  static void clear() {
    ::unsetenv(ours);
    ::unsetenv(verls);
  }

  static Roles parse(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    return Roles::parse(yaml, "run.yaml", overrides).value();
  }
  static std::string parse_error(const std::string& yaml, const std::vector<std::string>& overrides = {}) {
    const auto roles = Roles::parse(yaml, "run.yaml", overrides);
    EXPECT_FALSE(roles.has_value()) << yaml;
    return roles.status().message();
  }
  static ResolvedRoles resolve_all(const Roles& roles) {
    return roles.resolve_all(roles.problem().value(), device, roles.layers()).value();
  }
  static Resolution resolve(const Roles& roles, Role role, int layer, Phase phase) {
    return roles.resolve(role, roles.problem().value(), device, layer, phase).value();
  }
  // "requested, source" of a role's main phase.
  static std::string asked(const Roles& roles, Role role) {
    const Resolution resolution = resolve(roles, role, 0, phases(role).front());
    return fmt::format("{}, {}", resolution.requested, resolution.source);
  }
};

const Candidate& candidate(const Resolution& resolution, std::string_view name) {
  for (const Candidate& each : resolution.candidates)
    if (each.name == name) return each;
  ADD_FAILURE() << name << " is not among the candidates";
  return resolution.candidates.front();
}

// ---- Reading ----

TEST_F(RolesTest, ShortShape) {
  const Roles roles = parse(
      "actor:\n  attn_implementation: eager\nrollout:\n  attn_implementation: "
      "${actor.attn_implementation}\ncritic:\n" +
      model);
  EXPECT_EQ(asked(roles, Role::actor), "eager, run.yaml:2 (actor.attn_implementation)");
  EXPECT_EQ(asked(roles, Role::rollout),
            "eager, run.yaml:4 (rollout.attn_implementation, from actor.attn_implementation)");
  EXPECT_EQ(asked(roles, Role::ref), "auto, default");
  EXPECT_EQ(asked(roles, Role::critic), "auto, default");
  EXPECT_EQ(roles.parity(), Parity::off);
  EXPECT_THAT(roles.warnings(), IsEmpty());
}

TEST_F(RolesTest, VerlShape) {
  const Roles roles = parse(
      "actor_rollout_ref:\n"
      "  actor: {attn_implementation: eager}\n"
      "  ref:\n    attn_implementation: ${actor_rollout_ref.actor.attn_implementation}\n"
      "  model: {num_hidden_layers: 3, num_attention_heads: 4, head_dim: 16}\n"
      "critic:\n  attn_implementation: flash_attention_2\n");
  EXPECT_EQ(asked(roles, Role::actor), "eager, run.yaml:2 (actor_rollout_ref.actor.attn_implementation)");
  EXPECT_THAT(asked(roles, Role::ref), StartsWith("eager, run.yaml:4"));
  EXPECT_EQ(asked(roles, Role::rollout), "auto, default");
  EXPECT_EQ(asked(roles, Role::critic), "flash_attention_2, run.yaml:7 (critic.attn_implementation)");
  EXPECT_EQ(roles.layers(), 3);
}

TEST_F(RolesTest, TheCommandLineWinsInEitherShape) {
  const std::string verl = "actor_rollout_ref: {rollout: {attn_implementation: auto}}\n" + model;
  EXPECT_EQ(asked(parse(verl, {"rollout.attn_implementation=eager"}), Role::rollout),
            "eager, command line (rollout.attn_implementation)");
  EXPECT_EQ(asked(parse(verl, {"actor_rollout_ref.rollout.attn_implementation=eager"}), Role::rollout),
            "eager, command line (actor_rollout_ref.rollout.attn_implementation)");
  EXPECT_EQ(asked(parse("rollout: {attn_implementation: auto}\n" + model,
                        {"actor_rollout_ref.rollout.attn_implementation=eager"}),
                  Role::rollout),
            "eager, command line (actor_rollout_ref.rollout.attn_implementation)");
}

TEST_F(RolesTest, OneKeyInBothShapesIsAnError) {
  EXPECT_EQ(
      parse_error("actor: {attn_implementation: eager}\n"
                  "actor_rollout_ref: {actor: {attn_implementation: eager}}\n"),
      "run.yaml:2: actor_rollout_ref.actor.attn_implementation: is given a second time, first in run.yaml:1 "
      "(actor.attn_implementation): keep one");
}

TEST_F(RolesTest, TheDeprecatedKeyWorksAndWarns) {
  const Roles roles = parse(
      "actor_rollout_ref:\n"
      "  model:\n    override_config:\n      attn_implementation: eager\n"
      "  actor: {attn_implementation: auto}\n"
      "critic: {model: {path: elsewhere, override_config: {attn_implementation: eager}}}\n" +
      model);
  EXPECT_EQ(asked(roles, Role::actor), "auto, run.yaml:5 (actor_rollout_ref.actor.attn_implementation)")
      << "a value of its own, even auto";
  const std::string from_deprecated =
      "eager, run.yaml:4 (actor_rollout_ref.model.override_config.attn_implementation)";
  EXPECT_EQ(asked(roles, Role::rollout), from_deprecated);
  EXPECT_EQ(asked(roles, Role::ref), from_deprecated);
  EXPECT_EQ(asked(roles, Role::critic),
            "eager, run.yaml:6 (critic.model.override_config.attn_implementation)");
  EXPECT_EQ(asked(roles, Role::reward_model), "auto, default");
  EXPECT_THAT(
      roles.warnings(),
      ElementsAre(
          "run.yaml:4 (actor_rollout_ref.model.override_config.attn_implementation) is deprecated: use "
          "actor_rollout_ref.actor.attn_implementation, actor_rollout_ref.rollout.attn_implementation, "
          "actor_rollout_ref.ref.attn_implementation",
          "run.yaml:6 (critic.model.override_config.attn_implementation) is deprecated: use "
          "critic.attn_implementation"));
  const std::string told = resolve_all(roles).explain();
  EXPECT_THAT(told, HasSubstr("warning: run.yaml:4"));
}

// A role's own value unless auto > the environment > auto.
TEST_F(RolesTest, PriorityMatrix) {
  struct Row {
    std::string own;
    const char* ours_value;
    const char* verls_value;
    std::string expected;
  };
  const std::string from_file = "run.yaml:1 (actor.attn_implementation)";
  const Row rows[] = {
      {"", nullptr, nullptr, "auto, default"},
      {"auto", nullptr, nullptr, "auto, " + from_file},
      {"eager", nullptr, nullptr, "eager, " + from_file},
      {"", "eager", nullptr, "eager, environment variable CHORALE_ATTN_IMPLEMENTATION"},
      {"auto", "eager", nullptr, "eager, environment variable CHORALE_ATTN_IMPLEMENTATION"},
      {"flash_attention_2", "eager", nullptr, "flash_attention_2, " + from_file},
      {"", nullptr, "eager", "eager, environment variable VERL_ATTN_IMPLEMENTATION"},
      {"auto", nullptr, "eager", "eager, environment variable VERL_ATTN_IMPLEMENTATION"},
      {"flash_attention_2", nullptr, "eager", "flash_attention_2, " + from_file},
      {"", "eager", "flash_attention_2", "eager, environment variable CHORALE_ATTN_IMPLEMENTATION"},
      {"", "auto", "flash_attention_2", "auto, environment variable CHORALE_ATTN_IMPLEMENTATION"},
      {"auto", "", "eager", "eager, environment variable VERL_ATTN_IMPLEMENTATION"},
      {"eager", "flash_attention_2", "auto", "eager, " + from_file},
  };
  for (const Row& row : rows) {
    clear();
    if (row.ours_value != nullptr) ::setenv(ours, row.ours_value, 1);
    if (row.verls_value != nullptr) ::setenv(verls, row.verls_value, 1);
    EXPECT_EQ(asked(parse("actor: {attn_implementation: " + row.own + "}\n" + model), Role::actor),
              row.expected)
        << "own '" << row.own << "', ours " << (row.ours_value ? row.ours_value : "unset") << ", verl's "
        << (row.verls_value ? row.verls_value : "unset");
  }
}

TEST_F(RolesTest, TheEnvironmentIsReadOnceAndChecked) {
  ::setenv(ours, "eager", 1);
  const Roles roles = parse(model);
  clear();
  EXPECT_THAT(asked(roles, Role::actor), StartsWith("eager"));
  ::setenv(verls, "flash_attention2", 1);
  EXPECT_EQ(parse_error(model),
            "environment variable VERL_ATTN_IMPLEMENTATION: 'flash_attention2' is not known (did you mean "
            "flash_attention_2?)");
  ::setenv(ours, "eager", 1);
  EXPECT_THAT(asked(parse(model), Role::actor), StartsWith("eager"))
      << "the hidden variable is not looked at";
}

TEST_F(RolesTest, OverridesByLayerAndPhase) {
  const Roles roles = parse(
      "rollout:\n  attn_implementation: flash_attention_2\n  overrides:\n"
      "    - {layers: 1-5, attn_implementation: eager}\n"
      "    - {layers: 3, phase: decode, attn_implementation: flash_attention_2}\n"
      "    - {phase: prefill, layers: 5-7, attn_implementation: auto}\n" +
      model);
  const auto all = resolve_all(roles).roles.at(Role::rollout);
  std::vector<std::string> told;
  for (const Resolution& r : all)
    told.push_back(fmt::format("{}-{} {} {}", r.first_layer, r.last_layer, name(r.phase), r.requested));
  EXPECT_THAT(told, ElementsAre("0-0 prefill flash_attention_2", "0-0 decode flash_attention_2",
                                "1-4 prefill eager", "1-2 decode eager", "3-3 decode flash_attention_2",
                                "4-5 decode eager", "5-7 prefill auto", "6-7 decode flash_attention_2"));
  // Every layer and phase once, and as resolve() says it.
  for (int layer = 0; layer < 8; ++layer) {
    for (const Phase phase : {Phase::prefill, Phase::decode}) {
      int covering = 0;
      for (const Resolution& r : all) {
        if (r.phase != phase || layer < r.first_layer || layer > r.last_layer) continue;
        ++covering;
        EXPECT_EQ(resolve(roles, Role::rollout, layer, phase).source, r.source);
      }
      EXPECT_EQ(covering, 1) << layer;
    }
  }
}

TEST_F(RolesTest, AnOverridesAutoAsksTheEnvironment) {
  ::setenv(ours, "flash_attention_2", 1);
  const Roles roles = parse(
      "actor: {attn_implementation: eager, overrides: [{layers: 2, attn_implementation: auto}]}\n" + model);
  EXPECT_EQ(resolve(roles, Role::actor, 1, Phase::forward).requested, "eager");
  EXPECT_EQ(resolve(roles, Role::actor, 2, Phase::forward).source,
            "environment variable CHORALE_ATTN_IMPLEMENTATION");
}

TEST_F(RolesTest, BadOverridesAreErrors) {
  const auto error = [](const std::string& entry) {
    return parse_error("rollout:\n  overrides:\n    - " + entry + "\n" + model);
  };
  const std::string where = "run.yaml:3: rollout.overrides[0]";
  for (const char* layers : {"x", "3-1", "-1", "1-", "-", "1-2-3", "0x1", "99999999999", "''"})
    EXPECT_THAT(error(fmt::format("{{layers: {}, attn_implementation: eager}}", layers)),
                StartsWith(where + ".layers: must be a layer or an ascending range such as 0-3"))
        << layers;
  EXPECT_EQ(error("{layers: 0-8, attn_implementation: eager}"),
            "run.yaml:3 (rollout.overrides[0]): layers 0-8: the model has layers 0-7");
  EXPECT_EQ(error("{layers: 2147483647, attn_implementation: eager}"),
            "run.yaml:3 (rollout.overrides[0]): layer 2147483647: the model has layers 0-7");
  EXPECT_EQ(error("{phase: forward, attn_implementation: eager}"),
            where + ".phase: 'forward' is not known (known here: prefill, decode)");
  EXPECT_THAT(error("{layers: 0-3}"), HasSubstr(where + ".attn_implementation: is required"));
  EXPECT_THAT(error("{lyers: 0-3, attn_implementation: eager}"), HasSubstr("did you mean layers?"));
  EXPECT_EQ(error("eager"), where + ": must be a section, not 'eager'");
  EXPECT_THAT(parse_error("rollout: {overrides: {layers: 1}}\n"), HasSubstr("must be a list, not a section"));
}

TEST_F(RolesTest, OverridesOutsideTheGivenModelAreErrors) {
  const Roles roles = parse("actor: {overrides: [{layers: 4-5, attn_implementation: eager}]}\n");
  Problem problem;
  problem.query_heads = problem.kv_heads = 2;
  problem.head_dim = 16;
  EXPECT_TRUE(roles.resolve_all(problem, device, 6).has_value());
  EXPECT_EQ(roles.resolve_all(problem, device, 5).status().code(), Code::out_of_range);
  EXPECT_EQ(roles.resolve_all(problem, device, 0).status().code(), Code::out_of_range);
}

TEST_F(RolesTest, UnknownKeysAndNamesAreErrorsWithASuggestion) {
  EXPECT_EQ(parse_error("actor:\n  attn_implementaton: eager\n"),
            "run.yaml:2: actor.attn_implementaton: unknown key (did you mean attn_implementation?)");
  EXPECT_EQ(parse_error("actor: {}\nrolout: {attn_implementation: eager}\n"),
            "run.yaml:2: rolout: unknown key (did you mean rollout?)");
  EXPECT_THAT(parse_error("kitchen: {sink: 1}\n"),
              StartsWith("run.yaml:1: kitchen: unknown key (known here: "));
  EXPECT_EQ(parse_error("actor:\n  attn_implementation: flashattention_2\n"),
            "run.yaml:2: actor.attn_implementation: 'flashattention_2' is not known (did you mean "
            "flash_attention_2?)");
  EXPECT_EQ(
      parse_error("actor:\n  attn_implementation: cudnn\n"),
      "run.yaml:2: actor.attn_implementation: 'cudnn' is not known (known here: auto, flash_attention_3, "
      "flash_attention_2, flex_attention, sdpa, eager, flashinfer)");
  EXPECT_EQ(parse_error("actor:\n  attn_implementation: [eager]\n"),
            "run.yaml:2: actor.attn_implementation: must be text, not a list");
  EXPECT_EQ(parse_error("actor: eager\n"), "run.yaml:1: actor: must be a section, not 'eager'");
  EXPECT_EQ(parse_error("parity: bitwize\n"),
            "run.yaml:1: parity: 'bitwize' is not known (did you mean bitwise?)");
  EXPECT_EQ(parse_error("rollout:\n  parity: bitwise\n"),
            "run.yaml:2: rollout.parity: belongs at the top level of the file, beside the roles");
  EXPECT_THAT(
      parse_error("actor:\n  attn_implementation: ${rollout.attn_implementation}\n"
                  "rollout:\n  attn_implementation: ${actor.attn_implementation}\n"),
      HasSubstr("actor.attn_implementation -> rollout.attn_implementation -> actor.attn_implementation"));
}

// A run's file has keys for trainer and generator, too. They are not ours to judge; misspellings of ours are.
TEST_F(RolesTest, KeysOfARunPass) {
  const std::string run = "trainer: {steps: 5, deep: {er: [1]}}\nrollout:\n  temperature: 1\n" + model;
  EXPECT_TRUE(parse(run).problem().has_value());
  EXPECT_THAT(parse_error("trainer: {}\nrollout:\n  attn_implementaton: eager\n"),
              HasSubstr("did you mean attn_implementation?"));
  EXPECT_THAT(parse_error("trainer: {}\nkitchen: {}\n"), HasSubstr("kitchen: unknown key"));
  EXPECT_THAT(parse_error("trainer: {}\nrollout: {parity: off}\n"), HasSubstr("belongs at the top level"));
  EXPECT_THAT(parse_error("rollout:\n  temperature: 1\n"), HasSubstr("rollout.temperature: unknown key"))
      << "where there is no run, every key is ours";
}

TEST_F(RolesTest, AFileSharedWithAnotherReader) {
  const Config config =
      Config::parse("rollout: {attn_implementation: eager, temperature: 0.5}\nother: 1\n" + model, "run.yaml")
          .value();
  const Roles roles = Roles::from(config).value();
  EXPECT_THAT(asked(roles, Role::rollout), StartsWith("eager"));
  EXPECT_THAT(config.reject_unknown().message(), HasSubstr("rollout.temperature"));
  double temperature = 0;
  EXPECT_TRUE(config["rollout"]["temperature"].read(temperature).is_ok());
  EXPECT_THAT(config.reject_unknown().message(), HasSubstr("other"));
  EXPECT_TRUE(config["other"].exists());
  EXPECT_TRUE(config.reject_unknown().is_ok());
}

// ---- The model section ----

TEST_F(RolesTest, ModelSection) {
  const Roles roles = parse(
      "model:\n  num_hidden_layers: 5\n  num_attention_heads: 8\n  hidden_size: 256\n  compute_dtype: "
      "bfloat16\n"
      "  value_head_dim: 16\n  scale: 0.5\n  sinks: true\n  mask: causal and window(512)\n  score: "
      "softcap(50)\n"
      "  vocab_size: 100\n");
  const Problem problem = roles.problem().value();
  EXPECT_EQ(roles.layers(), 5);
  EXPECT_EQ(problem.query_heads, 8);
  EXPECT_EQ(problem.kv_heads, 8);
  EXPECT_EQ(problem.head_dim, 32);
  EXPECT_EQ(problem.value_head_dim, 16);
  EXPECT_EQ(problem.dtype, DType::bfloat16);
  EXPECT_EQ(problem.scale, 0.5f);
  EXPECT_TRUE(problem.sinks);
  EXPECT_EQ(problem.mask.to_string(), (mask::causal() && mask::window(512)).to_string());
  EXPECT_EQ(problem.score.to_string(), score::softcap(50).to_string());
  const Problem plain = parse(model).problem().value();
  EXPECT_EQ(plain.mask.to_string(), mask::causal().to_string()) << "causal unless another mask is given";
  EXPECT_EQ(plain.dtype, DType::float32);
  EXPECT_TRUE(plain.score.is_identity());
}

TEST_F(RolesTest, ModelTables) {
  const std::string head = "model:\n  num_hidden_layers: 1\n  num_attention_heads: 2\n  head_dim: 8\n";
  const Problem problem = parse(head +
                                "  mask: document(ids)\n  score: alibi(slopes)\n"
                                "  tables: {ids: [[0, 1], [1, 1]], slopes: [0.5, 1]}\n")
                              .problem()
                              .value();
  EXPECT_FALSE(problem.mask.is_all());
  EXPECT_FALSE(problem.score.is_identity());
  const auto error = [&](const std::string& tables) {
    return parse_error(head + "  tables: {t: " + tables + "}\n");
  };
  EXPECT_THAT(error("[]"), HasSubstr("model.tables.t: a table has at least one number"));
  EXPECT_THAT(error("[[]]"), HasSubstr("model.tables.t[0]: has 0 numbers"));
  EXPECT_THAT(error("[[1, 2], [3]]"), HasSubstr("model.tables.t[1]: has 1 numbers"));
  EXPECT_THAT(error("[1, x]"), HasSubstr("model.tables.t[1]: must be a whole number, not 'x'"));
  EXPECT_THAT(error("[1, 3000000000]"), HasSubstr("must be from -2147483648 to 2147483647"));
  EXPECT_THAT(error("[1, [2]]"), HasSubstr("model.tables.t[1]: must be text, not a list"));
  EXPECT_THAT(error("[[1], 2]"), HasSubstr("model.tables.t[1]: must be a list, not '2'"));
  EXPECT_THAT(error("[1, ~]"), HasSubstr("model.tables.t[1]: is required"));
  EXPECT_THAT(error("5"), HasSubstr("must be a list"));
}

TEST_F(RolesTest, BadModelSectionsAreErrors) {
  const auto error = [](const std::string& fields) { return parse_error("model: {" + fields + "}\n"); };
  const std::string heads = "num_hidden_layers: 1, num_attention_heads: 4, ";
  EXPECT_THAT(error(heads + "num_key_value_heads: 3, head_dim: 8"),
              HasSubstr("num_attention_heads 4: must be a multiple of num_key_value_heads 3"));
  EXPECT_THAT(error(heads + "head_dim: 257"), HasSubstr("model.head_dim: is 257: must be from 1 to 256"));
  EXPECT_THAT(error(heads + "hidden_size: 30"),
              HasSubstr("hidden_size 30: must be a multiple of num_attention_heads 4"));
  EXPECT_THAT(error(heads + "hidden_size: 4000"), HasSubstr("head_dim 1000"));
  EXPECT_THAT(error(heads + "head_dim: 8, compute_dtype: int8"),
              AllOf(HasSubstr("model.compute_dtype"), HasSubstr("int8")));
  EXPECT_THAT(error(heads + "head_dim: 8, mask: \"causal and and\""), HasSubstr("run.yaml:1: model.mask: "));
  EXPECT_THAT(error(heads + "head_dim: 8, score: \"nonsense(3)\""), HasSubstr("model.score: "));
  EXPECT_THAT(error(heads + "head_dim: 8, scale: -1"), HasSubstr("model.scale: is -1"));
  EXPECT_THAT(error(heads + "head_dim: 8, hed_dim: 8"), HasSubstr("did you mean head_dim?"));
  EXPECT_THAT(error("num_hidden_layers: 0"), HasSubstr("num_hidden_layers: is 0: must be from 1"));
}

TEST_F(RolesTest, AnIncompleteModelIsToldToWhoAsksForIt) {
  EXPECT_THAT(parse("actor: {}\nparity: off\n").problem().status().message(),
              AllOf(StartsWith("run.yaml:1: has no model section"), HasSubstr("num_attention_heads")));
  const auto missing = [](const std::string& fields) {
    return parse("model: {" + fields + "}\n").problem().status().message();
  };
  EXPECT_EQ(missing("head_dim: 8"), "run.yaml:1: model: num_hidden_layers is required and not given");
  EXPECT_THAT(missing("num_hidden_layers: 1"), HasSubstr("num_attention_heads is required"));
  EXPECT_THAT(missing("num_hidden_layers: 1, num_attention_heads: 2"),
              HasSubstr("head_dim (or hidden_size) is required"));
  EXPECT_THAT(missing("path: /no/such/folder"), HasSubstr("/no/such/folder/config.json"));
  EXPECT_EQ(parse("parity: off\n").layers(), 0);
}

TEST_F(RolesTest, ModelFromAFolder) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("chorale_roles_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const std::string json = (folder / "config.json").string();
  const std::string yaml = "model: {path: " + folder.string() + "}\n";
  ASSERT_TRUE(write_file(json,
                         "{\n\t\"architectures\": [\"Qwen3ForCausalLM\"], \"num_hidden_layers\": 4,\n"
                         "  \"num_attention_heads\": 6, \"num_key_value_heads\": 2, \"head_dim\": 64,\n"
                         "  \"hidden_size\": 128, \"torch_dtype\": \"bfloat16\", \"rope_scaling\": null,\n"
                         "  \"use_sliding_window\": false, \"rms_norm_eps\": 1e-06}\n")
                  .is_ok());
  const Roles roles = parse(yaml);
  EXPECT_EQ(roles.layers(), 4);
  EXPECT_EQ(roles.problem().value().query_heads, 6);
  EXPECT_EQ(roles.problem().value().dtype, DType::bfloat16);
  const Roles overridden = parse(yaml, {"model.num_hidden_layers=2", "model.compute_dtype=float32"});
  EXPECT_EQ(overridden.layers(), 2) << "the section wins over the folder";
  EXPECT_EQ(overridden.problem().value().dtype, DType::float32);

  ASSERT_TRUE(write_file(json, "{\"num_attention_heads\": \"six\"}").is_ok());
  EXPECT_THAT(parse_error(yaml),
              AllOf(HasSubstr("config.json:1: num_attention_heads"), HasSubstr("\"six\"")));
  ASSERT_TRUE(write_file(json,
                         "{\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"head_dim\": 8, "
                         "\"use_sliding_window\": true}")
                  .is_ok());
  EXPECT_THAT(parse_error(yaml), HasSubstr("use_sliding_window"));
  EXPECT_TRUE(parse(yaml, {"model.mask=causal and window(8)"}).problem().has_value());
  ASSERT_TRUE(write_file(json, "{\"num_hidden_layers\": ").is_ok());
  EXPECT_THAT(parse_error(yaml), HasSubstr("config.json"));
  std::filesystem::remove_all(folder);
}

// ---- Resolution ----

TEST_F(RolesTest, EveryCandidateHasItsReason) {
  const Roles roles = parse(model);
  const Resolution resolution = resolve(roles, Role::actor, 0, Phase::forward);
  ASSERT_EQ(resolution.candidates.size(), implementation_names().size());
  EXPECT_EQ(resolution.implementation, "flash_attention_2");
  for (const Candidate& each : resolution.candidates) EXPECT_FALSE(each.reason.empty()) << each.name;
  EXPECT_FALSE(candidate(resolution, "flash_attention_3").supported);
  EXPECT_EQ(candidate(resolution, "flash_attention_2").reason, "chosen");
  EXPECT_EQ(candidate(resolution, "eager").reason, "not needed: flash_attention_2 was chosen");
  EXPECT_FALSE(candidate(resolution, "flashinfer").supported);
  EXPECT_EQ(candidate(resolution, "flashinfer").reason, "for the rollout only");

  const Resolution rollout = resolve(roles, Role::rollout, 0, Phase::decode);
  EXPECT_EQ(candidate(rollout, "flashinfer").reason, "not part of auto: ask for it by name");
  const Resolution named =
      resolve(parse("rollout: {attn_implementation: flashinfer}\n" + model), Role::rollout, 0, Phase::decode);
  EXPECT_EQ(candidate(named, "flashinfer").reason, "chosen, served by flash_attention_2");
  EXPECT_EQ(candidate(named, "eager").reason, "not asked for");
  EXPECT_EQ(named.implementation, "flash_attention_2");
}

TEST_F(RolesTest, AnExplicitNameNeverFallsBack) {
  const auto refused = [](const std::string& yaml, Role role, Phase phase) {
    const Roles roles = parse(yaml + model);
    const auto resolution = roles.resolve(role, roles.problem().value(), device, 0, phase);
    EXPECT_EQ(resolution.status().code(), Code::unsupported);
    const auto all = roles.resolve_all(roles.problem().value(), device, 8);
    EXPECT_EQ(all.status().code(), Code::unsupported);
    return all.status().message();
  };
  EXPECT_THAT(
      refused("actor:\n  attn_implementation: flash_attention_3\n", Role::actor, Phase::forward),
      AllOf(StartsWith(
                "run.yaml:2 (actor.attn_implementation): flash_attention_3 cannot serve actor forward in "
                "layers 0-7: "),
            HasSubstr("what can: flash_attention_2")));
  EXPECT_THAT(refused("critic: {attn_implementation: flashinfer}\n", Role::critic, Phase::forward),
              HasSubstr("flashinfer cannot serve critic forward"));
  ::setenv(verls, "flashinfer", 1);
  EXPECT_THAT(refused("", Role::ref, Phase::forward),
              StartsWith("environment variable VERL_ATTN_IMPLEMENTATION"));
}

TEST_F(RolesTest, BadRequestsAreErrors) {
  const Roles roles = parse(model);
  const Problem problem = roles.problem().value();
  EXPECT_EQ(roles.resolve(Role::ref, problem, device, 0, Phase::backward).status().message(),
            "ref does not run backward");
  EXPECT_EQ(roles.resolve(Role::actor, problem, device, -1, Phase::forward).status().code(),
            Code::out_of_range);
  EXPECT_EQ(roles.resolve(Role::actor, Problem(), device).status().code(), Code::invalid_argument);
  EXPECT_EQ(roles.resolve(Role::rollout, problem, device).value().phase, Phase::prefill);
  EXPECT_FALSE(Resolution{}.build().has_value());
}

TEST_F(RolesTest, BuildGivesWhatWasChosen) {
  const Roles roles = parse("actor: {attn_implementation: eager}\n" + model);
  const Attention attention = resolve(roles, Role::actor, 0, Phase::forward).build().value();
  EXPECT_EQ(attention.implementation().name(), "eager");
  EXPECT_EQ(attention.problem().head_dim, 32);
}

TEST_F(RolesTest, DefaultRolesAskForNothing) {
  ::setenv(ours, "eager", 1);
  const Roles roles;
  Problem problem;
  problem.query_heads = problem.kv_heads = 1;
  problem.head_dim = 8;
  EXPECT_EQ(roles.resolve(Role::actor, problem, device).value().source, "default");
  EXPECT_FALSE(roles.problem().has_value());
}

// ---- Parity ----

TEST_F(RolesTest, ParityHoldsWithOneImplementationEverywhere) {
  const ResolvedRoles resolved = resolve_all(parse("parity: bitwise\n" + model));
  EXPECT_TRUE(resolved.parity.agree);
  EXPECT_THAT(resolved.parity.reason, HasSubstr("same fingerprint in every layer"));
  EXPECT_TRUE(resolved.check().is_ok());
}

TEST_F(RolesTest, ParityIsRefusedWithTheDifference) {
  const std::string rollout = "rollout: {attn_implementation: eager}\n" + model;
  const ResolvedRoles refused = resolve_all(parse("parity: bitwise\n" + rollout));
  EXPECT_FALSE(refused.parity.agree);
  EXPECT_EQ(refused.check().code(), Code::parity_violation);
  EXPECT_THAT(refused.check().message(),
              StartsWith("parity is bitwise, but actor and rollout differ: layers 0-7: "));
  const Fingerprint trained = refused.roles.at(Role::actor).front().fingerprint;
  const Fingerprint generated = refused.roles.at(Role::rollout).front().fingerprint;
  EXPECT_EQ(refused.parity.reason, "layers 0-7: " + generated.difference(trained, "in rollout", "in actor"));
  const ResolvedRoles off = resolve_all(parse("parity: off\n" + rollout));
  EXPECT_FALSE(off.parity.agree) << "told, whether asked for or not";
  EXPECT_TRUE(off.check().is_ok());
  EXPECT_TRUE(
      resolve_all(
          parse("parity: bitwise\ncritic: {attn_implementation: eager}\nref: {attn_implementation: eager}\n" +
                model))
          .check()
          .is_ok())
      << "parity is between actor and rollout";
}

Resolution made(int first, int last, Phase phase, const std::string& isa) {
  Resolution resolution;
  resolution.first_layer = first;
  resolution.last_layer = last;
  resolution.phase = phase;
  resolution.fingerprint = {{{"isa", isa}, {"T", "64"}}};
  return resolution;
}

TEST(Parity, NamesLayersAndPhasesThatDiffer) {
  const std::vector<Resolution> actor{made(0, 3, Phase::forward, "x"), made(4, 9, Phase::forward, "y"),
                                      made(0, 9, Phase::backward, "any")};
  const auto compare = [&](const std::vector<Resolution>& rollout) {
    return compare_actor_and_rollout(Parity::bitwise, actor, rollout);
  };
  EXPECT_TRUE(compare({made(0, 1, Phase::prefill, "x"), made(2, 3, Phase::prefill, "x"),
                       made(4, 9, Phase::prefill, "y"), made(0, 3, Phase::decode, "x"),
                       made(4, 9, Phase::decode, "y")})
                  .agree);
  EXPECT_EQ(compare({made(0, 9, Phase::prefill, "x"), made(0, 9, Phase::decode, "x")}).reason,
            "layers 4-9: isa is x in rollout and y in actor");
  EXPECT_EQ(compare({made(0, 9, Phase::prefill, "z"), made(0, 9, Phase::decode, "z")}).reason,
            "layers 0-3: isa is z in rollout and x in actor. layers 4-9: isa is z in rollout and y in actor");
  EXPECT_EQ(compare({made(0, 3, Phase::prefill, "x"), made(4, 9, Phase::prefill, "y"),
                     made(0, 3, Phase::decode, "x"), made(4, 6, Phase::decode, "y"),
                     made(7, 7, Phase::decode, "x"), made(8, 9, Phase::decode, "y")})
                .reason,
            "layer 7, decode: isa is x in rollout and y in actor");
  EXPECT_EQ(compare({made(0, 9, Phase::prefill, "x"), made(0, 3, Phase::decode, "z"),
                     made(4, 9, Phase::decode, "y")})
                .reason,
            "layers 0-3, decode: isa is z in rollout and x in actor. "
            "layers 4-9, prefill: isa is x in rollout and y in actor");
}

// ---- How it is told ----

TEST_F(RolesTest, ExplainGolden) {
  const Roles roles = parse(
      "parity: bitwise\nactor:\n  attn_implementation: eager\nrollout:\n  overrides:\n"
      "    - {layers: 0-1, attn_implementation: eager}\n" +
      model);
  const ResolvedRoles resolved = resolve_all(roles);
  const std::string tiled = resolved.roles.at(Role::ref).front().fingerprint.to_string();
  const std::string eager = resolved.roles.at(Role::actor).front().fingerprint.to_string();
  const std::string fa3 = "runs on an NVIDIA GPU, not on the CPU";
  const std::string sdpa(find_implementation_name("sdpa")->reason);
  const auto role_on_its_own = [&](const std::string& role, const std::string& phases) {
    return fmt::format(R"({}
  layers 0-7, {}
    asked        auto, by default
    runs         flash_attention_2
    fingerprint  {}
      flash_attention_3  no   {}
      flash_attention_2  yes  chosen
      flex_attention     yes  not needed: flash_attention_2 was chosen
      sdpa               no   {}
      eager              yes  not needed: flash_attention_2 was chosen
      flashinfer         no   for the rollout only
)",
                       role, phases, tiled, fa3, sdpa);
  };
  const std::string told = resolved.explain();
  EXPECT_THAT(told, StartsWith(fmt::format("problem: {}\ndevice: {}\n\nactor\n",
                                           roles.problem().value().describe(), device.describe())));
  EXPECT_THAT(told, HasSubstr(fmt::format(R"(
rollout
  layers 0-1, prefill and decode
    asked        eager, by run.yaml:6 (rollout.overrides[0].attn_implementation)
    runs         eager
    fingerprint  {}
      flash_attention_3  no   {}
      flash_attention_2  yes  not asked for
      flex_attention     yes  not asked for
      sdpa               no   {}
      eager              yes  chosen
      flashinfer         yes  not asked for
  layers 2-7, prefill and decode
    asked        auto, by default
    runs         flash_attention_2
    fingerprint  {}
      flash_attention_3  no   {}
      flash_attention_2  yes  chosen
      flex_attention     yes  not needed: flash_attention_2 was chosen
      sdpa               no   {}
      eager              yes  not needed: flash_attention_2 was chosen
      flashinfer         yes  not part of auto: ask for it by name
ref
)",
                                          eager, fa3, sdpa, tiled, fa3, sdpa)));
  EXPECT_THAT(
      told, HasSubstr(role_on_its_own("ref", "forward") + role_on_its_own("critic", "forward and backward")));
  EXPECT_THAT(told, HasSubstr(role_on_its_own("reward_model", "forward") +
                              "\nparity: bitwise; actor and rollout differ\n  layers 2-7: "));
  EXPECT_THAT(resolved.roles.at(Role::ref).front().explain(), role_on_its_own("ref", "forward"));
}

TEST_F(RolesTest, JsonHasTheDocumentedForm) {
  const Roles roles = parse("parity: bitwise\nrollout: {attn_implementation: eager}\n" + model);
  const ResolvedRoles resolved = resolve_all(roles);
  const auto json = nlohmann::json::parse(resolved.to_json());
  EXPECT_EQ(json.at("roles").size(), all_roles.size());
  for (const Role role : all_roles) {
    const auto& list = json.at("roles").at(std::string(name(role)));
    ASSERT_EQ(list.size(), phases(role).size());
    for (const auto& entry : list) {
      for (const char* key : {"layers", "phase", "requested", "source", "implementation", "fingerprint"})
        EXPECT_TRUE(entry.at(key).is_string()) << key;
      EXPECT_EQ(entry.at("layers"), "0-7");
      ASSERT_EQ(entry.at("candidates").size(), implementation_names().size());
      for (const auto& each : entry.at("candidates")) {
        EXPECT_TRUE(each.at("name").is_string() && each.at("supported").is_boolean());
        EXPECT_FALSE(each.at("reason").get<std::string>().empty());
      }
    }
  }
  const auto& rollout = json.at("roles").at("rollout").at(1);
  EXPECT_EQ(rollout.at("phase"), "decode");
  EXPECT_EQ(rollout.at("requested"), "eager");
  EXPECT_EQ(rollout.at("source"), "run.yaml:2 (rollout.attn_implementation)");
  EXPECT_EQ(rollout.at("implementation"), "eager");
  EXPECT_EQ(json.at("parity").at("requested"), "bitwise");
  EXPECT_EQ(json.at("parity").at("agree"), false);
  EXPECT_EQ(json.at("parity").at("reason"), resolved.parity.reason);
}

// ---- The examples ----

TEST_F(RolesTest, EveryExampleResolves) {
  int examples = 0;
  for (const auto& entry : std::filesystem::directory_iterator(CHORALE_SOURCE_DIR "/examples/roles")) {
    const std::string path = entry.path().string();
    const auto roles = Roles::load(path);
    ASSERT_TRUE(roles.has_value()) << roles.status().message();
    const auto resolved = roles->resolve_all(roles->problem().value(), device, roles->layers());
    ASSERT_TRUE(resolved.has_value()) << resolved.status().message();
    const bool is_refused = entry.path().filename() == "parity_refused.yaml";
    EXPECT_EQ(resolved->check().is_ok(), !is_refused) << path << "\n" << resolved->parity.reason;
    ++examples;
  }
  EXPECT_GE(examples, 5);
}

// ---- The cache's type ----

constexpr std::string_view one_layer =
    "model: {num_hidden_layers: 1, num_attention_heads: 2, head_dim: 16, compute_dtype: bfloat16}\n";

TEST(KvCacheDtype, IsPartOfTheProblemOfEveryRole) {
  for (const char* shape :
       {"rollout: {kv_cache_dtype: float8_e4m3, kv_cache_scale: 0.5}\n",
        "actor_rollout_ref: {rollout: {kv_cache_dtype: float8_e4m3, kv_cache_scale: 2}}\n"}) {
    const Roles roles = Roles::parse(std::string(one_layer) + shape).value();
    EXPECT_EQ(roles.kv_cache_dtype(), DType::float8_e4m3);
    const Problem problem = roles.problem().value();
    EXPECT_TRUE(problem.has_kv_scales());
    const ResolvedRoles resolved = roles.resolve_all(problem, Device::cpu(), 1).value();
    EXPECT_TRUE(resolved.parity.agree) << resolved.parity.reason;
    EXPECT_THAT(resolved.explain(), HasSubstr("float8_e4m3"));
  }
}

TEST(KvCacheDtype, AutoIsTheModelsOwn) {
  for (const char* text : {"", "rollout: {kv_cache_dtype: auto}\n"}) {
    const Roles roles = Roles::parse(std::string(one_layer) + text).value();
    EXPECT_FALSE(roles.kv_cache_dtype());
    EXPECT_FALSE(roles.problem()->has_kv_scales());
  }
}

TEST(KvCacheDtype, RefusesOthersAndTwo) {
  EXPECT_THAT(Roles::parse(std::string(one_layer) + "rollout: {kv_cache_dtype: int4}\n").status().message(),
              AllOf(HasSubstr("rollout.kv_cache_dtype"), HasSubstr("int4")));
  EXPECT_THAT(Roles::parse(std::string(one_layer) + "rollout: {kv_cache_dtype: auto}\n"
                                                    "actor_rollout_ref: {rollout: {kv_cache_dtype: auto}}\n")
                  .status()
                  .message(),
              HasSubstr("is given a second time"));
}

}  // namespace
}  // namespace chorale
