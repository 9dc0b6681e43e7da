// Checkpoints of a run: the trainer's files, the reference model, the history, and what they are of.
//
//     model/ first_moment/ second_moment/ trainer.json    Trainer::save
//     reference/                                          once warm-up is over
//     history.json                                        its lengths are the run's step counters
//     identity.json                                       every setting and resolution that decides bits
#include <fmt/format.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/files.h"
#include "model/hugging_face.h"
#include "rl/run.h"

namespace chorale {
namespace {

Result<std::map<std::string, std::string>> read_identity(const std::string& path) {
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path));
  try {
    return nlohmann::json::parse(text).get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    return Status::corrupt_data(fmt::format("{}: {}", path, error.what()));
  }
}

// Names the first key that is not the same in both.
Status check_identity(const std::string& path, const std::map<std::string, std::string>& saved,
                      const std::map<std::string, std::string>& current) {
  const auto value = [](const auto& map, const std::string& key) {
    const auto found = map.find(key);
    return found == map.end() ? std::string("nothing") : found->second;
  };
  auto keys = current;
  keys.insert(saved.begin(), saved.end());
  for (const auto& [key, unused] : keys)
    if (value(saved, key) != value(current, key))
      return Status::invalid_argument(
          fmt::format("{} was made with another configuration: {} is {} there and {} here", path, key,
                      value(saved, key), value(current, key)));
  return {};
}

}  // namespace

std::int64_t Run::steps_done() const {
  return std::ssize(history_.warmup_losses) + std::ssize(history_.steps);
}

std::map<std::string, std::string> Run::bit_identity() const {
  auto texts = identity(config_);
  texts.emplace("model.mask", problem_.mask.to_string());
  texts.emplace("model.score", problem_.score.to_string());
  texts.emplace("model.scale", fmt::format("{}", problem_.scale_or_default()));
  for (const auto& [role, resolutions] : resolved_.roles)
    for (const Resolution& r : resolutions)
      texts.emplace(
          fmt::format("{} (layers {}-{}, {})", name(role), r.first_layer, r.last_layer, name(r.phase)),
          r.fingerprint.to_string());
  return texts;
}

Status Run::save_checkpoint() {
  if (saved_steps_ == steps_done()) return {};  // the same bits lie there already
  CHORALE_ASSIGN_OR_RETURN(AtomicFolder folder, folder_.start_checkpoint(steps_done()));
  CHORALE_RETURN_IF_ERROR(trainer_->save(folder.staging()));
  if (reference_)
    CHORALE_RETURN_IF_ERROR(
        save_model_folder(folder.staging() + "/reference", config_.model, reference_parameters_));
  CHORALE_RETURN_IF_ERROR(write_file(folder.staging() + "/history.json", to_json(history_)));
  CHORALE_RETURN_IF_ERROR(
      write_file(folder.staging() + "/identity.json", nlohmann::json(bit_identity()).dump(1) + "\n"));
  CHORALE_RETURN_IF_ERROR(folder.commit());
  saved_steps_ = steps_done();
  return folder_.prune_checkpoints(1);
}

Status Run::restore_checkpoint(const std::string& path) {
  CHORALE_ASSIGN_OR_RETURN(const auto saved, read_identity(path + "/identity.json"));
  CHORALE_RETURN_IF_ERROR(check_identity(path, saved, bit_identity()));
  CHORALE_ASSIGN_OR_RETURN(const std::string text, read_file(path + "/history.json"));
  CHORALE_ASSIGN_OR_RETURN(history_, history_from_json(text, path + "/history.json"));
  const std::string reference = path + "/reference";
  if (std::filesystem::exists(reference)) {
    CHORALE_ASSIGN_OR_RETURN(ModelFolder folder, load_model_folder(reference));
    CHORALE_RETURN_IF_ERROR(freeze_reference(std::move(folder.parameters)));
    CHORALE_RETURN_IF_ERROR(trainer_->set_optimizer(config_.optimizer));
  }
  CHORALE_RETURN_IF_ERROR(trainer_->restore(path));
  saved_steps_ = steps_done();
  options_.print(fmt::format("resumed from {} after {} warm-up and {} GRPO steps", path,
                             history_.warmup_losses.size(), history_.steps.size()));
  return {};
}

}  // namespace chorale
