#include "model/hugging_face.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <utility>
#include <vector>

#include "base/files.h"
#include "model/json.h"
#include "model/parameters.h"
#include "model/safetensors.h"
#include "simd/simd.h"

namespace chorale {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char *config_name = "config.json", *single_name = "model.safetensors",
                     *index_name = "model.safetensors.index.json";
constexpr std::size_t largest_config = 1 << 20, largest_index = 100'000'000;

std::string join(const std::string& folder, const std::string& file) {
  return (fs::path(folder) / file).string();
}
bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Every tensor of a folder's weight files.
class WeightFiles {
 public:
  struct Location {
    std::size_t file;
    const SafetensorsFile::Entry* entry;
  };

  // One file, or those that the index names. As in Transformers, the one file goes first where both are
  // there.
  static Result<WeightFiles> open(const std::string& folder) {
    WeightFiles weights;
    const std::string single = join(folder, single_name), index = join(folder, index_name);
    if (exists(single)) {
      CHORALE_RETURN_IF_ERROR(weights.add_file(single));
      return weights;
    }
    if (!exists(index))
      return Status::not_found(fmt::format("{}: has neither {} nor {}", folder, single_name, index_name));
    CHORALE_RETURN_IF_ERROR(weights.add_index(folder, index));
    return weights;
  }

  const std::map<std::string, Location>& tensors() const { return tensors_; }
  const SafetensorsFile& file(const Location& location) const { return files_[location.file]; }

 private:
  Status add_file(const std::string& path) {
    CHORALE_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::open(path));
    files_.push_back(std::move(file));
    const std::size_t number = files_.size() - 1;
    for (const auto& [tensor, entry] : files_[number].entries())
      if (const auto [other, is_new] = tensors_.emplace(tensor, Location{number, &entry}); !is_new)
        return Status::corrupt_data(
            fmt::format("{}: tensor '{}' is also in {}", path, tensor, file_of(other->second)));
    return Status::ok();
  }
  const std::string& file_of(const Location& location) const { return files_[location.file].path(); }

  Status add_index(const std::string& folder, const std::string& path) {
    CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path, largest_index));
    CHORALE_ASSIGN_OR_RETURN(const json index, parse_json(text, path));
    if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
      return Status::corrupt_data(fmt::format("{}: must be an object with an object 'weight_map'", path));
    const json& weight_map = index["weight_map"];
    std::map<std::string, std::size_t> numbers;  // of file names
    for (const auto& [tensor, value] : weight_map.items()) {
      const std::string file_name = value.is_string() ? value.get<std::string>() : "";
      if (file_name.empty() || fs::path(file_name).filename() != file_name || file_name == "..")
        return Status::corrupt_data(
            fmt::format("{}: weight_map['{}'] {}: must be the name of a file in this folder", path, tensor,
                        value.dump()));
      numbers.emplace(file_name, 0);
    }
    files_.reserve(numbers.size());  // locations point into the files
    for (auto& [file_name, number] : numbers) {
      number = files_.size();
      CHORALE_RETURN_IF_ERROR(add_file(join(folder, file_name)));
    }
    for (const auto& [tensor, file_name] : weight_map.items())
      if (const auto found = tensors_.find(tensor);
          found == tensors_.end() || found->second.file != numbers.at(file_name.get<std::string>()))
        return Status::corrupt_data(
            fmt::format("{}: tensor '{}' is not in {}", path, tensor, file_name.get<std::string>()));
    for (const auto& [tensor, location] : tensors_)
      if (!weight_map.contains(tensor))
        return Status::corrupt_data(
            fmt::format("{}: weight_map lacks tensor '{}' of {}", path, tensor, file_of(location)));
    return Status::ok();
  }

  std::vector<SafetensorsFile> files_;
  std::map<std::string, Location> tensors_;
};

// Every parameter is there with its shape, and nothing else is. Nothing is allocated before this holds, so a
// config that lies about its sizes costs no memory.
Status check_tensors(const WeightFiles& weights, const std::vector<ParameterShape>& expected,
                     const std::string& folder, bool tied) {
  for (const ParameterShape& parameter : expected) {
    const auto found = weights.tensors().find(parameter.name);
    if (found == weights.tensors().end())
      return Status::not_found(fmt::format("{}: tensor '{}' [{}] is missing", folder, parameter.name,
                                           fmt::join(parameter.shape, ", ")));
    if (const auto& shape = found->second.entry->shape; shape != parameter.shape)
      return Status::corrupt_data(
          fmt::format("{}: tensor '{}' is [{}], but must be [{}] by {}", weights.file(found->second).path(),
                      parameter.name, fmt::join(shape, ", "), fmt::join(parameter.shape, ", "), config_name));
  }
  for (const auto& [tensor, location] : weights.tensors()) {
    const bool known = std::ranges::find(expected, tensor, &ParameterShape::name) != expected.end();
    if (!known && !(tied && tensor == "lm_head.weight"))
      return Status::corrupt_data(fmt::format("{}: tensor '{}' is unknown to {}",
                                              weights.file(location).path(), tensor, config_name));
  }
  return Status::ok();
}

// Published folders with tied embeddings may hold lm_head.weight all the same. It must be what it is tied to.
Status check_tied_head(const WeightFiles& weights, const Tensor& embedding) {
  const auto found = weights.tensors().find("lm_head.weight");
  if (found == weights.tensors().end()) return Status::ok();
  const SafetensorsFile& file = weights.file(found->second);
  const bool same_shape = found->second.entry->shape == std::vector{embedding.shape(0), embedding.shape(1)};
  std::vector<float> head(same_shape ? static_cast<std::size_t>(embedding.elements()) : 0);
  if (same_shape) file.read(*found->second.entry, head);
  if (!same_shape || std::memcmp(head.data(), embedding.view().data, embedding.bytes()) != 0)
    return Status::corrupt_data(
        fmt::format("{}: tensor 'lm_head.weight' differs from 'model.embed_tokens.weight', but "
                    "tie_word_embeddings is true",
                    file.path()));
  return Status::ok();
}

// Ranges of parameters that share a file: as many as fit. A parameter larger than a whole shard has one of
// its own.
std::vector<std::span<const NamedTensor>> cut_into_shards(const ParameterSet& parameters, DType dtype,
                                                          std::size_t shard_bytes) {
  std::vector<std::span<const NamedTensor>> shards;
  std::size_t first = 0, bytes = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::size_t size = static_cast<std::size_t>(parameters[i].value.elements()) * size_of(dtype);
    if (i > first && (size > shard_bytes || bytes > shard_bytes - size)) {
      shards.push_back(std::span(parameters).subspan(first, i - first));
      first = i, bytes = 0;
    }
    bytes += size;
  }
  shards.push_back(std::span(parameters).subspan(first));
  return shards;
}

std::string make_index(const std::vector<std::span<const NamedTensor>>& shards,
                       const std::vector<std::string>& names, DType dtype) {
  nlohmann::ordered_json index;
  std::size_t total = 0;
  for (std::size_t i = 0; i < shards.size(); ++i)
    for (const NamedTensor& tensor : shards[i]) {
      total += static_cast<std::size_t>(tensor.value.elements()) * size_of(dtype);
      index["weight_map"][tensor.name] = names[i];
    }
  index["metadata"]["total_size"] = total;
  return index.dump(2) + "\n";
}

Result<AtomicFile> stage_text(const std::string& path, const std::string& text) {
  CHORALE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  CHORALE_RETURN_IF_ERROR(file.write(text.data(), text.size()));
  return file;
}

// Weight files of an earlier save with other shards: left behind, they would be read instead of the new ones.
Status remove_stale_weights(const std::string& folder, const std::vector<std::string>& written) {
  static const std::regex weights(R"(model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json)");
  std::error_code error;
  std::vector<fs::path> stale;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string file = entry->path().filename().string();
    if (std::regex_match(file, weights) && std::find(written.begin(), written.end(), file) == written.end())
      stale.push_back(entry->path());
  }
  for (const fs::path& path : stale)
    if (!error) fs::remove(path, error);
  return error ? Status::io_error(fmt::format("cannot remove old weights in {}: {}", folder, error.message()))
               : Status::ok();
}

}  // namespace

Result<ModelFolder> load_model_folder(const std::string& path) {
  CHORALE_RETURN_IF_ERROR(simd::supported());
  const std::string config_path = join(path, config_name);
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(config_path, largest_config));
  ModelFolder folder;
  CHORALE_ASSIGN_OR_RETURN(folder.config, ModelConfig::from_json(text, config_path));
  CHORALE_ASSIGN_OR_RETURN(const WeightFiles weights, WeightFiles::open(path));
  std::vector<ParameterShape> expected = parameter_shapes(folder.config);
  CHORALE_RETURN_IF_ERROR(check_tensors(weights, expected, path, folder.config.tie_word_embeddings));
  for (ParameterShape& parameter : expected) {
    const WeightFiles::Location& location = weights.tensors().at(parameter.name);
    const Tensor value = Tensor::zeros(DType::float32, parameter.shape);
    weights.file(location).read(*location.entry, value.as<float>());
    folder.parameters.push_back({std::move(parameter.name), value});
  }
  if (folder.config.tie_word_embeddings)
    CHORALE_RETURN_IF_ERROR(check_tied_head(weights, folder.parameters[embedding_parameter].value));
  return folder;
}

Status save_model_folder(const std::string& path, const ModelConfig& config, const ParameterSet& parameters,
                         DType dtype, std::size_t shard_bytes) {
  CHORALE_RETURN_IF_ERROR(simd::supported());
  CHORALE_RETURN_IF_ERROR(config.validate());
  CHORALE_RETURN_IF_ERROR(check_parameters(config, parameters, "parameters"));
  CHORALE_RETURN_IF_ERROR(make_folder(path));

  // Everything is written aside first and renamed last: a full disk leaves the folder as it was.
  const auto shards = cut_into_shards(parameters, dtype, shard_bytes);
  std::vector<std::string> names;
  std::vector<AtomicFile> files;
  const auto stage = [&](const std::string& name, Result<AtomicFile> file) -> Status {
    CHORALE_RETURN_IF_ERROR(file.status());
    names.push_back(name);
    files.push_back(std::move(*file));
    return Status::ok();
  };
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shards.size() == 1
                                 ? single_name
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    CHORALE_RETURN_IF_ERROR(stage(name, stage_safetensors(join(path, name), shards[i], dtype)));
  }
  if (shards.size() > 1)
    CHORALE_RETURN_IF_ERROR(
        stage(index_name, stage_text(join(path, index_name), make_index(shards, names, dtype))));
  CHORALE_RETURN_IF_ERROR(stage(config_name, stage_text(join(path, config_name), config.to_json())));
  for (AtomicFile& file : files) CHORALE_RETURN_IF_ERROR(file.commit());
  return remove_stale_weights(path, names);
}

}  // namespace chorale
