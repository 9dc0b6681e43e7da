// Config: values, references, overrides, and every way in which a file can be wrong.
#include "roles/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "base/files.h"

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Config parse(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  return Config::parse(yaml, "run.yaml", overrides).value();
}
std::string parse_error(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  const auto config = Config::parse(yaml, "run.yaml", overrides);
  EXPECT_FALSE(config.has_value()) << yaml;
  return config.status().message();
}
std::string text(const ConfigNode& node) {
  std::string value = "(not given)";
  const Status status = node.read(value);
  return status.is_ok() ? value : status.message();
}
template <class T, class... Limits>
std::string read_error(const ConfigNode& node, T value, Limits... limits) {
  const T before = value;
  const Status status = node.read(value, limits...);
  EXPECT_FALSE(status.is_ok());
  EXPECT_EQ(value, before) << "a failed read leaves the value alone";
  return status.message();
}

TEST(Config, ReadsValuesAndLeavesWhatIsNotGiven) {
  const Config config =
      parse("trainer:\n  steps: 12\n  rate: 1e-3\n  resume: true\n  folder: out\n  seed:\n");
  const ConfigNode trainer = config["trainer"];
  int steps = 0, seed = 7, other = 8;
  float rate = 0;
  bool resume = false;
  std::string folder;
  EXPECT_TRUE(trainer["steps"].read(steps, 1, 100).is_ok());
  EXPECT_TRUE(trainer["rate"].read(rate, 0, 1).is_ok());
  EXPECT_TRUE(trainer["resume"].read(resume).is_ok());
  EXPECT_TRUE(trainer["folder"].read(folder).is_ok());
  EXPECT_TRUE(trainer["seed"].read(seed).is_ok()) << "a key without a value is not given";
  EXPECT_TRUE(config["nowhere"]["deep"]["other"].read(other).is_ok());
  EXPECT_EQ(steps, 12);
  EXPECT_EQ(rate, 1e-3f);
  EXPECT_TRUE(resume);
  EXPECT_EQ(folder, "out");
  EXPECT_EQ(seed, 7);
  EXPECT_EQ(other, 8);
  EXPECT_EQ(trainer["steps"].source(), "run.yaml:2 (trainer.steps)");
  EXPECT_TRUE(config.reject_unknown().is_ok());
}

TEST(Config, ListsAndFreeKeys) {
  const Config config = parse("lists:\n  primes: [2, 3, 5]\n  words: {b: x, a: y}\n");
  const auto primes = config["lists"]["primes"].items().value();
  ASSERT_EQ(primes.size(), 3u);
  EXPECT_EQ(text(primes[1]), "3");
  EXPECT_EQ(primes[1].path(), "lists.primes[1]");
  const auto words = config["lists"]["words"].entries().value();
  ASSERT_EQ(words.size(), 2u);
  EXPECT_EQ(words[0].key(), "b") << "in the order of the file";
  EXPECT_TRUE(config["lists"]["none"].items().value().empty());
  EXPECT_TRUE(config.reject_unknown().is_ok());
}

TEST(Config, WrongTypesNameFileLineKeyAndValue) {
  const Config config = parse("a:\n  n: twelve\n  q: \"12\"\n  f: .inf\n  b: yes\n  s: [1]\n  m: 5\n");
  const ConfigNode a = config["a"];
  EXPECT_EQ(read_error(a["n"], 0), "run.yaml:2: a.n: must be a whole number, not 'twelve'");
  EXPECT_EQ(read_error(a["q"], 0), "run.yaml:3: a.q: must be a whole number, not \"12\"");
  EXPECT_EQ(read_error(a["f"], 0.0), "run.yaml:4: a.f: must be a number, not '.inf'");
  EXPECT_EQ(read_error(a["b"], false), "run.yaml:5: a.b: must be true or false, not 'yes'");
  EXPECT_EQ(read_error(a["s"], std::string()), "run.yaml:6: a.s: must be text, not a list");
  EXPECT_EQ(read_error(a["m"], 0, 6, 9), "run.yaml:7: a.m: is 5: must be from 6 to 9");
  EXPECT_EQ(read_error(a["m"], 0.0, 0.0, 1.5), "run.yaml:7: a.m: is 5: must be from 0 to 1.5");
  EXPECT_EQ(read_error(a["m"]["deeper"], 0), "run.yaml:7: a.m: must be a section, not '5'");
  EXPECT_EQ(a["m"].items().status().message(), "run.yaml:7: a.m: must be a list, not '5'");
  EXPECT_EQ(a["s"].entries().status().message(), "run.yaml:6: a.s: must be a section, not a list");
  EXPECT_EQ(a["missing"].required().message(), "run.yaml:1: a.missing: is required and not given");
}

TEST(Config, NumbersThatDoNotFitTheirTypeAreErrors) {
  const Config config = parse("a: 3000000000\nb: 99999999999999999999\nc: -1\nd: 1e400\ne: 1e39\n");
  EXPECT_EQ(read_error(config["a"], std::int32_t{0}),
            "run.yaml:1: a: is 3000000000: must be from -2147483648 to 2147483647");
  std::int64_t wide = 0;
  EXPECT_TRUE(config["a"].read(wide).is_ok());
  EXPECT_EQ(wide, 3000000000);
  EXPECT_THAT(read_error(config["b"], std::int64_t{0}), HasSubstr("whole number"));
  EXPECT_THAT(read_error(config["c"], std::uint64_t{0}), HasSubstr("is -1: must be from 0"));
  EXPECT_THAT(read_error(config["d"], 0.0), HasSubstr("must be a number"));
  EXPECT_THAT(read_error(config["e"], 0.0f), HasSubstr("must be from"));
}

TEST(Config, ChoicesSuggestTheNearest) {
  constexpr std::string_view colours[] = {"red", "green", "blue"};
  const Config config = parse("a: green\nb: gren\nc: violet\n");
  std::string colour;
  EXPECT_TRUE(config["a"].read_choice(colour, colours).is_ok());
  EXPECT_EQ(colour, "green");
  EXPECT_EQ(config["b"].read_choice(colour, colours).message(),
            "run.yaml:2: b: 'gren' is not known (did you mean green?)");
  EXPECT_EQ(config["c"].read_choice(colour, colours).message(),
            "run.yaml:3: c: 'violet' is not known (known here: red, green, blue)");
  EXPECT_EQ(colour, "green");
}

TEST(Config, FollowsReferences) {
  const Config config = parse(
      "actor: {attn: eager, optim: {lr: 0.5}}\n"
      "ref: ${actor}\n"
      "rollout:\n  attn: ${ref.attn}\n  lr: \"${ref.optim.lr}\"\n");
  EXPECT_EQ(text(config["rollout"]["attn"]), "eager");
  EXPECT_EQ(config["rollout"]["attn"].source(), "run.yaml:4 (rollout.attn, from actor.attn)");
  EXPECT_EQ(config["actor"]["attn"].source(), "run.yaml:1 (actor.attn)");
  double rate = 0;
  EXPECT_TRUE(config["rollout"]["lr"].read(rate).is_ok());
  EXPECT_EQ(rate, 0.5);
  EXPECT_EQ(text(config["ref"]["attn"]), "eager") << "a whole section may be referred to";
}

TEST(Config, BrokenReferencesTellTheirChain) {
  const Config config = parse(
      "a: ${b}\nb: ${c.d}\nc: {d: \"${a}\"}\n"
      "lost: ${found}\nfound: ${x.y}\nself: ${self.self}\npart: ${a}/b\nnested: ${x${a}}\nthrough: "
      "${n.x}\nn: 5\n"
      "null_one: ${empty}\nempty:\n");
  EXPECT_EQ(text(config["a"]), "run.yaml:1: a: references go in a circle: a -> b -> c.d -> a");
  EXPECT_EQ(text(config["lost"]), "run.yaml:5: found: lost -> found -> x.y: there is no such key");
  EXPECT_THAT(text(config["self"]), HasSubstr("in a circle: self -> self"));
  EXPECT_THAT(text(config["part"]), HasSubstr("a reference must be the whole value"));
  EXPECT_THAT(text(config["nested"]), HasSubstr("a reference must be the whole value"));
  EXPECT_THAT(text(config["through"]), HasSubstr("through -> n.x: there is no such key"));
  EXPECT_FALSE(config["null_one"].exists()) << "a reference to a key without a value is not given either";
  EXPECT_TRUE(config["a"].exists()) << "what is broken must be read, not skipped";
  EXPECT_FALSE(config["a"]["x"].required().is_ok());
}

TEST(Config, ReferencesThatMultiplyAreBounded) {
  // Each level follows the next one twice, once for the section and once for its key: 2^30 steps, if nothing
  // counted.
  std::string yaml, keys;
  for (int i = 0; i < 30; ++i) {
    yaml += fmt::format("s{}: ${{s{}.k{}}}\n", i, i + 1, i + 1);
    keys += fmt::format("k{0}: \"${{s{0}}}\", ", i + 1);
  }
  EXPECT_THAT(text(parse(yaml + "s30: {" + keys + "}\n")["s0"]), HasSubstr("more than 100 references"));
  std::string chain;
  for (int i = 0; i < 200; ++i) chain += fmt::format("c{}: ${{c{}}}\n", i, i + 1);
  const Config config = parse(chain + "c200: 1\n");
  EXPECT_THAT(text(config["c0"]), HasSubstr("more than 100 references"));
  EXPECT_EQ(text(config["c100"]), "1");
}

TEST(Config, OverridesWinAndAreNamed) {
  const Config config =
      parse("a: {x: 1, y: 2}\nb:\n", {"a.x=5", "b.c.d=[1, 2]", "+e.f=${a.y}", "a.x=6", "a.t=p and q = r"});
  EXPECT_EQ(text(config["a"]["x"]), "6");
  EXPECT_EQ(config["a"]["x"].source(), "command line (a.x)");
  EXPECT_TRUE(config["a"]["x"].from_command_line());
  EXPECT_FALSE(config["a"]["y"].from_command_line());
  EXPECT_EQ(text(config["a"]["t"]), "p and q = r");
  EXPECT_EQ(config["b"]["c"]["d"].items().value().size(), 2u);
  EXPECT_EQ(text(config["e"]["f"]), "2");
  EXPECT_EQ(read_error(config["a"]["t"], 0), "command line: a.t: must be a whole number, not 'p and q = r'");
  EXPECT_FALSE(parse("a: 1\n", {"a="})["a"].exists()) << "an empty value takes the file's away";
}

TEST(Config, MalformedOverridesAreErrors) {
  EXPECT_EQ(parse_error("a: 1\n", {"a"}), "command line: 'a': must have the form section.key=value");
  EXPECT_THAT(parse_error("a: 1\n", {"a..b=1"}), HasSubstr("a part of the key is empty"));
  EXPECT_THAT(parse_error("a: 1\n", {"=1"}), HasSubstr("a part of the key is empty"));
  EXPECT_EQ(parse_error("a: 1\n", {"a.b=1"}), "command line: 'a.b=1': a is text, which has no key 'b'");
  EXPECT_THAT(parse_error("a: [1]\n", {"a.b=1"}), HasSubstr("a is a list"));
  EXPECT_THAT(parse_error("a: 1\n", {"a=[1"}), StartsWith("command line"));
  std::string deep = "a";
  for (int i = 0; i < 40; ++i) deep += ".a";
  EXPECT_THAT(parse_error("b: 1\n", {deep + "=1"}), HasSubstr("nested deeper than 32"));
}

TEST(Config, UnknownKeysAreErrorsWithASuggestion) {
  const Config config = parse("rollout:\n  temprature: 1\n");
  EXPECT_FALSE(config["rollout"]["temperature"].exists());
  EXPECT_EQ(config.reject_unknown().message(),
            "run.yaml:2: rollout.temprature: unknown key (did you mean temperature?)");

  const Config in_list = parse("list: [{lyers: 1}]\n");
  EXPECT_FALSE(in_list["list"].items().value()[0]["layers"].exists());
  EXPECT_EQ(in_list.reject_unknown().message(),
            "run.yaml:1: list[0].lyers: unknown key (did you mean layers?)");

  const Config other = parse("a: 1\nqwertz: 2\n");
  EXPECT_TRUE(other["a"].exists());
  EXPECT_FALSE(other["bb"].exists());
  EXPECT_EQ(other.reject_unknown().message(), "run.yaml:2: qwertz: unknown key (known here: a, bb)");
  const Config overridden = parse("a: 1\n", {"b.c=1"});
  EXPECT_TRUE(overridden["a"].exists());
  EXPECT_EQ(overridden.reject_unknown().message(), "command line: b: unknown key (known here: a)");
}

TEST(Config, OtherReadersKeysPassUnlessTheyLookLikeOurs) {
  const Config config = parse("rollout:\n  top_k: 5\n  deep: {er: [1, {x: 2}]}\n");
  EXPECT_FALSE(config["rollout"]["attn_implementation"].exists());
  config["rollout"].allow_other_keys();
  EXPECT_TRUE(config.reject_unknown().is_ok());
  const Config misspelt = parse("rollout:\n  attn_implementaton: eager\n");
  EXPECT_FALSE(misspelt["rollout"]["attn_implementation"].exists());
  misspelt["rollout"].allow_other_keys();
  EXPECT_THAT(misspelt.reject_unknown().message(), HasSubstr("did you mean attn_implementation?"));
}

TEST(Yaml, MalformedFilesAreErrorsWithALine) {
  const std::pair<std::string, std::string> cases[] = {
      {"a: 1\nb: 2\na: 3\n", "run.yaml:3: key 'a' is given twice, first in line 1"},
      {"a:\n  x: 1\n  x: 2\n", "run.yaml:3: key 'x' is given twice, first in line 2"},
      {"a: {x: 1, x: 2}\n", "run.yaml:1: key 'x' is given twice, first in line 1"},
      {"a: [1, 2\nb: 3\n", "run.yaml:2: "},
      {"a: 1\n  b: 2\n", "run.yaml:2: "},
      {"a: \"open\nb: 1\n", "run.yaml:"},
      {"a: 'open\n\n", "run.yaml:"},
      {"a: 1\n\tb: 2\n", "run.yaml:2: "},
      {"? [1, 2]\n: 3\n", "run.yaml:1: a key must be text, not a list"},
      {"~: 3\n", "run.yaml:1: a key must be text, not nothing"},
      {"a: &x 1\nb: *x\n", "run.yaml:2: aliases (*name) are not supported"},
      {"a: *nobody\n", "run.yaml:1: "},
      {"a: !!binary aGk=\n", "run.yaml:1: tags such as 'tag:yaml.org,2002:binary' are not supported"},
      {"a: 1\n---\nb: 2\n", "run.yaml:2: a second document starts here"},
      {"- 1\n- 2\n", "run.yaml:1: must be sections (key: value), not a list"},
      {"just words\n", "run.yaml:1: must be sections (key: value), not 'just words'"},
      {"", "run.yaml: is empty"},
      {"# only a comment\n", "run.yaml: is empty"},
      {"%YAML 9\n", "run.yaml"},
  };
  for (const auto& [yaml, message] : cases) EXPECT_THAT(parse_error(yaml), StartsWith(message)) << yaml;
}

TEST(Yaml, AliasBombsAndDeepNestingEndAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  std::string bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c <= 'j'; ++c)
    bomb += fmt::format("{0}: &{0} [*{1}, *{1}]\n", c, static_cast<char>(c - 1));
  EXPECT_THAT(parse_error(bomb), HasSubstr("aliases"));
  for (const char* opener : {"[", "{", "- ", "? ", "{a: ", "[["}) {
    std::string deep = "a:\n ";
    while (deep.size() < max_yaml_bytes / 4) deep += opener;
    EXPECT_THAT(parse_error(deep), StartsWith("run.yaml:")) << opener;
  }
  EXPECT_THAT(parse_error(fmt::format("a: {:[>33}{:]>33}", "", "")), HasSubstr("nested deeper than 32"));
  parse(fmt::format("a: {:[>31}{:]>31}", "", ""));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Yaml, OnlyUtf8IsText) {
  const auto refused = [](std::string_view yaml) {
    return Config::parse(yaml, "run.yaml").status().message();
  };
  EXPECT_EQ(refused("a: \xc3\n"), "run.yaml:1: is not UTF-8 text");
  EXPECT_EQ(refused("a: 1\nb: \xc3("), "run.yaml:2: is not UTF-8 text");
  for (const char* bytes :
       {"\xff\xfe", "\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\xbd\x80\x80", "\xf0\x9f\x98"})
    EXPECT_EQ(refused(bytes), "run.yaml:1: is not UTF-8 text");
  const auto text_of = [](std::string_view yaml) {
    return text(Config::parse(yaml, "run.yaml").value()["a"]);
  };
  EXPECT_EQ(text_of("a: \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\n"), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  EXPECT_EQ(text_of("\xef\xbb\xbf"
                    "a: 1\n"),
            "1");
  EXPECT_EQ(text_of(R"(a: "\N\_.\x85\u00a0.\Nx\_")"), "\xc2\x85\xc2\xa0.\xc2\x85\xc2\xa0.\xc2\x85x\xc2\xa0");
  EXPECT_EQ(text(Config::parse(R"("\_": 1)", "run.yaml").value()["\xc2\xa0"]), "1");
  for (const std::string& zeros : {std::string("a: \0b\n", 6), std::string(1000, '\0')}) {
    const auto config = Config::parse(zeros, "run.yaml");
    if (config) EXPECT_TRUE((*config)["a"].exists() || !config->reject_unknown().is_ok());
  }
}

TEST(Config, FilesThatCannotBeReadAreErrors) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("chorale_config_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const auto load_error = [](const std::string& path) { return Config::load(path).status().message(); };
  EXPECT_THAT(load_error((folder / "missing.yaml").string()), HasSubstr("missing.yaml"));
  EXPECT_THAT(load_error(folder.string()), HasSubstr(folder.string()));
  ASSERT_TRUE(write_file((folder / "huge.yaml").string(), std::string(max_yaml_bytes + 1, '#')).is_ok());
  EXPECT_THAT(load_error((folder / "huge.yaml").string()),
              AllOf(HasSubstr("huge.yaml"), HasSubstr("1048576")));
  ASSERT_TRUE(write_file((folder / "ok.yaml").string(), "a: 1\n").is_ok());
  EXPECT_EQ(text(Config::load((folder / "ok.yaml").string()).value()["a"]), "1");
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace chorale
