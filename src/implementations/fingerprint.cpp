// Fingerprint: the order of arithmetic, printed and compared.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "chorale/implementation.h"

namespace chorale {

// Values joined by slashes. A part with a one-letter name is a size, and prints its letter too: "T64".
std::string Fingerprint::to_string() const {
  std::vector<std::string> words;
  for (const Part& part : parts) words.push_back(part.name.size() == 1 ? part.name + part.value : part.value);
  return fmt::format("{}", fmt::join(words, "/"));
}

std::string Fingerprint::difference(const Fingerprint& other, std::string_view here,
                                    std::string_view there) const {
  const auto find = [](const Fingerprint& in, const std::string& wanted) {
    return std::find_if(in.parts.begin(), in.parts.end(), [&](const Part& p) { return p.name == wanted; });
  };
  std::vector<std::string> differences;
  for (const Part& part : parts) {
    const auto match = find(other, part.name);
    if (match == other.parts.end()) {
      differences.push_back(fmt::format("{} is {} {} and absent {}", part.name, part.value, here, there));
    } else if (match->value != part.value) {
      differences.push_back(
          fmt::format("{} is {} {} and {} {}", part.name, part.value, here, match->value, there));
    }
  }
  for (const Part& part : other.parts) {
    if (find(*this, part.name) != parts.end()) continue;
    differences.push_back(fmt::format("{} is absent {} and {} {}", part.name, here, part.value, there));
  }
  if (differences.empty() && *this != other) return "the same parts come in another order";
  return fmt::format("{}", fmt::join(differences, "; "));
}

}  // namespace chorale
