// Trainer::save and Trainer::restore. Weights and moments all have the model's names and shapes, so each is a
// model folder: model/, first_moment/ and second_moment/, float32. trainer.json holds the counters.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/files.h"
#include "model/hugging_face.h"
#include "trainer/trainer.h"

namespace chorale {
namespace {

Result<ParameterSet> load(const std::string& path, const ModelConfig& config) {
  CHORALE_ASSIGN_OR_RETURN(ModelFolder folder, load_model_folder(path));
  if (folder.config.to_json() != config.to_json())
    return Status::invalid_argument(fmt::format("{} holds a model of another shape", path));
  return std::move(folder.parameters);
}

Result<std::int64_t> load_steps(const std::string& path) {
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("optimizer_steps") || !json["optimizer_steps"].is_number_integer())
    return Status::corrupt_data(
        fmt::format("{}: must be an object with an integer \"optimizer_steps\"", path));
  return json["optimizer_steps"].get<std::int64_t>();
}

}  // namespace

Status Trainer::save(const std::string& folder) const {
  CHORALE_RETURN_IF_ERROR(save_model_folder(folder + "/model", model_.config(), parameters_));
  CHORALE_RETURN_IF_ERROR(
      save_model_folder(folder + "/first_moment", model_.config(), optimizer_.first_moment()));
  CHORALE_RETURN_IF_ERROR(
      save_model_folder(folder + "/second_moment", model_.config(), optimizer_.second_moment()));
  const nlohmann::json counters = {{"optimizer_steps", optimizer_.steps()}};
  return write_file(folder + "/trainer.json", counters.dump(2) + "\n");
}

Status Trainer::restore(const std::string& folder) {
  CHORALE_ASSIGN_OR_RETURN(ParameterSet parameters, load(folder + "/model", model_.config()));
  CHORALE_ASSIGN_OR_RETURN(ParameterSet first_moment, load(folder + "/first_moment", model_.config()));
  CHORALE_ASSIGN_OR_RETURN(ParameterSet second_moment, load(folder + "/second_moment", model_.config()));
  CHORALE_ASSIGN_OR_RETURN(const std::int64_t steps, load_steps(folder + "/trainer.json"));
  CHORALE_RETURN_IF_ERROR(optimizer_.restore(steps, std::move(first_moment), std::move(second_moment)));
  CHORALE_RETURN_IF_ERROR(model_.set_parameters(parameters));
  parameters_ = std::move(parameters);
  return Status::ok();
}

}  // namespace chorale
