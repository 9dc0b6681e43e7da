// Malformed safetensors files: each an error that names the file and the place, none a crash.
#include "model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

namespace chorale {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("chorale_safetensors_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "weights.safetensors").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::string length(std::uint64_t value) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
    return bytes;
  }
  Result<SafetensorsFile> open_bytes(const std::string& bytes) {
    EXPECT_TRUE(write_file(path_, bytes).is_ok());
    return SafetensorsFile::open(path_);
  }
  Result<SafetensorsFile> open(const std::string& header, std::size_t data) {
    return open_bytes(length(header.size()) + header + std::string(data, '\1'));
  }
  // The message must name the file and say `sentence`.
  void expect_refused(const Result<SafetensorsFile>& result, const std::string& sentence) {
    ASSERT_FALSE(result.has_value()) << sentence;
    EXPECT_THAT(result.status().message(), AllOf(HasSubstr(path_), HasSubstr(sentence)));
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(Safetensors, ReadsEveryTypeAtAnyOffset) {
  // Three bytes of padding in front of an odd length: no tensor is aligned.
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
      R"("h":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},"f":{"dtype":"F32","shape":[],"data_offsets":[8,12]},)"
      R"("none":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}})";
  std::string padded = header;
  while (padded.size() % 4 != 3) padded.push_back(' ');
  const std::string data(
      "\x80\x3f\x00\xc0"
      "\x00\x3c\xff\xfb"
      "\x00\x00\x20\x41",
      12);  // 1, -2; 1, -65504; 10
  const SafetensorsFile file = open_bytes(length(padded.size()) + padded + data).value();
  const auto read = [&](const char* name, std::size_t count) {
    std::vector<float> values(count);
    file.read(file.entries().at(name), values);
    return values;
  };
  EXPECT_THAT(read("b", 2), ::testing::ElementsAre(1.0f, -2.0f));
  EXPECT_THAT(read("h", 2), ::testing::ElementsAre(1.0f, -65504.0f));
  EXPECT_THAT(read("f", 1), ::testing::ElementsAre(10.0f));
  EXPECT_TRUE(read("none", 0).empty());
  EXPECT_EQ(file.entries().size(), 4u);
}

TEST_F(Safetensors, HeaderLength) {
  expect_refused(open_bytes(""), "has 0 bytes: a header needs at least 8");
  expect_refused(open_bytes("1234567"), "has 7 bytes");
  expect_refused(open_bytes(length(1) + ""), "header length 1: must be at most 0");
  expect_refused(open_bytes(length(100) + "{}"), "header length 100: must be at most 2");
  expect_refused(open_bytes(length(~std::uint64_t{0}) + "{}"),
                 "header length 18446744073709551615: must be at most 2");
  expect_refused(open_bytes(length(0)), "line 1, column 1");
}

TEST_F(Safetensors, HeaderText) {
  expect_refused(open("[1]", 0), "the header must be a JSON object");
  expect_refused(open("{\"a\":", 0), "(header): line 1");
  expect_refused(open("{\"\xc3\":1}", 0), "(header): line 1");
  expect_refused(
      open(
          R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8),
      "key 'a' appears twice");
  expect_refused(open("{\"a\":" + std::string(200000, '['), 0), "nested more than 32 levels deep");
}

TEST_F(Safetensors, Entries) {
  const auto entry = [](const std::string& fields) { return "{\"t\":{" + fields + "}}"; };
  expect_refused(open("{\"t\":3}", 0), "tensor 't': 3: must be an object");
  expect_refused(open(entry(R"("shape":[1],"data_offsets":[0,4])"), 4), "tensor 't': dtype is missing");
  expect_refused(open(entry(R"("dtype":"I64","shape":[1],"data_offsets":[0,8])"), 8),
                 R"(tensor 't': dtype "I64": must be "F32", "BF16" or "F16")");
  expect_refused(open(entry(R"("dtype":7,"shape":[1],"data_offsets":[0,8])"), 8), "tensor 't': dtype 7");
  expect_refused(open(entry(R"("dtype":"F32","data_offsets":[0,4])"), 4), "tensor 't': shape is missing");
  expect_refused(open(entry(R"("dtype":"F32","shape":1,"data_offsets":[0,4])"), 4),
                 "shape 1: must be an array");
  expect_refused(open(entry(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4),
                 "shape [-1]: must hold integers");
  expect_refused(open(entry(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4),
                 "shape [1.5]: must hold integers");
  expect_refused(open(entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"extra":1)"), 4),
                 "unknown key 'extra'");
  expect_refused(open(entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0),
                 "has more than 2^64 bytes");
  expect_refused(open(entry(R"("dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,0])"), 0),
                 "has more than 2^64 bytes");
  expect_refused(open(entry(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,0])"), 0),
                 "must hold integers from 0 to 2^63 - 1");
}

TEST_F(Safetensors, Offsets) {
  const auto one = [](const std::string& offsets) {
    return R"({"t":{"dtype":"F32","shape":[2],"data_offsets":)" + offsets + "}}";
  };
  EXPECT_TRUE(open(one("[0,8]"), 8).has_value());
  expect_refused(open(one("[0]"), 8), "data_offsets [0]: must be a begin and an end");
  expect_refused(open(one("[8,0]"), 8),
                 "data_offsets [8, 0]: must be a begin and an end that is not below it");
  expect_refused(open(one("[0,8]"), 7), "data_offsets [0, 8]: the file has 7 bytes of data");
  expect_refused(open(one("[0,4]"), 8), "data_offsets [0, 4]: shape [2] of float32 needs 8 bytes");
  expect_refused(open(one("[4,12]"), 12), "bytes 0 to 4 of the data, before tensor 't', belong to no tensor");
  expect_refused(open(one("[0,8]"), 9), "bytes 8 to 9 at the end of the data belong to no tensor");
  const auto two = [](const std::string& first, const std::string& second) {
    return R"({"s":{"dtype":"F32","shape":[1],"data_offsets":)" + first +
           R"(},"t":{"dtype":"F32","shape":[1],"data_offsets":)" + second + "}}";
  };
  EXPECT_TRUE(open(two("[4,8]", "[0,4]"), 8).has_value()) << "in any order";
  expect_refused(open(two("[0,4]", "[2,6]"), 6),
                 "tensor 't' begins at byte 2 of the data, before its predecessor's end 4");
  expect_refused(open(two("[0,4]", "[0,4]"), 4), "before its predecessor's end 4");
  expect_refused(open(two("[0,4]", "[6,10]"), 10), "bytes 4 to 6 of the data, before tensor 't'");
}

// Whatever byte of a good file is lost or changed, reading it ends in a value or an error.
TEST_F(Safetensors, EveryTruncationAndFlippedByte) {
  const std::string header = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::string good = length(header.size()) + header + std::string(8, '\1');
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(open_bytes(good.substr(0, size)).has_value()) << size << " bytes";
  for (std::size_t i = 0; i < good.size(); ++i)
    for (const int flip : {1, 0x80}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ flip);
      const Result<SafetensorsFile> file = open_bytes(bad);
      if (!file) continue;
      for (const auto& [name, entry] : file->entries()) {
        std::vector<float> values((entry.end - entry.begin) / size_of(entry.dtype));
        file->read(entry, values);
      }
    }
}

}  // namespace
}  // namespace chorale
