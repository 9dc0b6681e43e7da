// config.json: read with every key accounted for, so that nothing that changes the model's results is
// overlooked.

#include "model/config.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "model/json.h"

namespace chorale {
namespace {

using nlohmann::json;

// Sizes of the model, with the largest value that is accepted. Products of two of them fit 64 bits with room
// to spare.
struct SizeKey {
  const char* key;
  int ModelConfig::*member;
  int limit;
};
constexpr std::array size_keys{
    SizeKey{"vocab_size", &ModelConfig::vocab_size, 1 << 24},
    SizeKey{"hidden_size", &ModelConfig::hidden_size, 1 << 20},
    SizeKey{"intermediate_size", &ModelConfig::intermediate_size, 1 << 22},
    SizeKey{"num_hidden_layers", &ModelConfig::num_hidden_layers, 1 << 12},
    SizeKey{"num_attention_heads", &ModelConfig::num_attention_heads, 1 << 12},
    SizeKey{"num_key_value_heads", &ModelConfig::num_key_value_heads, 1 << 12},
    SizeKey{"head_dim", &ModelConfig::head_dim, Problem::max_head_dim},
    SizeKey{"max_position_embeddings", &ModelConfig::max_position_embeddings, 1 << 30},
};

// Keys that say how a model was trained, is to be printed or is cached: none changes what it computes.
constexpr std::array irrelevant_keys{
    "_name_or_path",
    "auto_map",
    "bad_words_ids",
    "chunk_size_feed_forward",
    "id2label",
    "initializer_range",
    "label2id",
    "max_window_layers",
    "output_attentions",
    "pad_token_id",
    "output_hidden_states",
    "return_dict",
    "sliding_window",
    "torchscript",
    "transformers_version",
    "use_cache",
    "use_return_dict",
    "problem_type",
    "attn_implementation",
    "_attn_implementation_autoset",
};

// Keys with the one value that is supported; null is taken as absent.
const std::array<std::pair<const char*, json>, 9> fixed_keys{{
    {"model_type", "qwen3"},
    {"hidden_act", "silu"},
    {"attention_bias", false},
    {"mlp_bias", false},
    {"attention_dropout", 0.0},
    {"use_sliding_window", false},
    {"is_encoder_decoder", false},
    {"tie_encoder_decoder", false},
    {"quantization_config", nullptr},
}};

class Reader {
 public:
  Reader(const json& document, std::string_view file_name) : document_(document), file_name_(file_name) {}

  Result<ModelConfig> read() const {
    if (!document_.is_object())
      return Status::corrupt_data(fmt::format("{}: must be a JSON object", file_name_));
    ModelConfig config;
    CHORALE_RETURN_IF_ERROR(check_architecture());
    for (const auto& [key, value] : fixed_keys) CHORALE_RETURN_IF_ERROR(check_fixed(key, value));
    for (const SizeKey& size : size_keys) CHORALE_RETURN_IF_ERROR(read_size(size, config));
    CHORALE_RETURN_IF_ERROR(check_layer_types(config.num_hidden_layers));
    CHORALE_RETURN_IF_ERROR(read_number(document_, "rms_norm_eps", config.rms_norm_eps));
    CHORALE_RETURN_IF_ERROR(read_rotary(config.rope_theta));
    if (const json* tied = find("tie_word_embeddings")) {
      if (!tied->is_boolean()) return wrong("tie_word_embeddings", *tied, "must be true or false");
      config.tie_word_embeddings = tied->get<bool>();
    }
    CHORALE_RETURN_IF_ERROR(read_dtype(config.compute_dtype));
    CHORALE_RETURN_IF_ERROR(read_token("bos_token_id", config.bos_token_id));
    CHORALE_RETURN_IF_ERROR(read_token("eos_token_id", config.eos_token_id));
    CHORALE_RETURN_IF_ERROR(check_all_known());
    CHORALE_RETURN_IF_ERROR(config.validate().with_context(file_name_));
    return config;
  }

 private:
  // nullptr if absent or null.
  const json* find(const char* key) const { return find(document_, key); }
  static const json* find(const json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }
  Status wrong(std::string_view key, const json& value, std::string_view limit,
               Code code = Code::invalid_argument) const {
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return {code, fmt::format("{}: {} {}: {}", file_name_, key, text, limit)};
  }

  Status check_architecture() const {
    const json* names = find("architectures");
    if (names == nullptr)
      return Status::unsupported(
          fmt::format("{}: architectures is missing: must be [\"Qwen3ForCausalLM\"]", file_name_));
    if (*names != json::array({"Qwen3ForCausalLM"}))
      return wrong("architectures", *names, "must be [\"Qwen3ForCausalLM\"]", Code::unsupported);
    return Status::ok();
  }

  Status check_fixed(const char* key, const json& supported) const {
    const json* value = find(key);
    if (value == nullptr || *value == supported) return Status::ok();
    return wrong(key, *value, supported.is_null() ? "is not supported" : "must be " + supported.dump(),
                 Code::unsupported);
  }

  Status read_size(const SizeKey& size, ModelConfig& config) const {
    const json* value = find(size.key);
    if (value == nullptr)
      return Status::invalid_argument(fmt::format("{}: {} is missing", file_name_, size.key));
    // Anything that is not an integer between 1 and the limit, numbers beyond 64 bits (read as floats)
    // included.
    if (!value->is_number_integer() || *value < 1 || *value > size.limit)
      return wrong(size.key, *value, fmt::format("must be an integer from 1 to {}", size.limit));
    config.*size.member = value->get<int>();
    return Status::ok();
  }

  Status read_number(const json& object, const char* key, float& number) const {
    const json* value = find(object, key);
    if (value == nullptr) return Status::ok();
    if (!value->is_number()) return wrong(key, *value, "must be a number");
    number = value->get<float>();
    return Status::ok();
  }

  // Transformers 5 writes rope_parameters, Transformers 4 rope_theta and rope_scaling.
  Status read_rotary(float& theta) const {
    for (const char* key : {"rope_parameters", "rope_scaling"}) {
      const json* parameters = find(key);
      if (parameters == nullptr) continue;
      if (!parameters->is_object()) return wrong(key, *parameters, "must be an object or null");
      for (const auto& [name, value] : parameters->items()) {
        if (value.is_null()) continue;
        const bool is_type = name == "rope_type" || name == "type";
        if (is_type && value != "default")
          return wrong(fmt::format("{}.{}", key, name), value, "must be \"default\"", Code::unsupported);
        if (!is_type && name != "rope_theta")
          return wrong(fmt::format("{}.{}", key, name), value, "is not supported", Code::unsupported);
      }
      CHORALE_RETURN_IF_ERROR(read_number(*parameters, "rope_theta", theta));
    }
    return read_number(document_, "rope_theta", theta);
  }

  Status check_layer_types(int layers) const {
    const json* types = find("layer_types");
    if (types == nullptr) return Status::ok();
    if (!types->is_array() || types->size() != static_cast<std::size_t>(layers))
      return wrong("layer_types", *types, fmt::format("must be an array of {} names", layers));
    for (std::size_t i = 0; i < types->size(); ++i)
      if ((*types)[i] != "full_attention")
        return wrong(fmt::format("layer_types[{}]", i), (*types)[i], "must be \"full_attention\"",
                     Code::unsupported);
    return Status::ok();
  }

  // "dtype" is Transformers 5's name, "torch_dtype" the older one.
  Status read_dtype(DType& dtype) const {
    for (const char* key : {"torch_dtype", "dtype"}) {
      const json* value = find(key);
      if (value == nullptr) continue;
      if (*value == "bfloat16")
        dtype = DType::bfloat16;
      else if (*value == "float32")
        dtype = DType::float32;
      else
        return wrong(key, *value, "must be \"float32\" or \"bfloat16\"", Code::unsupported);
    }
    return Status::ok();
  }

  // A number, or a list of one.
  Status read_token(const char* key, std::int64_t& token) const {
    const json* value = find(key);
    if (value == nullptr) return Status::ok();
    const json& id = value->is_array() && value->size() == 1 ? value->front() : *value;
    if (!id.is_number_integer() || id < 0 || id > std::numeric_limits<std::int32_t>::max())
      return wrong(key, *value, "must be one token's number or null");
    token = id.get<std::int64_t>();
    return Status::ok();
  }

  Status check_all_known() const {
    const auto known = [](const std::string& key) {
      for (const SizeKey& size : size_keys)
        if (key == size.key) return true;
      for (const auto& fixed : fixed_keys)
        if (key == fixed.first) return true;
      for (const char* name : irrelevant_keys)
        if (key == name) return true;
      for (const char* name :
           {"architectures", "layer_types", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling",
            "tie_word_embeddings", "dtype", "torch_dtype", "bos_token_id", "eos_token_id"})
        if (key == name) return true;
      return false;
    };
    for (const auto& [key, value] : document_.items())
      if (!known(key) && !value.is_null())
        return wrong(fmt::format("unknown key '{}' with value", key), value,
                     "it may change what the model computes", Code::unsupported);
    return Status::ok();
  }

  const json& document_;
  std::string_view file_name_;
};

}  // namespace

Status ModelConfig::validate() const {
  for (const SizeKey& size : size_keys)
    if (const int value = this->*size.member; value < 1 || value > size.limit)
      return Status::invalid_argument(
          fmt::format("{} {}: must be from 1 to {}", size.key, value, size.limit));
  if (num_attention_heads % num_key_value_heads != 0)
    return Status::invalid_argument(
        fmt::format("num_attention_heads {}: must be a multiple of num_key_value_heads {}",
                    num_attention_heads, num_key_value_heads));
  if (head_dim % 2 != 0)
    return Status::invalid_argument(
        fmt::format("head_dim {}: must be even (rotary embedding turns pairs)", head_dim));
  if (!std::isfinite(rms_norm_eps) || rms_norm_eps < 0)
    return Status::invalid_argument(
        fmt::format("rms_norm_eps {}: must be a finite number of at least 0", rms_norm_eps));
  if (!std::isfinite(rope_theta) || rope_theta <= 0)
    return Status::invalid_argument(
        fmt::format("rope_theta {}: must be a finite number above 0", rope_theta));
  if (compute_dtype != DType::float32 && compute_dtype != DType::bfloat16)
    return Status::unsupported(
        fmt::format("compute_dtype {}: must be float32 or bfloat16", name(compute_dtype)));
  for (const auto& [key, token] :
       {std::pair("bos_token_id", bos_token_id), std::pair("eos_token_id", eos_token_id)})
    if (token < -1 || token >= vocab_size)
      return Status::out_of_range(fmt::format("{} {}: must be below vocab_size {}", key, token, vocab_size));
  return Status::ok();
}

Result<ModelConfig> ModelConfig::from_json(std::string_view text, std::string_view file_name) {
  CHORALE_ASSIGN_OR_RETURN(const json document, parse_json(text, file_name));
  return Reader(document, file_name).read();
}

std::string ModelConfig::to_json() const {
  const auto token = [](std::int64_t id) { return id < 0 ? json(nullptr) : json(id); };
  // As the shortest decimal that reads back as this float32: 1e-06, not 9.999999974752427e-07.
  const auto number = [](float value) {
    const std::string shortest = fmt::format("{}", value);
    double decimal = 0;
    std::from_chars(shortest.data(), shortest.data() + shortest.size(), decimal);
    return decimal;
  };
  nlohmann::ordered_json document;
  document["architectures"] = {"Qwen3ForCausalLM"};
  document["model_type"] = "qwen3";
  for (const SizeKey& size : size_keys) document[size.key] = this->*size.member;
  document["hidden_act"] = "silu";
  document["rms_norm_eps"] = number(rms_norm_eps);
  document["rope_theta"] = number(rope_theta);
  document["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", number(rope_theta)}};
  document["attention_bias"] = false;
  document["attention_dropout"] = 0.0;
  document["use_sliding_window"] = false;
  document["sliding_window"] = nullptr;
  document["layer_types"] =
      std::vector<std::string>(static_cast<std::size_t>(num_hidden_layers), "full_attention");
  document["tie_word_embeddings"] = tie_word_embeddings;
  document["bos_token_id"] = token(bos_token_id);
  document["eos_token_id"] = token(eos_token_id);
  document["dtype"] = name(compute_dtype);
  return document.dump(2) + "\n";
}

Problem ModelConfig::problem() const {
  return {.query_heads = num_attention_heads,
          .kv_heads = num_key_value_heads,
          .head_dim = head_dim,
          .dtype = compute_dtype,
          .mask = mask::causal()};
}

}  // namespace chorale
