// The kept corpus as tests, one for each file of CHORALE_CORPUS.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "base/files.h"
#include "target.h"

namespace chorale::fuzz {
namespace {

std::vector<std::string> corpus() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(CHORALE_CORPUS))
    names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

// Letters, digits and _ only, as test names are.
std::string test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::ranges::replace_if(
      name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

class Corpus : public testing::TestWithParam<std::string> {};

TEST_P(Corpus, Holds) {
  const std::string content =
      read_file((std::filesystem::path(CHORALE_CORPUS) / GetParam()).string()).value();
  run({reinterpret_cast<const std::uint8_t*>(content.data()), content.size()});
}
INSTANTIATE_TEST_SUITE_P(Kept, Corpus, testing::ValuesIn(corpus()), test_name);

}  // namespace
}  // namespace chorale::fuzz
