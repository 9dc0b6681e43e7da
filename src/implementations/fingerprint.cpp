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

std::string Fingerprint::difference(const Fingerprint& other) const {
  const auto find = [](const Fingerprint& in, const std::string& wanted) {
    return std::find_if(in.parts.begin(), in.parts.end(), [&](const Part& p) { return p.name == wanted; });
  };
  std::vector<std::string> differences;
  for (const Part& part : parts) {
    const auto there = find(other, part.name);
    if (there == other.parts.end()) {
      differences.push_back(fmt::format("{} is {} here and absent there", part.name, part.value));
    } else if (there->value != part.value) {
      differences.push_back(fmt::format("{} is {} here and {} there", part.name, part.value, there->value));
    }
  }
  for (const Part& part : other.parts) {
    if (find(*this, part.name) != parts.end()) continue;
    differences.push_back(fmt::format("{} is absent here and {} there", part.name, part.value));
  }
  if (differences.empty() && *this != other) return "the same parts come in another order";
  return fmt::format("{}", fmt::join(differences, "; "));
}

}  // namespace chorale
