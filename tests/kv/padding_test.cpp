// unpad, pad and index_first_axis against plain loops, and as adjoints of each other: <f(x), y> = <x,
// backward(y)>, exact because all numbers are small integers.
#include "chorale/padding.h"

#include <limits>

#include "kv/fixture.h"
#include "kv/zeroed_memory.h"

namespace chorale {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

float at(const TensorView& view, std::int64_t i) { return load_element(view.data, view.dtype, i); }

double inner(const Tensor& x, const Tensor& y) {
  EXPECT_EQ(x.elements(), y.elements());
  double sum = 0;
  for (std::int64_t i = 0; i < x.elements(); ++i)
    sum += static_cast<double>(at(x, i)) * static_cast<double>(at(y, i));
  return sum;
}

class Padding : public testing::TestWithParam<DType> {};

TEST_P(Padding, UnpadPicksSetRows) {
  const Tensor padded = random_integers(GetParam(), {3, 4, 2, 3}, 1);
  const std::vector<std::uint8_t> mask{1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1};
  const auto unpadded = unpad_input(padded, mask);
  ASSERT_TRUE(unpadded) << unpadded.status().message();
  EXPECT_THAT(unpadded->indices, ElementsAre(0, 1, 9, 11));
  EXPECT_THAT(unpadded->cu_seqlens, ElementsAre(0, 2, 2, 4));
  EXPECT_THAT(unpadded->seqused, ElementsAre(2, 0, 2));
  EXPECT_EQ(unpadded->max_seqlen, 2);
  ASSERT_EQ(unpadded->rows.view().describe(), std::string(name(GetParam())) + " [4, 2, 3]");
  for (std::int64_t row = 0; row < 4; ++row) {
    for (std::int64_t i = 0; i < 6; ++i)
      EXPECT_EQ(at(unpadded->rows, row * 6 + i),
                at(padded, unpadded->indices[static_cast<std::size_t>(row)] * 6 + i));
  }
}

TEST_P(Padding, PadIsUnpadsInverseAndBackward) {
  const Tensor padded = random_integers(GetParam(), {2, 5, 3}, 2);
  const std::vector<std::uint8_t> mask{1, 0, 1, 1, 0, 0, 0, 1, 1, 1};
  const Unpadded unpadded = unpad_input(padded, mask).value();
  const Tensor again = pad_input(unpadded.rows, unpadded.indices, 2, 5).value();
  ASSERT_EQ(again.view().describe(), padded.view().describe());
  for (std::int64_t i = 0; i < padded.elements(); ++i)
    EXPECT_EQ(at(again, i), mask[static_cast<std::size_t>(i / 3)] ? at(padded, i) : 0.f);

  const Tensor grad = random_integers(GetParam(), {6, 3}, 3);
  EXPECT_EQ(inner(unpadded.rows, grad), inner(padded, pad_input(grad, unpadded.indices, 2, 5).value()));
  const Tensor grad_padded = random_integers(GetParam(), {2, 5, 3}, 4);
  EXPECT_EQ(inner(again, grad_padded),
            inner(unpadded.rows, pad_input_backward(grad_padded, unpadded.indices).value()));
}

TEST_P(Padding, IndexFirstAxisMayRepeatAndItsBackwardAddsUp) {
  const Tensor input = random_integers(GetParam(), {5, 2, 2}, 5);
  const std::vector<std::int64_t> indices{4, 0, 4, 2, 4, 0};
  const Tensor out = index_first_axis(input, indices).value();
  ASSERT_EQ(out.shape(0), 6);
  for (std::int64_t row = 0; row < 6; ++row) {
    for (std::int64_t i = 0; i < 4; ++i)
      EXPECT_EQ(at(out, row * 4 + i), at(input, indices[static_cast<std::size_t>(row)] * 4 + i));
  }
  const Tensor grad = random_integers(GetParam(), {6, 2, 2}, 6);
  const Tensor back = index_first_axis_backward(grad, indices, 5).value();
  ASSERT_EQ(back.view().describe(), input.view().describe());
  EXPECT_EQ(inner(out, grad), inner(input, back));
  for (std::int64_t i = 0; i < 4; ++i) EXPECT_EQ(at(back, 1 * 4 + i), 0) << "row 1 was not picked";
}

INSTANTIATE_TEST_SUITE_P(Types, Padding, testing::Values(DType::float32, DType::bfloat16, DType::float16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

TEST(IndexFirstAxis, AddsInFloat32InAscendingOrderOfPlace) {
  // 2^24 + 1 - 2^24 is 0 in float32 from left to right, and 1 in another order.
  Tensor grad = Tensor::zeros(DType::float32, {3, 1});
  grad.as<float>()[0] = 16777216.f, grad.as<float>()[1] = 1.f, grad.as<float>()[2] = -16777216.f;
  EXPECT_EQ(index_first_axis_backward(grad, std::vector<std::int64_t>{1, 1, 1}, 2).value().as<float>()[1],
            0.f);
  // In bfloat16 256 + 1 rounds to 256; the float32 sum of 256 + 1 + 1 is exact.
  Tensor half = Tensor::zeros(DType::bfloat16, {3, 1});
  for (const std::int64_t i : {0, 1, 2})
    store_element(half.view().data, DType::bfloat16, i, i == 0 ? 256.f : 1.f);
  EXPECT_EQ(at(index_first_axis_backward(half, std::vector<std::int64_t>{0, 0, 0}, 1).value(), 0), 258.f);
}

TEST(Padding, TakesAnyStrides) {
  const Tensor memory = random_integers(DType::float32, {3, 4, 5}, 7);
  TensorView transposed = TensorView::contiguous(memory.view().data, DType::float32, {5, 4, 3});
  transposed.stride = {1, 5, 20};
  const std::vector<std::int64_t> places{7, 19, 0};
  const Tensor rows = pad_input_backward(transposed, places).value();
  for (std::size_t row = 0; row < 3; ++row) {
    for (std::int64_t i = 0; i < 3; ++i)
      EXPECT_EQ(at(rows, static_cast<std::int64_t>(row) * 3 + i),
                at(memory, i * 20 + places[row] % 4 * 5 + places[row] / 4));
  }
  TensorView repeated = TensorView::contiguous(memory.view().data, DType::float32, {6, 5});
  repeated.stride = {0, 1};
  const Tensor picked = index_first_axis(repeated, std::vector<std::int64_t>{5}).value();
  for (std::int64_t i = 0; i < 5; ++i) EXPECT_EQ(at(picked, i), at(memory, i));
}

TEST(Padding, OffsetsBeyond32BitsAreExact) {
  const std::int64_t stride = (std::int64_t{1} << 31) + 8;
  const auto memory = ZeroedMemory::allocate(static_cast<std::size_t>(stride + 4) * 2);
  ASSERT_TRUE(memory) << memory.status().message();
  TensorView view = TensorView::contiguous(memory->data(), DType::bfloat16, {2, 4});
  view.stride[0] = stride;
  store_element(view.data, DType::bfloat16, stride + 3, 3.5f);
  EXPECT_EQ(at(index_first_axis(view, std::vector<std::int64_t>{1}).value(), 3), 3.5f);
}

TEST(Padding, HandlesNothing) {
  const Unpadded none = unpad_input(Tensor::zeros(DType::float32, {2, 0, 3}), {}).value();
  EXPECT_EQ(none.rows.shape(0), 0);
  EXPECT_THAT(none.cu_seqlens, ElementsAre(0, 0, 0));
  EXPECT_EQ(pad_input(none.rows, none.indices, 0, 7).value().elements(), 0);
  EXPECT_EQ(index_first_axis_backward(none.rows, {}, 4).value().elements(), 12);
}

TEST(Padding, NamesWhatIsWrong) {
  const Tensor padded = Tensor::zeros(DType::float32, {2, 3, 4}),
               rows = Tensor::zeros(DType::float32, {2, 4});
  const std::vector<std::uint8_t> mask{1, 0, 2, 0, 0, 0};
  const auto indices = [](auto... i) { return std::vector<std::int64_t>{i...}; };
  expect_error(unpad_input(padded, mask).status(), Code::invalid_argument,
               "attention_mask[0, 2] is 2: must be 0 or 1");
  expect_error(unpad_input(padded, std::span(mask).first(5)).status(), Code::invalid_argument,
               "attention_mask has 5 entries: must be 2 * 3");
  expect_error(unpad_input(Tensor::zeros(DType::float32, {6}), mask).status(), Code::invalid_argument,
               "padded: rank 1: must be from 2 to 4");
  expect_error(pad_input(rows, indices(0, 6), 2, 3).status(), Code::out_of_range,
               "indices[1] is 6: there are 6 rows");
  expect_error(pad_input(rows, indices(-1, 2), 2, 3).status(), Code::out_of_range, "indices[0] is -1");
  expect_error(pad_input(rows, indices(5, 5), 2, 3).status(), Code::invalid_argument,
               "indices has 5 more than once");
  expect_error(pad_input(rows, indices(0), 2, 3).status(), Code::invalid_argument,
               "rows has 2 rows and there are 1 indices");
  expect_error(pad_input(rows, indices(0, 1), -2, 3).status(), Code::invalid_argument,
               "batch -2 and seqlen 3");
  expect_error(pad_input(rows, indices(0, 1), std::int64_t{1} << 40, std::int64_t{1} << 40).status(),
               Code::invalid_argument, "beyond 64 bits");
  expect_error(pad_input(rows, indices(0, 1), std::int64_t{1} << 30, std::int64_t{1} << 31).status(),
               Code::resource_exhausted, "no memory for a result of float32 [1073741824, 2147483648, 4]");
  expect_error(pad_input(Tensor::zeros(DType::float32, {1, 1, 1, 1}), indices(0), 1, 1).status(),
               Code::invalid_argument, "rows: rank 4");
  expect_error(index_first_axis(rows, indices(0, 2)).status(), Code::out_of_range,
               "indices[1] is 2: there are 2 rows");
  expect_error(index_first_axis(TensorView::contiguous(nullptr, DType::float32, {2, 4}), indices(0)).status(),
               Code::invalid_argument, "input: no data");
  expect_error(index_first_axis_backward(rows, indices(0, 3), 3).status(), Code::out_of_range,
               "indices[1] is 3: there are 3 rows");
  expect_error(index_first_axis_backward(rows, indices(0, 0), -1).status(), Code::invalid_argument, "n -1");
  TensorView endless = rows;
  endless.shape = {std::int64_t{1} << 40, std::int64_t{1} << 40};
  endless.stride = {0, 0};
  expect_error(index_first_axis(endless, indices(0)).status(), Code::invalid_argument,
               "more bytes than can be counted");
}

}  // namespace
}  // namespace chorale
