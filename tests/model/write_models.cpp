// Writes model folders and their logits, for transformers_test.py to load: write_models FOLDER.
#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "base/files.h"
#include "model/fixture.h"

namespace chorale {
namespace {

Status write_model(const std::string& path, const ModelConfig& config, DType stored,
                   std::size_t shard_bytes) {
  CHORALE_RETURN_IF_ERROR(
      save_model_folder(path, config, test::lively_parameters(config, 21), stored, shard_bytes));
  CHORALE_ASSIGN_OR_RETURN(const ModelFolder folder, load_model_folder(path));
  CHORALE_ASSIGN_OR_RETURN(const Model model, Model::create(config, folder.parameters));
  const std::vector<std::int32_t> tokens = test::random_tokens(20, config.vocab_size, 4);
  const test::Packed packed({tokens});
  auto attention = packed.attention(config);
  CHORALE_ASSIGN_OR_RETURN(const Tensor logits, model.forward(packed.inputs(), attention));
  const nlohmann::json expected{{"tokens", tokens}, {"logits", logits.as<float>()}};
  return write_file(path + "/expected.json", expected.dump());
}

Status write_models(const std::string& folder) {
  constexpr std::size_t whole = std::size_t{5} << 30;
  CHORALE_RETURN_IF_ERROR(
      write_model(folder + "/untied", test::small_config(DType::float32, false), DType::float32, whole));
  CHORALE_RETURN_IF_ERROR(
      write_model(folder + "/tied_sharded", test::small_config(DType::float32, true), DType::float32, 9000));
  CHORALE_RETURN_IF_ERROR(write_model(folder + "/stored_bfloat16", test::small_config(DType::float32, false),
                                      DType::bfloat16, whole));
  return write_model(folder + "/stored_float16", test::small_config(DType::float32, true), DType::float16,
                     whole);
}

}  // namespace
}  // namespace chorale

int main(int argc, char** argv) {
  const chorale::Status status = argc == 2 ? chorale::write_models(argv[1])
                                           : chorale::Status::invalid_argument("usage: write_models FOLDER");
  if (!status.is_ok()) fmt::print(stderr, "write_models: {}\n", status.message());
  return status.is_ok() ? 0 : 2;
}
