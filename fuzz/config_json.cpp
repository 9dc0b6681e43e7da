// A model's config.json. What is read is written and read again: the same model.
#include <bit>
#include <cstdlib>

#include "model/config.h"
#include "target.h"

namespace chorale::fuzz {

void run(std::span<const std::uint8_t> input) {
  const auto config = ModelConfig::from_json(text_of(input), "config.json");
  if (!config) {
    ASSERT_TRUE(config.status().message().starts_with("config.json: ")) << config.status().message();
    ASSERT_GT(config.status().message().size(), std::string_view("config.json: ").size());
    return;
  }
  ASSERT_TRUE(config->validate().is_ok()) << config->validate().message();
  ASSERT_TRUE(config->problem().validate().is_ok()) << config->problem().validate().message();
  const std::string text = config->to_json();
  const auto again = ModelConfig::from_json(text, "again");
  ASSERT_TRUE(again) << again.status().message();
  ASSERT_EQ(again->to_json(), text);
  ASSERT_EQ(again->num_hidden_layers, config->num_hidden_layers);
  ASSERT_EQ(again->problem().describe(), config->problem().describe());
  ASSERT_EQ(std::bit_cast<std::uint32_t>(again->rms_norm_eps),
            std::bit_cast<std::uint32_t>(config->rms_norm_eps));
  ASSERT_EQ(std::bit_cast<std::uint32_t>(again->rope_theta),
            std::bit_cast<std::uint32_t>(config->rope_theta));
  ASSERT_EQ(again->compute_dtype, config->compute_dtype);
  ASSERT_EQ(again->eos_token_id, config->eos_token_id);
}

}  // namespace chorale::fuzz
