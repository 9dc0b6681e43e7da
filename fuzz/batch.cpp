// Batches in every form, and what attention does with them. A batch that is accepted is planned and run on
// tensors that end where the batch says; memory that it does not use holds NaN. Its result has the bits of
// the same sequences packed, computed on one thread.
#include <bit>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "base/float.h"
#include "chorale/attention.h"
#include "target.h"

namespace chorale::fuzz {
namespace {

constexpr std::int64_t most_rows = 40, most_keys = 300, pool_pages = 12;  // that are computed

std::vector<std::int32_t> integers(Bytes& bytes, std::int64_t most) {
  std::vector<std::int32_t> values(static_cast<std::size_t>(bytes.below(most + 1)));
  for (std::int32_t& value : values) value = bytes.integer();
  return values;
}

// Mostly ascending from 0, as offsets should be.
std::vector<std::int32_t> offsets(Bytes& bytes, std::int64_t intervals) {
  if (bytes.below(8) == 7) return integers(bytes, 5);
  std::vector<std::int32_t> values{0};
  for (std::int64_t i = 0; i < intervals; ++i)
    values.push_back(static_cast<std::int32_t>(static_cast<std::uint32_t>(values.back()) +
                                               static_cast<std::uint32_t>(bytes.integer())));
  return values;
}

Result<Batch> make_batch(Bytes& bytes) {
  const std::int64_t form = bytes.below(5), sequences = bytes.below(5);
  const std::int32_t page_choice = bytes.integer();
  const int page_size = page_choice < 9 ? 1 << std::max(page_choice, 0) : page_choice;
  std::vector<std::int32_t> queries = offsets(bytes, sequences);
  if (form == 0) return Batch::packed(std::move(queries));
  if (form == 1) return Batch::packed(std::move(queries), offsets(bytes, sequences));
  if (form == 2) {
    std::vector<std::int32_t> lengths = integers(bytes, sequences);
    std::vector<std::vector<std::int32_t>> tables(static_cast<std::size_t>(bytes.below(sequences + 1)));
    for (auto& table : tables) table = integers(bytes, 8);
    return Batch::paged(std::move(queries), std::move(lengths), page_size, tables);
  }
  if (form == 3) {
    const auto indptr = offsets(bytes, sequences), last = integers(bytes, sequences),
               indices = integers(bytes, 20);
    return Batch::paged_from_indptr(std::move(queries), indptr, indices, last, page_size);
  }
  Batch batch;  // filled by hand
  batch.cu_seqlens_q = std::move(queries);
  batch.page_size = page_size;
  batch.kv_lens = integers(bytes, sequences);
  batch.block_table_stride = bytes.integer();
  batch.block_table = integers(bytes, 24);
  if (bytes.below(8) == 7) batch.cu_seqlens_k = offsets(bytes, sequences);
  return batch;
}

// What validate() promises, said once more in another way.
void expect_sound(const Batch& batch) {
  ASSERT_TRUE(batch.cu_seqlens_q.empty() || batch.cu_seqlens_q.front() == 0);
  for (int i = 0; i < batch.sequences(); ++i) {
    ASSERT_GE(batch.q_len(i), 0);
    ASSERT_GE(batch.kv_len(i), 0);
    if (!batch.is_paged()) continue;
    ASSERT_LE(batch.kv_len(i), batch.block_table_stride * batch.page_size);
    ASSERT_LE((i + 1) * batch.block_table_stride, std::ssize(batch.block_table));
  }
  ASSERT_GE(batch.total_k(), 0);
}

Problem make_problem(Bytes& bytes) {
  constexpr int dims[] = {1, 3, 16, 33};
  constexpr DType types[] = {DType::float32, DType::bfloat16, DType::float16};
  const std::vector<Table> tables{Table::integers("ids", std::vector<std::int32_t>(64, 1))};
  constexpr const char* masks[] = {"all",        "causal",        "causal and window(5)",
                                   "k % 3 != 0", "document(ids)", "not all"};
  Problem problem{.kv_heads = 1 + static_cast<int>(bytes.below(2)),
                  .head_dim = dims[bytes.below(4)],
                  .value_head_dim = dims[bytes.below(4)],
                  .dtype = types[bytes.below(3)],
                  .mask = Mask::parse(masks[bytes.below(6)], tables).value()};
  problem.query_heads = problem.kv_heads * (1 + static_cast<int>(bytes.below(3)));
  if (bytes.below(4) == 3) problem.kv_dtype = DType::float8_e4m3;
  problem.sinks = bytes.below(4) == 3;
  return problem;
}

// A tensor whose last element is the last that may be touched: AddressSanitizer watches what is behind.
struct Exact {
  std::vector<std::byte> memory;
  TensorView view;
  Exact(DType dtype, std::vector<std::int64_t> shape, float fill) {
    view = TensorView::contiguous(nullptr, dtype, shape);
    memory.resize(static_cast<std::size_t>(view.elements()) * size_of(dtype) + 1);
    memory.pop_back();  // data() of an empty tensor is not null
    memory.shrink_to_fit();
    if (memory.empty()) memory.reserve(1);
    view.data = memory.data();
    for (std::int64_t i = 0; i < view.elements(); ++i) set(i, fill);
  }
  void set(std::int64_t i, float value) { store_element(view.data, view.dtype, i, value); }
  bool operator==(const Exact& other) const { return memory == other.memory; }
};

float value_at(std::int64_t row, std::int64_t column) {
  return static_cast<float>((row * 37 + column * 11) % 29 - 14) / 16;
}
void fill_row(Exact& tensor, std::int64_t row, std::int64_t width, std::int64_t content) {
  for (std::int64_t i = 0; i < width; ++i) tensor.set(row * width + i, value_at(content, i));
}

struct Outputs {
  Exact out, lse, grad_q, grad_k, grad_v, grad_sinks;
  Outputs(const Problem& p, const Batch& b)
      : out(p.dtype, {b.total_q(), p.query_heads, p.value_dim()}, 7),
        lse(DType::float32, {b.total_q(), p.query_heads}, 7),
        grad_q(p.dtype, {b.total_q(), p.query_heads, p.head_dim}, 7),
        grad_k(p.dtype, {b.total_k(), p.kv_heads, p.head_dim}, 7),
        grad_v(p.dtype, {b.total_k(), p.kv_heads, p.value_dim()}, 7),
        grad_sinks(DType::float32, {p.query_heads}, 7) {}
  bool operator==(const Outputs&) const = default;
};

// Forward and backward of one batch over given keys and values; the first failure.
Status compute(const Problem& problem, const Batch& batch, std::string_view implementation, int threads,
               const Exact& k, const Exact& v, Outputs& outputs) {
  const std::int64_t rows = batch.total_q(), heads = problem.query_heads;
  Exact q(problem.dtype, {rows, heads, problem.head_dim}, 0),
      grad_out(problem.dtype, {rows, heads, problem.value_dim()}, 0);
  for (std::int64_t row = 0; row < rows; ++row) {
    fill_row(q, row, heads * problem.head_dim, row);
    fill_row(grad_out, row, heads * problem.value_dim(), row + 5);
  }
  Exact scales(DType::float32, {problem.kv_heads}, 0.5f), sinks(DType::float32, {heads}, 0.25f);
  const TensorView none{};
  const TensorView scale = problem.has_kv_scales() ? scales.view : none,
                   sink = problem.sinks ? sinks.view : none;
  CHORALE_ASSIGN_OR_RETURN(
      const Attention attention,
      Attention::create(problem, implementation, Device::cpu(threads), {Phase::forward, Phase::backward}));
  CHORALE_ASSIGN_OR_RETURN(const auto plan, attention.plan(batch));
  CHORALE_RETURN_IF_ERROR(attention.forward(*plan, {.q = q.view,
                                                    .k = k.view,
                                                    .v = v.view,
                                                    .out = outputs.out.view,
                                                    .lse = outputs.lse.view,
                                                    .sinks = sink,
                                                    .k_scale = scale,
                                                    .v_scale = scale}));
  return attention.backward(*plan, {.q = q.view,
                                    .k = k.view,
                                    .v = v.view,
                                    .out = outputs.out.view,
                                    .lse = outputs.lse.view,
                                    .sinks = sink,
                                    .grad_out = grad_out.view,
                                    .grad_q = outputs.grad_q.view,
                                    .grad_k = outputs.grad_k.view,
                                    .grad_v = outputs.grad_v.view,
                                    .grad_sinks = problem.sinks ? outputs.grad_sinks.view : none,
                                    .k_scale = scale,
                                    .v_scale = scale});
}

// The page of a position, or none if the pool does not have it.
std::optional<std::int64_t> page_of(const Batch& batch, int sequence, std::int64_t position) {
  const auto index =
      static_cast<std::size_t>(sequence * batch.block_table_stride + position / batch.page_size);
  const std::int32_t page = batch.block_table[index];
  if (page < 0 || page >= pool_pages) return std::nullopt;
  return page;
}

void check_paged(const Problem& problem, const Batch& batch, std::string_view implementation, int threads,
                 std::vector<std::int32_t> key_offsets) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const DType kept = problem.kv_dtype_or_default();
  const std::int64_t key_width = problem.kv_heads * problem.head_dim,
                     value_width = problem.kv_heads * problem.value_dim();
  Exact pool_k(kept, {pool_pages, batch.page_size, problem.kv_heads, problem.head_dim}, nan);
  Exact pool_v(kept, {pool_pages, batch.page_size, problem.kv_heads, problem.value_dim()}, nan);
  Exact k(kept, {batch.total_k(), problem.kv_heads, problem.head_dim}, nan),
      v(kept, {batch.total_k(), problem.kv_heads, problem.value_dim()}, nan);
  bool inside = true;
  for (int b = 0; b < batch.sequences(); ++b) {
    for (std::int64_t position = 0; position < batch.kv_len(b); ++position) {
      const auto page = page_of(batch, b, position);
      if (!page) {
        inside = false;
        continue;
      }
      // The slot's own content: sequences may share pages.
      const std::int64_t slot = *page * batch.page_size + position % batch.page_size,
                         row = key_offsets[static_cast<std::size_t>(b)] + position;
      fill_row(pool_k, slot, key_width, slot);
      fill_row(pool_v, slot, value_width, slot + 3);
      fill_row(k, row, key_width, slot);
      fill_row(v, row, value_width, slot + 3);
    }
  }
  Outputs paged(problem, batch), packed(problem, batch);
  const Outputs untouched = paged;
  const Status status = compute(problem, batch, implementation, threads, pool_k, pool_v, paged);
  Batch flat = Batch::packed(batch.cu_seqlens_q, std::move(key_offsets));
  const Status flat_status = compute(problem, flat, implementation, 1, k, v, packed);
  if (!inside) {
    ASSERT_FALSE(status.is_ok());
    ASSERT_FALSE(status.message().empty());
    ASSERT_TRUE(paged == untouched) << "a call that fails writes nothing";
    return;
  }
  ASSERT_EQ(status.is_ok(), flat_status.is_ok()) << status.message() << flat_status.message();
  ASSERT_TRUE(paged == packed);
}

void check_packed(const Problem& problem, const Batch& batch, std::string_view implementation, int threads) {
  const DType kept = problem.kv_dtype_or_default();
  Exact k(kept, {batch.total_k(), problem.kv_heads, problem.head_dim}, 0),
      v(kept, {batch.total_k(), problem.kv_heads, problem.value_dim()}, 0);
  for (std::int64_t row = 0; row < batch.total_k(); ++row) {
    fill_row(k, row, problem.kv_heads * problem.head_dim, row);
    fill_row(v, row, problem.kv_heads * problem.value_dim(), row + 3);
  }
  Outputs one(problem, batch), many(problem, batch);
  const Status status = compute(problem, batch, implementation, threads, k, v, many);
  const Status alone = compute(problem, batch, implementation, 1, k, v, one);
  ASSERT_EQ(status.is_ok(), alone.is_ok());
  ASSERT_TRUE(status.is_ok() || !status.message().empty());
  ASSERT_TRUE(one == many);
  for (std::int64_t i = 0; status.is_ok() && i < many.out.view.elements(); ++i)
    ASSERT_TRUE(std::abs(load_element(many.out.view.data, problem.dtype, i)) <= 1)
        << "a mean of values of at most 1";
}

}  // namespace

void run(std::span<const std::uint8_t> input) {
  Bytes bytes(input);
  const Problem problem = make_problem(bytes);
  const std::string_view implementation = bytes.below(16) == 15 ? "eager" : "flash_attention_2";
  const int threads = 1 + static_cast<int>(bytes.below(3));
  const auto batch = make_batch(bytes);
  if (!batch) {
    ASSERT_FALSE(batch.status().message().empty());
    return;
  }
  if (const Status status = batch->validate(); !status.is_ok()) {
    ASSERT_FALSE(status.message().empty());
    const auto attention = Attention::create(problem, implementation).value();
    ASSERT_FALSE(attention.plan(*batch)) << "what validate refuses is not planned";
    return;
  }
  expect_sound(*batch);
  if (batch->total_q() > most_rows || batch->total_k() > most_keys) return;
  std::vector<std::int32_t> key_offsets{0};
  for (int b = 0; b < batch->sequences(); ++b) key_offsets.push_back(key_offsets.back() + batch->kv_len(b));
  if (batch->is_paged())
    check_paged(problem, *batch, implementation, threads, std::move(key_offsets));
  else
    check_packed(problem, *batch, implementation, threads);
}

}  // namespace chorale::fuzz
