// Problem: what a valid layer is, and how it is told in one line.
#include "chorale/problem.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace chorale {
namespace {

Status at_least_one(std::string_view field, int value) {
  if (value >= 1) return Status::ok();
  return Status::invalid_argument(fmt::format("{} {}: must be at least 1", field, value));
}

Status dimension_in_range(std::string_view field, int value, int least) {
  if (value >= least && value <= Problem::max_head_dim) return Status::ok();
  return Status::invalid_argument(
      fmt::format("{} {}: must be from {} to {}", field, value, least, Problem::max_head_dim));
}

}  // namespace

float Problem::scale_or_default() const {
  return scale == 0 ? 1.0f / std::sqrt(static_cast<float>(head_dim)) : scale;
}

Status Problem::validate() const {
  CHORALE_RETURN_IF_ERROR(at_least_one("query_heads", query_heads));
  CHORALE_RETURN_IF_ERROR(at_least_one("kv_heads", kv_heads));
  if (query_heads % kv_heads != 0) {
    return Status::invalid_argument(
        fmt::format("query_heads {}: must be a multiple of kv_heads {}", query_heads, kv_heads));
  }
  CHORALE_RETURN_IF_ERROR(dimension_in_range("head_dim", head_dim, 1));
  CHORALE_RETURN_IF_ERROR(dimension_in_range("value_head_dim", value_head_dim, 0));
  if (dtype != DType::float32 && dtype != DType::bfloat16 && dtype != DType::float16) {
    return Status::invalid_argument(
        fmt::format("dtype {}: must be float32, bfloat16 or float16", static_cast<int>(dtype)));
  }
  if (kv_dtype_or_default() != dtype && kv_dtype != DType::float8_e4m3) {
    return Status::invalid_argument(fmt::format("kv_dtype {}: must be float8_e4m3, or {} as dtype is",
                                                name(kv_dtype_or_default()), name(dtype)));
  }
  if (!std::isfinite(scale) || scale < 0) {
    return Status::invalid_argument(
        fmt::format("scale {}: must be finite and positive, or 0 for 1 / sqrt(head_dim)", scale));
  }
  const int last = std::numeric_limits<int>::max() - query_heads;
  if (first_query_head < 0 || first_query_head > last) {
    return Status::invalid_argument(
        fmt::format("first_query_head {}: must be from 0 to {}", first_query_head, last));
  }
  return Status::ok();
}

std::string Problem::describe() const {
  std::string text = fmt::format("{} query heads, {} KV heads, head_dim {}", query_heads, kv_heads, head_dim);
  if (value_dim() != head_dim) text += fmt::format(", value_head_dim {}", value_dim());
  text += fmt::format(", {}", name(dtype));
  if (has_kv_scales()) text += fmt::format(", keys and values in {}", name(kv_dtype_or_default()));
  text += fmt::format(", scale {}", scale_or_default());
  if (!mask.is_all()) text += fmt::format(", mask \"{}\"", mask.to_string());
  if (!score.is_identity()) text += fmt::format(", score \"{}\"", score.to_string());
  if (sinks) text += ", sinks";
  if (first_query_head != 0) text += fmt::format(", heads from {}", first_query_head);
  return text;
}

}  // namespace chorale
