// safetensors files. What opens has tensors that cover its data, each as large as its shape says; all of them
// are read, written to another file and read again.
#include "model/safetensors.h"

#include <unistd.h>

#include <bit>
#include <filesystem>
#include <string>
#include <vector>

#include "target.h"

namespace chorale::fuzz {
namespace {

// One file in memory where there is such a folder: a fuzzer writes thousands a second.
std::string path_of(std::string_view name) {
  const std::filesystem::path memory = "/dev/shm";
  const auto folder = std::filesystem::exists(memory) ? memory : std::filesystem::temp_directory_path();
  return (folder / ("chorale_fuzz_" + std::to_string(getpid()) + "_" + std::string(name))).string();
}

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string_view name) : path_(path_of(name)) {}
  ~TemporaryFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The file as it is, or (where the first byte is odd) a header up to the first zero byte, its length put
// before it, and the data: lengths that fit are hard to come by.
std::string content_of(std::span<const std::uint8_t> input) {
  if (input.empty()) return {};
  const std::string_view text = text_of(input.subspan(1));
  if (input.front() % 2 == 0) return std::string(text);
  const std::string_view header = text.substr(0, text.find('\0'));
  std::string content;
  for (int i = 0; i < 8; ++i) content.push_back(static_cast<char>(header.size() >> (8 * i)));
  content += header;
  if (header.size() < text.size()) content += text.substr(header.size() + 1);
  return content;
}

std::vector<float> read(const SafetensorsFile& file, const SafetensorsFile::Entry& entry) {
  std::vector<float> values((entry.end - entry.begin) / size_of(entry.dtype));
  file.read(entry, values);
  return values;
}

void expect_cover(const SafetensorsFile& file, std::size_t file_size) {
  std::size_t covered = 0;
  for (const auto& [name, entry] : file.entries()) {
    std::size_t bytes = size_of(entry.dtype);
    for (const std::int64_t size : entry.shape) bytes *= static_cast<std::size_t>(size);
    ASSERT_EQ(bytes, entry.end - entry.begin) << name;
    ASSERT_LE(entry.end, file_size) << name;
    covered += bytes;
  }
  ASSERT_LE(covered + 8, file_size);
}

void expect_same_when_written_again(const SafetensorsFile& file) {
  std::vector<NamedTensor> tensors;
  for (const auto& [name, entry] : file.entries()) {
    if (entry.shape.size() > TensorView::max_rank) return;
    Tensor tensor = Tensor::zeros(DType::float32, entry.shape);
    file.read(entry, tensor.as<float>());
    tensors.push_back({name, tensor});
  }
  const TemporaryFile copy("copy");
  auto staged = stage_safetensors(copy.path(), tensors, DType::float32);
  ASSERT_TRUE(staged) << staged.status().message();
  ASSERT_TRUE(staged->commit().is_ok());
  const auto again = SafetensorsFile::open(copy.path());
  ASSERT_TRUE(again) << again.status().message();
  ASSERT_EQ(again->entries().size(), file.entries().size());
  for (const auto& [name, entry] : file.entries()) {
    ASSERT_TRUE(again->entries().contains(name)) << name;
    const SafetensorsFile::Entry& other = again->entries().at(name);
    ASSERT_EQ(other.shape, entry.shape) << name;
    const std::vector<float> values = read(file, entry), copied = read(*again, other);
    ASSERT_EQ(values.size(), copied.size());
    for (std::size_t i = 0; i < values.size(); ++i)
      ASSERT_EQ(std::bit_cast<std::uint32_t>(values[i]), std::bit_cast<std::uint32_t>(copied[i]))
          << name << " " << i;
  }
}

}  // namespace

void run(std::span<const std::uint8_t> input) {
  const std::string content = content_of(input);
  const TemporaryFile original("original");
  ASSERT_TRUE(write_file(original.path(), content).is_ok());
  const auto file = SafetensorsFile::open(original.path());
  if (!file) {
    ASSERT_TRUE(file.status().message().starts_with(original.path())) << file.status().message();
    ASSERT_GT(file.status().message().size(), original.path().size() + 2);
    return;
  }
  expect_cover(*file, content.size());
  expect_same_when_written_again(*file);
}

}  // namespace chorale::fuzz
