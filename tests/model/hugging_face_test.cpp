// Model folders: what is saved is what is loaded, and nothing is half-written.
#include "model/hugging_face.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>

#include "base/float.h"
#include "model/fixture.h"

namespace chorale {
namespace {

namespace fs = std::filesystem;
using test::lively_parameters;
using test::small_config;
using ::testing::AllOf;
using ::testing::HasSubstr;

class HuggingFace : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("chorale_model_folder_" + std::to_string(::getpid()));
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path() const { return folder_.string(); }
  std::string path(const std::string& file) const { return (folder_ / file).string(); }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  // Loading must fail and name all of `words`.
  void expect_refused(std::initializer_list<const char*> words) const {
    const Result<ModelFolder> result = load_model_folder(path());
    ASSERT_FALSE(result.has_value());
    for (const char* word : words) EXPECT_THAT(result.status().message(), HasSubstr(word));
  }
  fs::path folder_;
};

void expect_equal(const ParameterSet& actual, const ParameterSet& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(actual[i].name, expected[i].name);
    ASSERT_EQ(actual[i].value.elements(), expected[i].value.elements());
    EXPECT_EQ(
        std::memcmp(actual[i].value.view().data, expected[i].value.view().data, expected[i].value.bytes()), 0)
        << expected[i].name;
  }
}

TEST_F(HuggingFace, SavesAndLoads) {
  for (const bool tied : {false, true}) {
    const ModelConfig config = small_config(DType::bfloat16, tied);
    const ParameterSet parameters = lively_parameters(config, 1);
    ASSERT_TRUE(save_model_folder(path(), config, parameters).is_ok());
    EXPECT_THAT(files(), ::testing::ElementsAre("config.json", "model.safetensors"));
    const ModelFolder loaded = load_model_folder(path()).value();
    expect_equal(loaded.parameters, parameters);
    EXPECT_EQ(loaded.config.to_json(), config.to_json());
  }
}

TEST_F(HuggingFace, SixteenBitWeightsAreRoundedOnce) {
  const ModelConfig config = small_config();
  const ParameterSet parameters = lively_parameters(config, 1);
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    ASSERT_TRUE(save_model_folder(path(), config, parameters, dtype).is_ok());
    ParameterSet expected = zero_parameters(config);
    for (std::size_t i = 0; i < expected.size(); ++i)
      for (std::size_t j = 0; j < expected[i].value.as<float>().size(); ++j) {
        const float value = parameters[i].value.as<float>()[j];
        expected[i].value.as<float>()[j] = dtype == DType::bfloat16 ? to_float(from_float<bfloat16>(value))
                                                                    : to_float(from_float<float16>(value));
      }
    expect_equal(load_model_folder(path()).value().parameters, expected);
  }
}

TEST_F(HuggingFace, ShardsAndTheChangeBetweenForms) {
  const ModelConfig config = small_config();
  const ParameterSet first = lively_parameters(config, 1), second = lively_parameters(config, 2),
                     third = lively_parameters(config, 3);
  ASSERT_TRUE(save_model_folder(path(), config, first, DType::float32, 9000).is_ok());
  const std::vector<std::string> sharded = files();
  ASSERT_GT(sharded.size(), 4u);
  for (const std::string& file : sharded)
    if (file.ends_with(".safetensors"))
      EXPECT_LT(fs::file_size(path(file)), 9000u + 1500u) << "at most so many bytes of weights, and a header";
  expect_equal(load_model_folder(path()).value().parameters, first);

  ASSERT_TRUE(write_file(path("tokenizer.json"), "kept").is_ok());
  ASSERT_TRUE(save_model_folder(path(), config, second).is_ok());
  EXPECT_THAT(files(), ::testing::ElementsAre("config.json", "model.safetensors", "tokenizer.json"))
      << "old shards are gone";
  expect_equal(load_model_folder(path()).value().parameters, second);

  ASSERT_TRUE(save_model_folder(path(), config, third, DType::float32, 1).is_ok())
      << "a tensor larger than a shard has its own";
  EXPECT_EQ(files().size(), third.size() + 3);
  expect_equal(load_model_folder(path()).value().parameters, third);
}

TEST_F(HuggingFace, LoadsTheFixtures) {
  for (const char* variant : {"tied", "untied"}) {
    const ModelFolder folder = load_model_folder(test::fixture_path(variant)).value();
    EXPECT_EQ(folder.parameters.size(), std::string(variant) == "tied" ? 24u : 25u);
    EXPECT_TRUE(Model::create(folder.config, folder.parameters).has_value());
  }
}

TEST_F(HuggingFace, MissingUnknownAndMisshapenTensors) {
  expect_refused({"config.json"});
  const ModelConfig config = small_config();
  const ParameterSet parameters = lively_parameters(config, 1);
  ASSERT_TRUE(save_model_folder(path(), config, parameters).is_ok());

  ModelConfig other = config;
  other.num_hidden_layers = 3;
  ASSERT_TRUE(write_file(path("config.json"), other.to_json()).is_ok());
  expect_refused({"model.layers.2.self_attn.q_proj.weight", "is missing"});
  other.num_hidden_layers = 1;
  ASSERT_TRUE(write_file(path("config.json"), other.to_json()).is_ok());
  expect_refused({"model.safetensors", "model.layers.1.", "is unknown"});
  other = config, other.hidden_size = 1 << 20;  // petabytes, were they allocated
  ASSERT_TRUE(write_file(path("config.json"), other.to_json()).is_ok());
  expect_refused({"model.safetensors", "model.embed_tokens.weight", "[29, 24]", "must be [29, 1048576]"});

  fs::remove(path("model.safetensors"));
  expect_refused({path().c_str(), "has neither model.safetensors nor model.safetensors.index.json"});
}

TEST_F(HuggingFace, ATiedHeadMayBeStoredIfItIsTheEmbedding) {
  const ModelConfig untied = small_config(), tied = small_config(DType::float32, true);
  ParameterSet parameters = lively_parameters(untied, 1);
  parameters.back().value = parameters.front().value.clone();
  ASSERT_TRUE(save_model_folder(path(), untied, parameters).is_ok());
  ASSERT_TRUE(write_file(path("config.json"), tied.to_json()).is_ok());
  parameters.back().value.as<float>()[5] += 1;
  expect_equal(load_model_folder(path()).value().parameters,
               ParameterSet(parameters.begin(), parameters.end() - 1));
  ASSERT_TRUE(save_model_folder(path(), untied, parameters).is_ok());
  ASSERT_TRUE(write_file(path("config.json"), tied.to_json()).is_ok());
  expect_refused({"lm_head.weight", "differs from 'model.embed_tokens.weight'"});
}

TEST_F(HuggingFace, IndexThatContradictsItsShards) {
  const ModelConfig config = small_config();
  ASSERT_TRUE(save_model_folder(path(), config, lively_parameters(config, 1), DType::float32, 9000).is_ok());
  const std::string index_path = path("model.safetensors.index.json");
  const nlohmann::json good = nlohmann::json::parse(read_file(index_path).value());
  const std::string tensor = "model.norm.weight", shard = good["weight_map"][tensor];
  const auto with = [&](auto change) {
    nlohmann::json index = good;
    change(index);
    ASSERT_TRUE(write_file(index_path, index.dump()).is_ok());
  };
  with([](nlohmann::json& index) { index.erase("weight_map"); });
  expect_refused({"index.json", "weight_map"});
  with([&](nlohmann::json& index) { index["weight_map"][tensor] = 3; });
  expect_refused(
      {"index.json", "weight_map['model.norm.weight'] 3", "must be the name of a file in this folder"});
  for (const char* escape : {"../model.safetensors", "/etc/passwd", "..", ""}) {
    with([&](nlohmann::json& index) { index["weight_map"][tensor] = escape; });
    expect_refused({"index.json", escape, "must be the name of a file in this folder"});
  }
  with([&](nlohmann::json& index) { index["weight_map"][tensor] = "absent.safetensors"; });
  expect_refused({"absent.safetensors"});
  with([&](nlohmann::json& index) {
    index["weight_map"][tensor] = index["weight_map"]["model.embed_tokens.weight"];
  });
  expect_refused({"index.json", "tensor 'model.norm.weight' is not in model-00001"});
  with([&](nlohmann::json& index) { index["weight_map"].erase(tensor); });
  expect_refused({"index.json", "weight_map lacks tensor 'model.norm.weight'"});
  with([](nlohmann::json&) {});
  fs::copy_file(path(shard), path("twice.safetensors"));
  with([&](nlohmann::json& index) { index["weight_map"]["another"] = "twice.safetensors"; });
  expect_refused({"twice.safetensors", "is also in"});
}

TEST_F(HuggingFace, AFailedSaveLeavesTheFolderAsItWas) {
  const ModelConfig config = small_config();
  const ParameterSet parameters = lively_parameters(config, 1);
  ASSERT_TRUE(save_model_folder(path(), config, parameters).is_ok());
  ParameterSet wrong = lively_parameters(config, 2);
  wrong.back().value.as<float>().back() = 1e6f;
  const Status status = save_model_folder(path(), config, wrong, DType::float16);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("lm_head.weight holds 1000000"), HasSubstr("65504")));
  wrong.pop_back();
  EXPECT_FALSE(save_model_folder(path(), config, wrong).is_ok());
  EXPECT_THAT(files(), ::testing::ElementsAre("config.json", "model.safetensors"));
  expect_equal(load_model_folder(path()).value().parameters, parameters);
  EXPECT_FALSE(save_model_folder("/proc/no/such/folder", config, parameters).is_ok());
}

}  // namespace
}  // namespace chorale
