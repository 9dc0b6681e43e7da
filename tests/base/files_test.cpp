#include "base/files.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace chorale {
namespace {

class Files : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("chorale_files_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const char* name) const { return (folder_ / name).string(); }
  std::filesystem::path folder_;
};

TEST_F(Files, WritesAsideAndRenames) {
  ASSERT_TRUE(write_file(path("a"), "first").is_ok());
  {
    auto file = AtomicFile::create(path("a")).value();
    ASSERT_TRUE(file.write("half", 4).is_ok());
  }  // dropped without commit
  EXPECT_EQ(read_file(path("a")).value(), "first");
  ASSERT_TRUE(write_file(path("a"), "second").is_ok());
  EXPECT_EQ(read_file(path("a")).value(), "second");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 1) << "temporaries are removed";
}

TEST_F(Files, FailuresNameThePath) {
  const auto missing = read_file(path("missing"));
  EXPECT_EQ(missing.status().code(), Code::not_found);
  EXPECT_NE(missing.status().message().find("missing"), std::string::npos);
  EXPECT_EQ(read_file(folder_.string()).status().code(), Code::io_error) << "a folder is not a file";
  EXPECT_FALSE(write_file(path("no/such/folder"), "x").is_ok());
  ASSERT_TRUE(write_file(path("long"), "12345").is_ok());
  EXPECT_EQ(read_file(path("long"), 4).status().code(), Code::invalid_argument);
}

TEST_F(Files, Maps) {
  ASSERT_TRUE(write_file(path("a"), "abc").is_ok());
  const auto map = MappedFile::open(path("a")).value();
  ASSERT_EQ(map.bytes().size(), 3u);
  EXPECT_EQ(static_cast<char>(map.bytes()[1]), 'b');
  ASSERT_TRUE(write_file(path("empty"), "").is_ok());
  EXPECT_TRUE(MappedFile::open(path("empty")).value().bytes().empty());
}

}  // namespace
}  // namespace chorale
