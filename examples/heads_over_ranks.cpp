// Attention with its heads cut over MPI ranks, forward and backward: mpiexec -n 2 build/release/examples/...
// Rank 0 prints a checksum of the bits of every output. However many ranks there are, it prints the same.
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <random>

#include "chorale/chorale.h"
using namespace chorale;

namespace {

constexpr std::int64_t tokens = 300;

Tensor random_tensor(std::initializer_list<std::int64_t> shape, unsigned seed) {
  Tensor tensor = Tensor::zeros(DType::float32, shape);
  std::mt19937 generator(seed);
  for (float& x : tensor.as<float>()) x = static_cast<float>(generator()) / 0x1p32f - 0.5f;
  return tensor;
}

// FNV-1a over the bytes of a tensor.
std::uint64_t checksum(const Tensor& tensor) {
  std::uint64_t sum = 0xcbf29ce484222325u;
  const auto* bytes = static_cast<const unsigned char*>(tensor.view().data);
  for (std::size_t i = 0; i < tensor.bytes(); ++i) sum = (sum ^ bytes[i]) * 0x100000001b3u;
  return sum;
}

// Forward and backward over the heads that `part` names: whole tensors on one rank, parts of them on several.
Result<std::vector<Tensor>> attend(const Problem& part, std::span<const Tensor> inputs) {
  const Tensor &q = inputs[0], &k = inputs[1], &v = inputs[2], &grad_out = inputs[3];
  CHORALE_ASSIGN_OR_RETURN(const Attention attention,
                           Attention::create(part, "auto", Device::cpu(), {Phase::forward, Phase::backward}));
  CHORALE_ASSIGN_OR_RETURN(const auto plan, attention.plan(Batch::packed({0, tokens})));
  const Tensor out = Tensor::zeros(part.dtype, {tokens, part.query_heads, part.head_dim});
  const Tensor lse = Tensor::zeros(DType::float32, {tokens, part.query_heads});
  CHORALE_RETURN_IF_ERROR(attention.forward(*plan, {.q = q, .k = k, .v = v, .out = out, .lse = lse}));
  const Tensor grad_q = q.clone(), grad_k = k.clone(), grad_v = v.clone();
  CHORALE_RETURN_IF_ERROR(attention.backward(*plan, {.q = q,
                                                     .k = k,
                                                     .v = v,
                                                     .out = out,
                                                     .lse = lse,
                                                     .grad_out = grad_out,
                                                     .grad_q = grad_q,
                                                     .grad_k = grad_k,
                                                     .grad_v = grad_v}));
  return std::vector{out, lse, grad_q, grad_k, grad_v};
}

Status run() {
  CHORALE_ASSIGN_OR_RETURN(const auto ranks, mpi_world());
  // ALiBi's slope differs from head to head, so a rank must know which heads are its own.
  const Problem whole{.query_heads = 8,
                      .kv_heads = 4,
                      .head_dim = 32,
                      .dtype = DType::float32,
                      .mask = mask::causal(),
                      .score = score::alibi(score::alibi_slopes(8))};
  CHORALE_ASSIGN_OR_RETURN(const Problem part, shard_heads(whole, *ranks));

  const Placement heads = Placement::shard(1);  // of [tokens, heads, head_dim]
  std::vector<DistributedTensor> inputs;
  for (const auto& [count, seed] : {std::pair{8, 1u}, {4, 2u}, {4, 3u}, {8, 4u}}) {  // q, k, v, grad_out
    CHORALE_ASSIGN_OR_RETURN(auto input, distribute(random_tensor({tokens, count, 32}, seed), heads, *ranks));
    inputs.push_back(input);
  }
  const std::vector in(inputs.size(), heads), out(5, heads);
  CHORALE_ASSIGN_OR_RETURN(
      const auto outputs,
      local_map([&](std::span<const Tensor> local) { return attend(part, local); }, inputs, in, out, *ranks));

  const char* names[] = {"out", "lse", "grad_q", "grad_k", "grad_v"};
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    CHORALE_ASSIGN_OR_RETURN(const Tensor full, outputs[i].full(*ranks));
    if (ranks->rank() == 0) std::printf("%-6s %016lx\n", names[i], checksum(full));
  }
  return Status::ok();
}

}  // namespace

int main() {
  const Status status = run();
  if (!status.is_ok()) std::cerr << "heads_over_ranks: " << status.message() << "\n";
  return status.is_ok() ? 0 : 2;
}
