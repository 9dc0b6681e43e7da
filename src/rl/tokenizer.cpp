#include "rl/tokenizer.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/files.h"

namespace chorale {
namespace {

constexpr std::string_view file_name = "chorale_tokenizer.json";

std::string path_in(const std::string& folder) { return fmt::format("{}/{}", folder, file_name); }

}  // namespace

Result<Tokenizer> Tokenizer::create(std::vector<std::string> tokens) {
  if (tokens.empty()) return Status::invalid_argument("a tokenizer needs at least one token");
  std::set<std::string_view> seen;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].empty()) return Status::invalid_argument(fmt::format("token {} is empty", i));
    if (!seen.insert(tokens[i]).second)
      return Status::invalid_argument(fmt::format("token {} repeats '{}'", i, tokens[i]));
  }
  return Tokenizer(std::move(tokens));
}

Result<Tokenizer> Tokenizer::load(const std::string& folder) {
  const std::string path = path_in(folder);
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const bool well_formed =
      json.is_object() && json.size() == 1 && json.contains("tokens") && json["tokens"].is_array() &&
      std::ranges::all_of(json["tokens"], [](const auto& token) { return token.is_string(); });
  if (!well_formed)
    return Status::corrupt_data(fmt::format("{}: must be {{\"tokens\": [one text per token]}}", path));
  auto tokenizer = create(json["tokens"].get<std::vector<std::string>>());
  if (!tokenizer) return tokenizer.status().with_context(path);
  return tokenizer;
}

Status Tokenizer::save(const std::string& folder) const {
  const nlohmann::json json = {{"tokens", tokens_}};
  return write_file(path_in(folder), json.dump() + "\n");
}

Result<std::vector<std::int32_t>> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> encoded;
  for (std::size_t place = 0; place < text.size();) {
    std::int32_t best = -1;
    for (std::int32_t i = 0; i < size(); ++i)
      if (text.substr(place).starts_with(tokens_[i]) &&
          (best < 0 || tokens_[i].size() > tokens_[best].size()))
        best = i;
    if (best < 0)
      return Status::invalid_argument(
          fmt::format("'{}', character {}: no token begins with '{}'", text, place + 1, text[place]));
    encoded.push_back(best);
    place += tokens_[best].size();
  }
  return encoded;
}

std::string Tokenizer::decode(std::span<const std::int32_t> tokens) const {
  std::string text;
  for (const std::int32_t token : tokens) text += token >= 0 && token < size() ? tokens_[token] : "<?>";
  return text;
}

}  // namespace chorale
