// Attention behind plain C functions, so that a Python program can time it beside PyTorch in one process,
// interleaved and on the same data (bench/attention_cpu.py). Every function returns null or 0 on failure;
// chorale_error() says why.
#include <cstring>
#include <string>
#include <vector>

#include "chorale/chorale.h"
#include "peaks.h"

namespace {

using namespace chorale;

thread_local std::string last_error;

bool failed(const Status& status) {
  if (!status.is_ok()) last_error = status.message();
  return !status.is_ok();
}

// One problem with one batch.
struct Case {
  Problem problem;
  std::shared_ptr<const Plan> plan;
  Attention attention;
  std::int64_t total_q, total_k;
  std::vector<std::int64_t> key_shape;  // less its last dimension
};

}  // namespace

extern "C" {

const char* chorale_error() { return last_error.c_str(); }

// page_size 0: keys packed as the queries' lengths say; else pages in the order of `block_table` [sequences,
// table_row]. documents: an int table for the mask, or null.
Case* chorale_case(int query_heads, int kv_heads, int head_dim, const char* dtype, const char* mask,
                   const std::int32_t* documents, std::int64_t document_count, int sequences,
                   const std::int32_t* q_lens, const std::int32_t* kv_lens, int page_size, std::int64_t pages,
                   const std::int32_t* block_table, std::int64_t table_row, int threads) {
  const auto type = parse_dtype(dtype);
  if (!type) return failed(type.status()), nullptr;
  std::vector<Table> tables;
  if (documents != nullptr)
    tables.push_back(Table::integers("document", {documents, documents + document_count}));
  const auto program = Mask::parse(mask, tables);
  if (!program) return failed(program.status()), nullptr;
  Problem problem{.query_heads = query_heads,
                  .kv_heads = kv_heads,
                  .head_dim = head_dim,
                  .dtype = *type,
                  .mask = *program};
  std::vector<std::int32_t> cu_q{0}, cu_k{0}, lens(kv_lens, kv_lens + sequences);
  for (int i = 0; i < sequences; ++i)
    cu_q.push_back(cu_q.back() + q_lens[i]), cu_k.push_back(cu_k.back() + kv_lens[i]);
  Batch batch = Batch::packed(cu_q, cu_k);
  if (page_size > 0) {
    batch.cu_seqlens_k.clear();
    batch.kv_lens = lens;
    batch.page_size = page_size;
    batch.block_table.assign(block_table, block_table + sequences * table_row);
    batch.block_table_stride = table_row;
  }
  auto attention = Attention::create(problem, "flash_attention_2", Device::cpu(threads),
                                     {Phase::forward, Phase::backward});
  if (!attention) return failed(attention.status()), nullptr;
  auto plan = attention->plan(batch);
  if (!plan) return failed(plan.status()), nullptr;
  std::vector<std::int64_t> keys;
  if (page_size > 0)
    keys = {pages, page_size, kv_heads};
  else
    keys = {batch.total_k(), kv_heads};
  return new Case{problem, *plan, *attention, batch.total_q(), batch.total_k(), keys};
}
void chorale_case_free(Case* c) { delete c; }

const char* chorale_fingerprint(Case* c) {
  thread_local std::string text;
  text = c->attention.fingerprint().to_string();
  return text.c_str();
}

// q, out [total_q, query_heads, head_dim]; k, v packed or pages; lse [total_q, query_heads].
int chorale_forward(Case* c, const void* q, const void* k, const void* v, void* out, float* lse) {
  const Problem& p = c->problem;
  std::vector<std::int64_t> keys = c->key_shape;
  keys.push_back(p.head_dim);
  const auto rows = TensorView::contiguous(q, p.dtype, {c->total_q, p.query_heads, p.head_dim});
  ForwardTensors tensors;
  tensors.q = rows;
  tensors.k = TensorView::contiguous(k, p.dtype, keys);
  tensors.v = TensorView::contiguous(v, p.dtype, keys);
  tensors.out = TensorView::contiguous(out, p.dtype, {c->total_q, p.query_heads, p.head_dim});
  tensors.lse = TensorView::contiguous(lse, DType::float32, {c->total_q, p.query_heads});
  return failed(c->attention.forward(*c->plan, tensors)) ? 0 : 1;
}

int chorale_backward(Case* c, const void* q, const void* k, const void* v, const void* out, const float* lse,
                     const void* grad_out, void* grad_q, void* grad_k, void* grad_v) {
  const Problem& p = c->problem;
  std::vector<std::int64_t> keys = c->key_shape;
  keys.push_back(p.head_dim);
  const auto queries = [&](const void* data) {
    return TensorView::contiguous(data, p.dtype, {c->total_q, p.query_heads, p.head_dim});
  };
  const auto packed = [&](const void* data) {
    return TensorView::contiguous(data, p.dtype, {c->total_k, p.kv_heads, p.head_dim});
  };
  BackwardTensors tensors;
  tensors.q = queries(q);
  tensors.k = TensorView::contiguous(k, p.dtype, keys);
  tensors.v = TensorView::contiguous(v, p.dtype, keys);
  tensors.out = queries(out);
  tensors.lse = TensorView::contiguous(lse, DType::float32, {c->total_q, p.query_heads});
  tensors.grad_out = queries(grad_out);
  tensors.grad_q = queries(grad_q);
  tensors.grad_k = packed(grad_k);
  tensors.grad_v = packed(grad_v);
  return failed(c->attention.backward(*c->plan, tensors)) ? 0 : 1;
}

// FLOP/s of the product instruction that `dtype` problems use here, on `threads` threads; bytes/s of reading
// memory.
double chorale_peak_flops(const char* dtype, int threads) {
  return bench::peak_flops(std::string(dtype) == "bfloat16", threads);
}
double chorale_peak_bandwidth(int threads) { return bench::peak_bandwidth(threads); }

}  // extern "C"
