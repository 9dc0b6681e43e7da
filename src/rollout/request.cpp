#include "rollout/request.h"

#include <fmt/format.h>

namespace chorale {

Status SamplingConfig::validate() const {
  if (temperature != 0 && !(temperature >= min_temperature && temperature <= max_temperature))
    return Status::invalid_argument(fmt::format("temperature {}: must be 0 (greedy) or from {} to {}",
                                                temperature, min_temperature, max_temperature));
  if (top_k < 0)
    return Status::invalid_argument(fmt::format("top_k {}: must be at least 0 (0: all tokens)", top_k));
  if (!(top_p > 0 && top_p <= 1))
    return Status::invalid_argument(fmt::format("top_p {}: must be more than 0 and at most 1", top_p));
  return Status::ok();
}

namespace {

Status check_tokens(std::string_view what, const std::vector<std::int32_t>& tokens, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size)
      return Status::out_of_range(
          fmt::format("{}[{}] is {}: the vocabulary has tokens 0 to {}", what, i, tokens[i], vocab_size - 1));
  }
  return Status::ok();
}

Status check_request(const Request& request, std::int64_t vocab_size, std::int64_t max_positions) {
  if (request.prompt.empty())
    return Status::invalid_argument("the prompt is empty: it must have at least 1 token");
  CHORALE_RETURN_IF_ERROR(check_tokens("prompt", request.prompt, vocab_size));
  CHORALE_RETURN_IF_ERROR(check_tokens("stop_tokens", request.stop_tokens, vocab_size));
  if (request.max_new_tokens < 1)
    return Status::invalid_argument(
        fmt::format("max_new_tokens {}: must be at least 1", request.max_new_tokens));
  if (request.max_new_tokens > max_positions - std::ssize(request.prompt))
    return Status::out_of_range(
        fmt::format("a prompt of {} tokens and {} new tokens: the model has {} positions",
                    request.prompt.size(), request.max_new_tokens, max_positions));
  return request.sampling.validate();
}

}  // namespace

Status Request::validate(std::int64_t vocab_size, std::int64_t max_positions) const {
  return check_request(*this, vocab_size, max_positions).with_context(fmt::format("request {}", id));
}

std::string_view name(FinishReason reason) { return reason == FinishReason::stop ? "stop" : "length"; }

}  // namespace chorale
