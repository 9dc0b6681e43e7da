// What the tests of the cache have in common: rows to store, and errors to expect.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <initializer_list>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/float.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

inline void expect_error(const Status& status, Code code, std::string_view part) {
  EXPECT_EQ(status.code(), code) << status.message();
  EXPECT_THAT(status.message(), testing::HasSubstr(std::string(part)));
}

// Element i holds value(i).
inline Tensor filled(DType dtype, std::initializer_list<std::int64_t> shape,
                     const std::function<float(std::int64_t i)>& value) {
  Tensor tensor = Tensor::zeros(dtype, shape);
  for (std::int64_t i = 0; i < tensor.elements(); ++i) store_element(tensor.view().data, dtype, i, value(i));
  return tensor;
}
// The values in turn.
inline Tensor filled(DType dtype, std::initializer_list<std::int64_t> shape,
                     const std::vector<float>& values) {
  return filled(dtype, shape,
                [&](std::int64_t i) { return values[static_cast<std::size_t>(i) % values.size()]; });
}
// Counts up from `first`, so that every element differs.
inline Tensor counting(std::initializer_list<std::int64_t> shape, float first) {
  return filled(DType::float32, shape, [&](std::int64_t i) { return first + static_cast<float>(i); });
}
// From -8 to 8.
inline Tensor random_integers(DType dtype, std::initializer_list<std::int64_t> shape, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  return filled(dtype, shape, [&](std::int64_t) { return static_cast<float>(random() % 17) - 8; });
}

}  // namespace chorale
