// config.json: what is read, what is written, what is refused and in which words.
#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "model/fixture.h"

namespace chorale {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

json document() { return json::parse(read_file(test::fixture_path("tied") + "/config.json").value()); }
Result<ModelConfig> parse(const json& config) {
  return ModelConfig::from_json(config.dump(), "x/config.json");
}

TEST(Config, ReadsWhatTransformersWrites) {
  const ModelConfig config = parse(document()).value();
  EXPECT_EQ(config.vocab_size, 50);
  EXPECT_EQ(config.hidden_size, 24);
  EXPECT_EQ(config.intermediate_size, 40);
  EXPECT_EQ(config.num_hidden_layers, 2);
  EXPECT_EQ(config.num_attention_heads, 4);
  EXPECT_EQ(config.num_key_value_heads, 2);
  EXPECT_EQ(config.head_dim, 12);
  EXPECT_EQ(config.max_position_embeddings, 128);
  EXPECT_EQ(config.rms_norm_eps, 1e-6f);
  EXPECT_EQ(config.rope_theta, 5000.0f);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.compute_dtype, DType::float32);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_id, 1);
  const Problem problem = config.problem();
  EXPECT_EQ(problem.query_heads, 4);
  EXPECT_EQ(problem.kv_heads, 2);
  EXPECT_EQ(problem.head_dim, 12);
  EXPECT_TRUE(problem.validate().is_ok());
}

TEST(Config, ReadsTheOlderForm) {
  json config = document();
  config.erase("rope_parameters"), config.erase("dtype"), config.erase("layer_types");
  config["rope_theta"] = 1000000, config["rope_scaling"] = nullptr, config["torch_dtype"] = "bfloat16",
  config["eos_token_id"] = {3};
  const ModelConfig older = parse(config).value();
  EXPECT_EQ(older.rope_theta, 1e6f);
  EXPECT_EQ(older.compute_dtype, DType::bfloat16);
  EXPECT_EQ(older.eos_token_id, 3);
}

TEST(Config, WritesWhatItReads) {
  ModelConfig config = test::small_config(DType::bfloat16, true);
  config.rope_theta = 12345.678f, config.rms_norm_eps = 3.3e-6f, config.eos_token_id = 7;
  const std::string text = config.to_json();
  const ModelConfig again = ModelConfig::from_json(text, "again").value();
  EXPECT_EQ(again.to_json(), text);
  EXPECT_EQ(again.rope_theta, config.rope_theta);
  EXPECT_EQ(again.rms_norm_eps, config.rms_norm_eps);
  EXPECT_EQ(again.compute_dtype, DType::bfloat16);
  EXPECT_EQ(again.bos_token_id, -1);
  EXPECT_EQ(again.eos_token_id, 7);
  config.rms_norm_eps = -0.0f;
  EXPECT_TRUE(std::signbit(ModelConfig::from_json(config.to_json(), "again").value().rms_norm_eps));
}

struct Refusal {
  const char* key;
  json value;
  const char* sentence;
};
class Refused : public ::testing::TestWithParam<Refusal> {};

TEST_P(Refused, NamesFileKeyValueAndLimit) {
  json config = document();
  config[GetParam().key] = GetParam().value;
  const Result<ModelConfig> result = parse(config);
  ASSERT_FALSE(result.has_value());
  EXPECT_THAT(result.status().message(), AllOf(HasSubstr("x/config.json"), HasSubstr(GetParam().sentence)));
}
INSTANTIATE_TEST_SUITE_P(
    Config, Refused,
    ::testing::Values(
        Refusal{"architectures",
                {"LlamaForCausalLM"},
                R"(architectures ["LlamaForCausalLM"]: must be ["Qwen3ForCausalLM"])"},
        Refusal{"model_type", "qwen2", R"(model_type "qwen2": must be "qwen3")"},
        Refusal{"hidden_act", "gelu", R"(hidden_act "gelu": must be "silu")"},
        Refusal{"attention_bias", true, "attention_bias true: must be false"},
        Refusal{"attention_dropout", 0.1, "attention_dropout 0.1: must be 0.0"},
        Refusal{"use_sliding_window", true, "use_sliding_window true: must be false"},
        Refusal{"layer_types",
                {"full_attention", "sliding_attention"},
                R"(layer_types[1] "sliding_attention": must be "full_attention")"},
        Refusal{"layer_types", {"full_attention"}, "must be an array of 2 names"},
        Refusal{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}, "is not supported"},
        Refusal{"rope_parameters",
                {{"rope_type", "linear"}},
                R"(rope_parameters.rope_type "linear": must be "default")"},
        Refusal{"rope_parameters",
                {{"rope_type", "default"}, {"rope_theta", -1}},
                "rope_theta -1: must be a finite number above 0"},
        Refusal{"rope_theta", 1e300, "rope_theta inf: must be a finite number above 0"},
        Refusal{"rms_norm_eps", "small", R"(rms_norm_eps "small": must be a number)"},
        Refusal{"quantization_config", {{"bits", 4}}, R"(quantization_config {"bits":4}: is not supported)"},
        Refusal{"torch_dtype", "float16", R"(must be "float32" or "bfloat16")"},
        Refusal{"hidden_size", 0, "hidden_size 0: must be an integer from 1 to"},
        Refusal{"hidden_size", -24, "hidden_size -24: must be an integer from 1 to"},
        Refusal{"hidden_size", 24.5, "hidden_size 24.5: must be an integer from 1 to"},
        Refusal{"hidden_size", "24", R"(hidden_size "24": must be an integer from 1 to)"},
        Refusal{"hidden_size", 18446744073709551615u,
                "hidden_size 18446744073709551615: must be an integer from 1 to"},
        Refusal{"head_dim", 13, "head_dim 13: must be even"},
        Refusal{"head_dim", 258, "head_dim 258: must be an integer from 1 to 256"},
        Refusal{"num_key_value_heads", 3,
                "num_attention_heads 4: must be a multiple of num_key_value_heads 3"},
        Refusal{"vocab_size", nullptr, "vocab_size is missing"},
        Refusal{"tie_word_embeddings", 1, "tie_word_embeddings 1: must be true or false"},
        Refusal{"eos_token_id", {1, 2}, "eos_token_id [1,2]: must be one token's number or null"},
        Refusal{"eos_token_id", 50, "eos_token_id 50: must be below vocab_size 50"},
        Refusal{"mystery", 7, "unknown key 'mystery' with value 7"}));

TEST(Config, MalformedJsonNamesThePlace) {
  const auto message = [](std::string_view text) {
    return ModelConfig::from_json(text, "f.json").status().message();
  };
  EXPECT_THAT(message("{\n  \"vocab_size\": ,\n}"), HasSubstr("f.json: line 2, column 17"));
  EXPECT_THAT(message("{\"a\": 1, \"a\": 2}"), HasSubstr("f.json: key 'a' appears twice"));
  EXPECT_THAT(message("{\"a\": \"\xff\"}"), HasSubstr("f.json: line 1, column 8"));
  EXPECT_THAT(message(""), HasSubstr("f.json: line 1, column 1"));
  EXPECT_THAT(message("[1]"), HasSubstr("must be a JSON object"));
  EXPECT_THAT(message(std::string(1000000, '[')), HasSubstr("nested more than 32 levels deep"));
  EXPECT_THAT(message("{\"architectures\": [\"\\ud800\"]}"), HasSubstr("f.json: line 1"));
}

}  // namespace
}  // namespace chorale
