// Attention behind plain C functions, so that a Python program can time it beside PyTorch in one process,
// interleaved and on the same data (bench/attention_cpu.py, bench/attention_gpu.py). Every function returns
// null or 0 on failure; chorale_error() says why.
#include "capi.h"

#include <string>
#include <vector>

#include "bench/peaks.h"

namespace chorale::bench {
namespace {

thread_local std::string last_error;

TensorView queries(const Case& c, const void* data) {
  const Problem& p = c.problem;
  return TensorView::contiguous(data, p.dtype, {c.plan->batch().total_q(), p.query_heads, p.head_dim});
}
TensorView keys(const Case& c, const void* data) {
  std::vector<std::int64_t> shape = c.key_shape;
  shape.push_back(c.problem.head_dim);
  return TensorView::contiguous(data, c.problem.dtype, shape);
}
TensorView lse_of(const Case& c, const float* data) {
  return TensorView::contiguous(data, DType::float32, {c.plan->batch().total_q(), c.problem.query_heads});
}

}  // namespace

bool failed(const Status& status) {
  if (!status.is_ok()) last_error = status.message();
  return !status.is_ok();
}

Result<Problem> make_problem(const CaseRequest& request) {
  CHORALE_ASSIGN_OR_RETURN(const DType dtype, parse_dtype(request.dtype));
  std::vector<Table> tables;
  if (request.documents != nullptr)
    tables.push_back(
        Table::integers("document", {request.documents, request.documents + request.document_count}));
  if (request.slopes != nullptr)
    tables.push_back(Table::floats("slopes", {request.slopes, request.slopes + request.slope_count}));
  Problem problem{.query_heads = request.query_heads,
                  .kv_heads = request.kv_heads,
                  .head_dim = request.head_dim,
                  .dtype = dtype};
  CHORALE_ASSIGN_OR_RETURN(problem.mask, Mask::parse(request.mask, tables));
  if (*request.score != '\0') {
    CHORALE_ASSIGN_OR_RETURN(problem.score, Score::parse(request.score, tables));
  }
  return problem;
}

Batch make_batch(const CaseRequest& request) {
  std::vector<std::int32_t> cu_q{0}, cu_k{0};
  for (int i = 0; i < request.sequences; ++i) {
    cu_q.push_back(cu_q.back() + request.q_lens[i]);
    cu_k.push_back(cu_k.back() + request.kv_lens[i]);
  }
  if (request.page_size == 0) return Batch::packed(std::move(cu_q), std::move(cu_k));
  Batch batch;
  batch.cu_seqlens_q = std::move(cu_q);
  batch.kv_lens.assign(request.kv_lens, request.kv_lens + request.sequences);
  batch.page_size = request.page_size;
  batch.block_table.assign(request.block_table, request.block_table + request.sequences * request.table_row);
  batch.block_table_stride = request.table_row;
  return batch;
}

namespace {

Result<Case> make_case(const CaseRequest& request) {
  CHORALE_ASSIGN_OR_RETURN(Problem problem, make_problem(request));
  CHORALE_ASSIGN_OR_RETURN(Device device, Device::parse(request.device));
  device.threads = request.threads;
  const bool on_cpu = device.kind == Device::Kind::cpu;
  CHORALE_ASSIGN_OR_RETURN(
      Attention attention,
      on_cpu ? Attention::create(problem, request.implementation, device, {Phase::forward, Phase::backward})
             : Attention::create(problem, request.implementation, device, {Phase::forward}));
  const Batch batch = make_batch(request);
  CHORALE_ASSIGN_OR_RETURN(
      std::shared_ptr<const Plan> plan,
      request.chunk == 0 ? attention.plan(batch) : plan_with_chunk(problem, batch, device, request.chunk));
  std::vector<std::int64_t> key_shape{batch.total_k(), problem.kv_heads};
  if (batch.is_paged()) key_shape = {request.pages, batch.page_size, problem.kv_heads};
  return Case{std::move(problem), std::move(plan), std::move(attention), std::move(key_shape)};
}

}  // namespace
}  // namespace chorale::bench

extern "C" {

using namespace chorale;
using namespace chorale::bench;

const char* chorale_error() { return bench::last_error.c_str(); }

Case* chorale_case(const CaseRequest* request) {
  auto made = bench::make_case(*request);
  return bench::failed(made.status()) ? nullptr : new Case(std::move(*made));
}
void chorale_case_free(Case* c) { delete c; }

const char* chorale_fingerprint(Case* c) {
  thread_local std::string text;
  text = c->attention.fingerprint().to_string();
  return text.c_str();
}

// q, out [total_q, query_heads, head_dim]; k, v packed or pages; lse [total_q, query_heads], or null where it
// is not wanted. On a GPU they lie on the device, and the work is in `stream` when this returns.
int chorale_forward(Case* c, const void* q, const void* k, const void* v, void* out, float* lse,
                    void* stream) {
  const ForwardTensors tensors{.q = queries(*c, q),
                               .k = keys(*c, k),
                               .v = keys(*c, v),
                               .out = queries(*c, out),
                               .lse = lse_of(*c, lse),
                               .stream = stream};
  return bench::failed(c->attention.forward(*c->plan, tensors)) ? 0 : 1;
}

int chorale_backward(Case* c, const void* q, const void* k, const void* v, const void* out, const float* lse,
                     const void* grad_out, void* grad_q, void* grad_k, void* grad_v) {
  const Problem& p = c->problem;
  const auto packed = [&](const void* data) {
    return TensorView::contiguous(data, p.dtype, {c->plan->batch().total_k(), p.kv_heads, p.head_dim});
  };
  BackwardTensors tensors;
  tensors.q = queries(*c, q);
  tensors.k = keys(*c, k);
  tensors.v = keys(*c, v);
  tensors.out = queries(*c, out);
  tensors.lse = lse_of(*c, lse);
  tensors.grad_out = queries(*c, grad_out);
  tensors.grad_q = queries(*c, grad_q);
  tensors.grad_k = packed(grad_k);
  tensors.grad_v = packed(grad_v);
  return bench::failed(c->attention.backward(*c->plan, tensors)) ? 0 : 1;
}

// The limits that a work's time is compared with: as many operations of the product instruction that `dtype`
// problems use here, as many bytes of memory.
void chorale_multiply(const char* dtype, double operations, int threads) {
  bench::multiply(std::string(dtype) == "bfloat16", operations, threads);
}
void chorale_read_memory(std::int64_t bytes, int threads) { bench::read_memory(bytes, threads); }
// Reads the pages that a decode reads, in its order, with nothing else to do.
void chorale_read_pages(const float* keys, const float* values, std::int64_t page_floats,
                        const std::int32_t* block_table, std::int64_t pages, int threads) {
  bench::read_pages(keys, values, page_floats, block_table, pages, threads);
}

}  // extern "C"
