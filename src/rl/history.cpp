#include "rl/history.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace chorale {
namespace {

using Json = nlohmann::json;

// The fields of each record, once, for writing and for reading.
void fields(auto& record, auto&& field) requires requires { record.generate_seconds; }
{
  field("step", record.step), field("reward", record.reward), field("kl", record.kl),
      field("loss", record.loss);
  field("gradient_norm", record.gradient_norm), field("tokens", record.tokens),
      field("different", record.different);
  field("max_delta", record.max_delta), field("generate_seconds", record.generate_seconds);
  field("score_seconds", record.score_seconds), field("reference_seconds", record.reference_seconds);
  field("learn_seconds", record.learn_seconds);
}
void fields(auto& record, auto&& field) requires requires { record.prompts; }
{ field("step", record.step), field("reward", record.reward), field("prompts", record.prompts); }
void fields(auto& record, auto&& field) requires requires { record.sum_delta; }
{
  field("tokens", record.tokens), field("different", record.different);
  field("max_delta", record.max_delta), field("sum_delta", record.sum_delta);
  field("max_diff", record.max_diff), field("sum_diff", record.sum_diff);
}

// JSON has no infinity and no NaN, which a run that went wrong may hold: they are written as text.
Json write_value(double value) { return std::isfinite(value) ? Json(value) : Json(fmt::format("{}", value)); }
Json write_value(std::int64_t value) { return value; }
void read_value(const Json& json, double& value) {
  value = json.is_string() ? std::strtod(json.get<std::string>().c_str(), nullptr) : json.get<double>();
}
void read_value(const Json& json, std::int64_t& value) { value = json.get<std::int64_t>(); }

template <class Record>
Json write_record(const Record& record) {
  Json json = Json::object();
  fields(record, [&](const char* name, const auto& value) { json[name] = write_value(value); });
  return json;
}
template <class Record>
Record read_record(const Json& json) {
  Record record;
  fields(record, [&](const char* name, auto& value) { read_value(json.at(name), value); });
  return record;
}

template <class Record>
Json write_records(const std::vector<Record>& records) {
  Json json = Json::array();
  for (const Record& record : records) json.push_back(write_record(record));
  return json;
}
template <class Record>
std::vector<Record> read_records(const Json& json) {
  std::vector<Record> records;
  for (const Json& record : json) records.push_back(read_record<Record>(record));
  return records;
}

}  // namespace

std::string to_json(const History& history) {
  Json losses = Json::array();
  for (const double loss : history.warmup_losses) losses.push_back(write_value(loss));
  const Json json = {{"warmup_losses", losses},
                     {"warmup_seconds", history.warmup_seconds},
                     {"steps", write_records(history.steps)},
                     {"evaluations", write_records(history.evaluations)},
                     {"comparison", write_record(history.comparison)}};
  return json.dump(1) + "\n";
}

Result<History> history_from_json(const std::string& text, const std::string& file_name) {
  try {
    const Json json = Json::parse(text);
    History history;
    for (const Json& loss : json.at("warmup_losses")) read_value(loss, history.warmup_losses.emplace_back());
    read_value(json.at("warmup_seconds"), history.warmup_seconds);
    history.steps = read_records<StepRecord>(json.at("steps"));
    history.evaluations = read_records<EvaluationRecord>(json.at("evaluations"));
    history.comparison = read_record<LogProbComparison>(json.at("comparison"));
    return history;
  } catch (const Json::exception& error) {  // the library's only way to say what is wrong where
    return Status::corrupt_data(fmt::format("{}: {}", file_name, error.what()));
  }
}

}  // namespace chorale
