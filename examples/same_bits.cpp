#include <array>
#include <cmath>
#include <cstring>
#include <iostream>

#include "chorale/chorale.h"
using namespace chorale;

// Anything will do for this example.
Tensor wave(std::initializer_list<std::int64_t> shape, float step) {
  Tensor tensor = Tensor::zeros(DType::float32, shape);
  for (std::int64_t i = 0; i < tensor.elements(); ++i) tensor.as<float>()[i] = std::sin(step * i);
  return tensor;
}

int main() {
  // What a layer computes: the same for every role.
  const Problem problem{.query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 32,
                        .dtype = DType::float32,
                        .mask = mask::causal() && mask::window(64)};

  // Which implementation each role uses, and why.
  const Roles roles = Roles::load("examples/roles/short.yaml").value();
  const Resolution actor = roles.resolve(Role::actor, problem, Device::cpu()).value();
  const Resolution rollout = roles.resolve(Role::rollout, problem, Device::cpu()).value();
  std::cout << actor.explain() << rollout.explain();

  // The trainer sees all tokens at once.
  constexpr int tokens = 100;
  const Tensor q = wave({tokens, 4, 32}, 0.1f), k = wave({tokens, 2, 32}, 0.2f),
               v = wave({tokens, 2, 32}, 0.3f);
  const Tensor trained = Tensor::zeros(DType::float32, {tokens, 4, 32});
  const Attention trainer = actor.build().value();
  const auto packed = trainer.plan(Batch::packed({0, tokens})).value();
  Status status = trainer.forward(*packed, {.q = q, .k = k, .v = v, .out = trained});

  // The generator keeps keys and values in pages and computes the last token alone.
  KvCache cache =
      KvCache::create({.kv_heads = 2, .head_dim = 32, .dtype = DType::float32, .pages = 8}).value();
  const auto sequence = cache.add();
  const auto slots = cache.append(sequence, tokens).value();
  if (status.is_ok()) status = cache.store(0, slots, k, v);
  const Attention generator = rollout.build().value();
  const auto paged = generator.plan(cache.batch(std::array{sequence}, std::array{1}).value()).value();
  const Tensor generated = Tensor::zeros(DType::float32, {1, 4, 32});
  const TensorView last = q.view().slice(0, tokens - 1, tokens);
  if (status.is_ok())
    status =
        generator.forward(*paged, {.q = last, .k = cache.keys(0), .v = cache.values(0), .out = generated});

  const float* trained_last = &trained.as<float>()[(tokens - 1) * 4 * 32];
  const bool same =
      status.is_ok() && std::memcmp(generated.view().data, trained_last, generated.bytes()) == 0;
  std::cout << status.message() << "same bits: " << (same ? "yes" : "no") << "\n";
  return same ? 0 : 1;
}
