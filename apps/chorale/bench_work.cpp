#include "bench_work.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "base/float.h"
#include "mask/picture.h"

namespace chorale::app {
namespace {

// Normal numbers; a block of them again and again, since drawing gigabytes takes long.
void fill(const Tensor& tensor, std::mt19937& random) {
  constexpr std::int64_t block = 1 << 20;
  std::normal_distribution<float> normal;
  const std::int64_t drawn = std::min(block, tensor.elements());
  auto* data = static_cast<std::byte*>(tensor.view().data);
  for (std::int64_t i = 0; i < drawn; ++i) store_element(data, tensor.dtype(), i, normal(random));
  const std::size_t bytes = static_cast<std::size_t>(drawn) * size_of(tensor.dtype());
  for (std::size_t at = bytes; at < tensor.bytes(); at += bytes)
    std::memcpy(data + at, data, std::min(bytes, tensor.bytes() - at));
}

Batch make_batch(const WorkShape& shape, std::mt19937& random) {
  const int queries = shape.phase == Phase::decode ? 1 : shape.length;
  std::vector<std::int32_t> cu_queries(static_cast<std::size_t>(shape.sequences) + 1);
  for (int s = 0; s < shape.sequences; ++s)
    cu_queries[static_cast<std::size_t>(s) + 1] = cu_queries[static_cast<std::size_t>(s)] + queries;
  if (shape.phase == Phase::forward) return Batch::packed(std::move(cu_queries));
  Batch batch;
  batch.cu_seqlens_q = std::move(cu_queries);
  batch.kv_lens.assign(static_cast<std::size_t>(shape.sequences), shape.length);
  batch.page_size = shape.page_size;
  batch.block_table_stride = (shape.length + shape.page_size - 1) / shape.page_size;
  batch.block_table.resize(static_cast<std::size_t>(batch.block_table_stride * shape.sequences));
  std::iota(batch.block_table.begin(), batch.block_table.end(), 0);
  std::shuffle(batch.block_table.begin(), batch.block_table.end(), random);
  return batch;
}

// Query-key pairs that the first head of the first sequence sees.
Result<double> visible_pairs(const Problem& problem, const WorkShape& shape) {
  if (shape.phase == Phase::decode) return static_cast<double>(shape.length);  // counted by its bytes
  constexpr std::int64_t most_tiles_a_side = 1000;
  const std::int64_t tile = std::max<std::int64_t>(64, shape.length / most_tiles_a_side);
  CHORALE_ASSIGN_OR_RETURN(const MaskPicture picture,
                           draw_mask(problem.mask, shape.length, shape.length, tile));
  return static_cast<double>(picture.visible);
}

}  // namespace

Result<Work> Work::create(const Problem& problem, const WorkShape& shape) {
  // What 32-bit positions and the picture that counts pairs can hold.
  constexpr std::int64_t most_tokens = std::int64_t{1} << 24, longest = 1 << 14;
  if (std::int64_t{shape.sequences} * shape.length > most_tokens)
    return Status::invalid_argument(fmt::format("{} sequences of {}: must be at most {} tokens together",
                                                shape.sequences, shape.length, most_tokens));
  if (shape.phase != Phase::decode && shape.length > longest)
    return Status::invalid_argument(
        fmt::format("length {} of {}: must be at most {}", shape.length, name(shape.phase), longest));
  std::mt19937 random(1);
  Work work;
  work.batch_ = make_batch(shape, random);
  const auto tensor = [&](DType dtype, std::initializer_list<std::int64_t> dimensions) {
    work.owned_.push_back(Tensor::zeros(dtype, dimensions));
    fill(work.owned_.back(), random);
    return work.owned_.back().view();
  };
  const std::int64_t rows = work.batch_.total_q(), pages = std::ssize(work.batch_.block_table);
  const auto keys = [&](int columns) {
    const DType dtype = problem.kv_dtype_or_default();
    return work.batch_.is_paged() ? tensor(dtype, {pages, shape.page_size, problem.kv_heads, columns})
                                  : tensor(dtype, {rows, problem.kv_heads, columns});
  };
  ForwardTensors& t = work.tensors_;
  t.q = tensor(problem.dtype, {rows, problem.query_heads, problem.head_dim});
  t.k = keys(problem.head_dim);
  t.v = keys(problem.value_dim());
  t.out = tensor(problem.dtype, {rows, problem.query_heads, problem.value_dim()});
  t.lse = tensor(DType::float32, {rows, problem.query_heads});
  if (problem.sinks) t.sinks = tensor(DType::float32, {problem.query_heads});
  if (problem.has_kv_scales()) {
    t.k_scale = t.v_scale = tensor(DType::float32, {problem.kv_heads});
    std::ranges::fill(work.owned_.back().as<float>(), 1.0f);
  }
  CHORALE_ASSIGN_OR_RETURN(const double pairs, visible_pairs(problem, shape));
  const double columns = problem.head_dim + problem.value_dim();
  work.operations_ = 2 * columns * pairs * problem.query_heads * shape.sequences;
  work.bytes_ = columns * problem.kv_heads * static_cast<double>(work.batch_.total_k()) *
                static_cast<double>(size_of(problem.kv_dtype_or_default()));
  return work;
}

}  // namespace chorale::app
