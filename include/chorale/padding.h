// unpad, pad and index_first_axis: between padded batches [batch, seqlen, ...] and packed rows [total, ...].
// The names and meanings of flash_attn.bert_padding. Each function is its neighbour's backward where that is
// said.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

struct Unpadded {
  Tensor rows;                           // [total, ...]: the rows whose mask is set, in order
  std::vector<std::int64_t> indices;     // [total]: each row's place in the flattened [batch * seqlen]
  std::vector<std::int32_t> cu_seqlens;  // [batch + 1]
  std::int32_t max_seqlen = 0;
  std::vector<std::int32_t> seqused;  // [batch]: set entries of each row of the mask
};

// padded: [batch, seqlen, ...] (rank 2 to 4); attention_mask: batch * seqlen entries, 0 or 1, row-major.
Result<Unpadded> unpad_input(const TensorView& padded, std::span<const std::uint8_t> attention_mask);
// rows [total, ...] back into [batch, seqlen, ...]; places without a row are 0. Also the backward of
// unpad_input.
Result<Tensor> pad_input(const TensorView& rows, std::span<const std::int64_t> indices, std::int64_t batch,
                         std::int64_t seqlen);
// Backward of pad_input: takes grad [batch, seqlen, ...] to [total, ...].
Result<Tensor> pad_input_backward(const TensorView& grad_padded, std::span<const std::int64_t> indices);
// rows[indices]: out [indices, ...] of input [n, ...]; an index may repeat.
Result<Tensor> index_first_axis(const TensorView& input, std::span<const std::int64_t> indices);
// Backward of index_first_axis: out [n, ...], repeated indices add up in float32 in ascending order of their
// place.
Result<Tensor> index_first_axis_backward(const TensorView& grad, std::span<const std::int64_t> indices,
                                         std::int64_t n);

}  // namespace chorale
