// Pictures and the command that prints them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "apps/run_command.h"
#include "base/files.h"
#include "mask/picture.h"
#include "mask/program.h"

namespace chorale {
namespace {

using ::testing::HasSubstr;

std::int64_t count(std::string_view text, std::string_view part) {
  std::int64_t found = 0;
  for (std::size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size()))
    ++found;
  return found;
}

TEST(Picture, CountsTilesAndPairs) {
  const auto picture = draw_mask(mask::causal(), 256, 256, 64).value();
  EXPECT_EQ(picture.tiles.empty, 6);
  EXPECT_EQ(picture.tiles.partial, 4);
  EXPECT_EQ(picture.tiles.full, 6);
  EXPECT_EQ(picture.pairs.empty, 6 * 64 * 64);
  EXPECT_EQ(picture.pairs.total(), 256 * 256);
  EXPECT_EQ(picture.visible, 256 * 257 / 2);
  EXPECT_THAT(picture.summary, HasSubstr("tiles    16 of 64 x 64: 6 empty, 4 partial, 6 full"));
  EXPECT_THAT(picture.summary, HasSubstr("37.50% of the pairs are skipped"));
}

TEST(Picture, CountsAreThoseOfTheElements) {
  const Table ids =
      Table::integers("ids", std::vector<std::int32_t>{0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4});
  const Mask mask = mask::document(ids) && mask::causal();
  for (const std::int64_t q_len : {1, 5, 17})
    for (const std::int64_t tile : {1, 3, 4, 64}) {
      const auto picture = draw_mask(mask, q_len, 17, tile).value();
      std::int64_t visible = 0;
      for (std::int64_t q = 17 - q_len; q < 17; ++q)
        for (std::int64_t k = 0; k < 17; ++k) visible += evaluate_mask(mask.program(), {.q = q, .k = k});
      EXPECT_EQ(picture.visible, visible);
      EXPECT_EQ(picture.pairs.total(), q_len * 17);
    }
}

TEST(Picture, TerminalShowsEveryKind) {
  PictureOptions options{.q_len = 8, .kv_len = 8, .tile_q = 4, .tile_k = 4, .columns = 20};
  const auto picture = draw_mask(mask::causal(), options).value();
  EXPECT_EQ(picture.terminal,
            "   q \\ k 0   4\n"
            "        ┌────────┐\n"
            "      0 │▓▒░░····│\n"
            "        │▓▓▓▒····│\n"
            "      4 │████▓▒░░│\n"
            "        │████▓▓▓▒│\n"
            "        └────────┘\n"
            "         · empty tile   ░▒▓ partial tile: hidden, mixed, visible   █ full tile\n");
}

TEST(Picture, TerminalKeepsItsWidth) {
  for (const std::int64_t kv_len : {1, 63, 500, 9000})
    for (const int columns : {20, 77, 200}) {
      const auto picture =
          draw_mask(mask::causal(), {.q_len = 100, .kv_len = kv_len, .columns = columns}).value();
      const std::string first = picture.terminal.substr(
          picture.terminal.find("┌"), picture.terminal.find("┐") - picture.terminal.find("┌"));
      EXPECT_LE(count(first, "─") + 10, columns);
    }
}

TEST(Picture, SvgShowsTilesAndElements) {
  const auto picture = draw_mask(mask::causal(), 4, 4, 2).value();
  EXPECT_THAT(picture.svg, HasSubstr("class=\"full\" d=\"M0 2h2v2h-2z\""));
  EXPECT_THAT(picture.svg, HasSubstr("class=\"partial\" d=\"M0 0h2v2h-2zM2 2h2v2h-2z\""));
  EXPECT_THAT(picture.svg,
              HasSubstr("fill-opacity=\"1\" d=\"M0 0h1v1h-1zM0 1h2v1h-2zM2 2h1v1h-1zM2 3h2v1h-2z\""));
  EXPECT_THAT(picture.svg, HasSubstr("k &lt;= q"));
  EXPECT_EQ(picture.svg.find("href"), std::string::npos) << "self-contained";
}

TEST(Picture, NoiseStaysSmallEnoughForAPage) {
  const Mask noise = Mask::parse("(q * 7919 + k * 104729) * 31 % 1009 % 2 == 0").value();
  const auto picture = draw_mask(noise, 2000, 2000, 64).value();
  EXPECT_LT(picture.svg.size(), 6u << 20);
  EXPECT_EQ(picture.tiles.partial, 32 * 32);
}

TEST(Picture, LimitsAreNamed) {
  const auto error = [](const PictureOptions& options) {
    return draw_mask(mask::causal(), options).status().message();
  };
  EXPECT_EQ(error({.q_len = 0, .kv_len = 4}), "q length 0: must be at least 1");
  EXPECT_EQ(error({.q_len = 4, .kv_len = -3}), "k length -3: must be at least 1");
  EXPECT_EQ(error({.q_len = 4, .kv_len = 4, .tile_q = 0}), "tile height 0: must be at least 1");
  EXPECT_EQ(error({.q_len = 4, .kv_len = 4, .tile_k = -1}), "tile width -1: must be at least 1");
  EXPECT_THAT(error({.q_len = 1 << 20, .kv_len = 1 << 20}), HasSubstr("at most 268435456 pairs"));
  const std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(error({.q_len = huge, .kv_len = huge}), HasSubstr("at most 268435456 pairs"));
  EXPECT_THAT(error({.q_len = 4096, .kv_len = 4096, .tile_q = 1, .tile_k = 1}),
              HasSubstr("at most 1048576 can be drawn"));
  EXPECT_THAT(error({.q_len = 4, .kv_len = 4, .columns = 3}), HasSubstr("must be from 20 to 1000"));
  EXPECT_EQ(error({.q_len = 4, .kv_len = 4, .tile_q = huge, .tile_k = huge}), "");
  const auto outside = draw_mask(mask::document(Table::integers("ids", {0, 1})), 4, 4, 2);
  EXPECT_EQ(outside.status().message(), "table ids: index q goes from 0 to 3, but the table has 2 values");
}

using app::Outcome;

Outcome run(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "mask");
  return app::run_command(std::move(arguments));
}

class MaskCommand : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const char* name) const { return (folder_ / name).string(); }
  std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("chorale_mask_" + std::to_string(::getpid()));
};

TEST_F(MaskCommand, DrawsAndWrites) {
  const Outcome outcome =
      run({"causal and q - k < 100", "--q", "300", "--k", "400", "--svg", path("mask.svg")});
  ASSERT_TRUE(outcome.status.has_value()) << outcome.status.status().message();
  EXPECT_THAT(outcome.output, HasSubstr("k <= q and q - k < 100"));
  EXPECT_THAT(outcome.output, HasSubstr("tiles    35 of 64 x 64"));
  EXPECT_THAT(read_file(path("mask.svg")).value(), HasSubstr("</svg>"));
}

TEST_F(MaskCommand, ReadsTables) {
  ASSERT_TRUE(write_file(path("ids.json"), "[0, 0, 1, 1]").is_ok());
  for (const std::string& table : {std::string("ids=0,0,1,1"), "ids=@" + path("ids.json")}) {
    const Outcome outcome = run({"document(ids)", "--q", "4", "--k", "4", "--tile", "2", "--table", table});
    ASSERT_TRUE(outcome.status.has_value()) << outcome.status.status().message();
    EXPECT_THAT(outcome.output, HasSubstr("2 empty, 0 partial, 2 full"));
  }
  const Outcome rows =
      run({"document(ids)", "--q", "2", "--k", "2", "--tile", "1", "--b", "1", "--table", "ids=0,0;3,4"});
  ASSERT_TRUE(rows.status.has_value()) << rows.status.status().message();
  EXPECT_THAT(rows.output, HasSubstr("2 empty, 0 partial, 2 full"));
  EXPECT_TRUE(run({"k * 1.0 < limits[h]", "--table", "limits=0.5,7", "--h", "1"}).status.has_value());
}

TEST_F(MaskCommand, RefusesInOneSentence) {
  const auto error = [](std::vector<std::string> arguments) {
    const Outcome outcome = run(std::move(arguments));
    EXPECT_EQ(outcome.output, "") << "nothing is drawn";
    return outcome.status.status().message();
  };
  ASSERT_TRUE(write_file(path("broken.json"), "[0, 1").is_ok());
  ASSERT_TRUE(write_file(path("deep.json"), std::string(100000, '[') + std::string(100000, ']')).is_ok());
  EXPECT_THAT(error({"causal and"}), HasSubstr("column 11: expected a value"));
  EXPECT_THAT(error({"causal", "--q", "0"}), HasSubstr("q length 0: must be at least 1"));
  EXPECT_THAT(error({"causal", "--tile", "-4"}), HasSubstr("tile height -4: must be at least 1"));
  EXPECT_THAT(error({"causal", "--k", "9000000000000000000"}), HasSubstr("at most 268435456 pairs"));
  EXPECT_EQ(error({"causal", "--table", "ids"}), "--table ids: must be NAME=1,2,3 or NAME=@FILE");
  EXPECT_EQ(error({"causal", "--table", "ids=1,x"}), "table ids: 1,x is not a list of numbers");
  EXPECT_EQ(error({"causal", "--table", "ids=1,2;3"}), "table ids: its rows must be lists of one length");
  EXPECT_EQ(error({"causal", "--table", "ids=1,[2]"}), "table ids: [2] is not a number");
  EXPECT_EQ(error({"causal", "--table", "ids=99999999999"}), "table ids: 99999999999 is beyond 32 bits");
  EXPECT_THAT(error({"causal", "--table", "ids=@" + path("none.json")}), HasSubstr("none.json"));
  EXPECT_THAT(error({"causal", "--table", "ids=@" + path("broken.json")}), HasSubstr("is not JSON"));
  EXPECT_THAT(error({"causal", "--table", "ids=@" + path("deep.json")}),
              HasSubstr("nested more than 2 deep"));
  EXPECT_THAT(error({"ids[k] == 0", "--table", "ids=1,2,3"}),
              HasSubstr("index k goes from 0 to 511, but the table has 3 values"));
  EXPECT_THAT(error({"causal", "--svg", path("no/such/folder.svg")}), HasSubstr("folder.svg"));
}

}  // namespace
}  // namespace chorale
