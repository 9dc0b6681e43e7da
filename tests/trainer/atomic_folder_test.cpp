#include "trainer/atomic_folder.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "base/files.h"

namespace chorale {
namespace {

class AtomicFolderTest : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(root_); }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::filesystem::path root_ =
      std::filesystem::temp_directory_path() / ("chorale_atomic_folder_" + std::to_string(::getpid()));
  std::string target_ = (root_ / "checkpoint").string();
};

TEST_F(AtomicFolderTest, AppearsWhole) {
  {
    auto folder = AtomicFolder::create(target_).value();
    ASSERT_TRUE(write_file(folder.staging() + "/a", "content").is_ok());
    EXPECT_FALSE(std::filesystem::exists(target_));
    ASSERT_TRUE(folder.commit().is_ok());
  }
  EXPECT_EQ(read_file(target_ + "/a").value(), "content");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(root_), {}), 1);
}

TEST_F(AtomicFolderTest, LeavesNothingUnlessCommitted) {
  {
    auto folder = AtomicFolder::create(target_).value();
    ASSERT_TRUE(write_file(folder.staging() + "/a", "half").is_ok());
    auto moved = std::move(folder);
  }
  EXPECT_TRUE(std::filesystem::is_empty(root_));
}

TEST_F(AtomicFolderTest, NeverReplacesAFolder) {
  auto first = AtomicFolder::create(target_).value();
  ASSERT_TRUE(write_file(first.staging() + "/a", "first").is_ok());
  ASSERT_TRUE(first.commit().is_ok());
  auto second = AtomicFolder::create(target_).value();
  ASSERT_TRUE(write_file(second.staging() + "/a", "second").is_ok());
  EXPECT_EQ(second.commit().code(), Code::io_error);
  EXPECT_EQ(read_file(target_ + "/a").value(), "first");
}

TEST_F(AtomicFolderTest, NamesTheFolderItCannotMake) {
  const auto refused = AtomicFolder::create((root_ / "missing" / "checkpoint").string());
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.status().message().find("missing/checkpoint"), std::string::npos);
}

}  // namespace
}  // namespace chorale
