#include "kv/quantise.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "base/float.h"
#include "kv/rows.h"

namespace chorale {

Status check_kv_scale(std::string_view name, std::int64_t index, float scale) {
  if (std::isfinite(scale) && scale > 0) return Status::ok();
  return Status::invalid_argument(
      fmt::format("{}[{}] is {}: must be finite and above 0", name, index, scale));
}

void quantise_token(const void* from, DType dtype, std::span<const float> scales, std::int64_t dim,
                    float8_e4m3* to) {
  visit_dtype(dtype, [&](auto zero) {
    const auto* element = static_cast<const decltype(zero)*>(from);
    for (const float scale : scales)
      for (std::int64_t i = 0; i < dim; ++i) *to++ = from_float<float8_e4m3>(to_float(*element++) / scale);
  });
}

Tensor quantise(const TensorView& rows, std::span<const float> scales) {
  Tensor codes = Tensor::zeros(DType::float8_e4m3, std::span(rows.shape.data(), 3));
  const RowReader reader(rows);
  std::vector<std::byte> token(reader.row_bytes());
  for (std::int64_t t = 0; t < reader.rows(); ++t) {
    reader.copy(t, token.data());
    quantise_token(token.data(), rows.dtype, scales, rows.shape[2],
                   codes.as<float8_e4m3>().data() + t * reader.row_elements());
  }
  return codes;
}

Tensor dequantise(const TensorView& codes, std::span<const float> scales, DType dtype) {
  Tensor rows = Tensor::zeros(dtype, std::span(codes.shape.data(), 3));
  const auto heads = codes.shape[1], dim = codes.shape[2];
  for (std::int64_t i = 0; i < rows.elements(); ++i) {
    const std::int64_t head = i / dim % heads;
    const std::int64_t at =
        i / (heads * dim) * codes.stride[0] + head * codes.stride[1] + i % dim * codes.stride[2];
    store_element(rows.view().data, dtype, i,
                  load_element(codes.data, codes.dtype, at) * scales[static_cast<std::size_t>(head)]);
  }
  return rows;
}

}  // namespace chorale
