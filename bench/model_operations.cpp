#include "model_operations.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "model/linear.h"
#include "model/log_prob.h"
#include "model/operations.h"

namespace chorale::bench {
namespace {

// By the clock; with one thread by that thread's processor time, which a busy machine does not stretch.
double now(int threads) {
  timespec time{};
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The seconds of one call, the best of several.
template <class Call>
double best_seconds(int threads, const Call& call) {
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    const double start = now(threads);
    call();
    best = std::min(best, now(threads) - start);
  }
  return best;
}

}  // namespace

void print_operations(const ModelConfig& config, std::int64_t rows, int threads, double peak) {
  const std::int64_t hidden = config.hidden_size, wide = config.intermediate_size;
  const auto noise = [](std::int64_t count, std::int64_t columns) {
    const RowBuffer buffer(count, columns);
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t j = 0; j < columns; ++j)
        buffer[i][j] = static_cast<float>((i * 7 + j * 3) % 64 - 32) / 32;
    return buffer;
  };
  const auto line = [&](const char* what, double flops, double seconds) {
    fmt::print("    {:34} {:8.2f} ms", what, 1e3 * seconds);
    if (flops > 0)
      fmt::print("  {:7.0f} GFLOP/s, {:3.0f}% of the peak", flops / seconds / 1e9,
                 100 * flops / seconds / peak);
    fmt::print("\n");
    std::fflush(stdout);
  };
  fmt::print("operations on {} rows:\n", rows);
  for (const auto& [inputs, outputs] : {std::pair{hidden, wide}, {wide, hidden}, {hidden, hidden}}) {
    const RowBuffer x = noise(rows, inputs), y = noise(rows, outputs), grad_x = noise(rows, inputs);
    const Tensor weight = Tensor::zeros(DType::float32, {outputs, inputs}), sums = weight.clone();
    Linear linear(weight, config.compute_dtype, threads);
    linear.prepare_backward(threads);
    const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(inputs * outputs);
    const std::string shape = fmt::format("{} to {}, ", inputs, outputs);
    line((shape + "forward").c_str(), flops, best_seconds(threads, [&] {
           for_row_blocks(rows, threads, [&](RowRange range, int inner) {
             linear.forward(x, y, range, config.compute_dtype, inner);
           });
         }));
    line((shape + "backward").c_str(), flops, best_seconds(threads, [&] {
           for_row_blocks(rows, threads,
                          [&](RowRange range, int inner) { linear.backward(y, grad_x, range, inner); });
         }));
    line((shape + "weight gradient").c_str(), flops,
         best_seconds(threads, [&] { Linear::backward_weight(y, x, config.compute_dtype, sums, threads); }));
    line((shape + "packing").c_str(), 0, best_seconds(threads, [&] { linear.assign(weight, threads); }));
  }
  const RowBuffer x = noise(rows, wide), y = noise(rows, wide), z = noise(rows, wide), g = noise(rows, wide);
  const auto each = [&](const char* what, const auto& body) {
    line(what, 0, best_seconds(threads, [&] { for_each_row({0, rows}, threads, body); }));
  };
  const std::vector<float> ones(static_cast<std::size_t>(wide), 1.0f);
  each("norm of hidden",
       [&](std::int64_t i) { ops::rms_norm(x[i], ones.data(), hidden, 1e-6f, config.compute_dtype, y[i]); });
  each("norm of hidden, backward",
       [&](std::int64_t i) { ops::rms_norm_backward(x[i], ones.data(), hidden, 1e-6f, z[i], y[i]); });
  each("swiglu", [&](std::int64_t i) { ops::swiglu(x[i], z[i], wide, config.compute_dtype, y[i]); });
  each("swiglu, backward", [&](std::int64_t i) {
    ops::swiglu_backward(x[i], z[i], wide, config.compute_dtype, z[i], y[i], g[i]);
  });
  constexpr std::int64_t tokens = 64;
  const RowBuffer logits = noise(tokens, config.vocab_size);
  const auto vocabulary = [&](const char* what, const auto& body) {
    line(what, 0, best_seconds(threads, [&] { for_each_row({0, tokens}, threads, body); }));
  };
  vocabulary("log-probability of 64 tokens",
             [&](std::int64_t i) { (void)token_log_prob(logits[i], config.vocab_size, 1.0f, 1); });
  vocabulary("log-probability of 64, backward", [&](std::int64_t i) {
    token_log_prob_backward(normalizer(logits[i], 16, 1.0f), logits[i], config.vocab_size, 1.0f, 1, 0.001f,
                            logits[i]);
  });
}

}  // namespace chorale::bench
