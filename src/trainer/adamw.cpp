#include "trainer/adamw.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/threads.h"

namespace chorale {
namespace {

// Parameters are worked on in blocks of this many elements. The norm is summed within a block and then over
// blocks in order, so it does not depend on who computed which block.
constexpr std::int64_t block_elements = 1 << 14;

struct Block {
  std::size_t tensor;
  std::int64_t first, last;
};

std::vector<Block> blocks_of(const ParameterSet& set) {
  std::vector<Block> blocks;
  for (std::size_t i = 0; i < set.size(); ++i)
    for (std::int64_t first = 0; first < set[i].value.elements(); first += block_elements)
      blocks.push_back({i, first, std::min(first + block_elements, set[i].value.elements())});
  return blocks;
}

double norm_of(const ParameterSet& set, const std::vector<Block>& blocks, int threads) {
  std::vector<double> squares(blocks.size());
  parallel_for(static_cast<std::int64_t>(blocks.size()), threads, [&](std::int64_t index, int) {
    const Block& block = blocks[index];
    const auto values = set[block.tensor].value.as<float>();
    // Several sums, since one would wait for each addition.
    std::array<double, 16> sums{};
    for (std::int64_t i = block.first; i < block.last; ++i)
      sums[static_cast<std::size_t>(i % 16)] += static_cast<double>(values[i]) * values[i];
    squares[index] = std::accumulate(sums.begin(), sums.end(), 0.0);
  });
  double total = 0;
  for (const double square : squares) total += square;
  return std::sqrt(total);
}

bool same_shapes(const ParameterSet& a, const ParameterSet& b) {
  return std::ranges::equal(a, b, [](const NamedTensor& x, const NamedTensor& y) {
    return x.name == y.name && x.value.view().rank == y.value.view().rank &&
           x.value.view().shape == y.value.view().shape;
  });
}

}  // namespace

Status AdamWConfig::validate() const {
  // Comparisons are written so that NaN fails them.
  if (!(learning_rate > 0) || !std::isfinite(learning_rate))
    return Status::invalid_argument(fmt::format("learning_rate {}: must be positive", learning_rate));
  if (warmup_steps < 0)
    return Status::invalid_argument(fmt::format("warmup_steps {}: must not be negative", warmup_steps));
  if (!(beta1 >= 0 && beta1 < 1))
    return Status::invalid_argument(fmt::format("beta1 {}: must be at least 0 and less than 1", beta1));
  if (!(beta2 >= 0 && beta2 < 1))
    return Status::invalid_argument(fmt::format("beta2 {}: must be at least 0 and less than 1", beta2));
  if (!(epsilon > 0) || !std::isfinite(epsilon))
    return Status::invalid_argument(fmt::format("epsilon {}: must be positive", epsilon));
  if (!(weight_decay >= 0) || !std::isfinite(weight_decay))
    return Status::invalid_argument(fmt::format("weight_decay {}: must not be negative", weight_decay));
  if (!(max_grad_norm >= 0))
    return Status::invalid_argument(fmt::format("max_grad_norm {}: must not be negative", max_grad_norm));
  return Status::ok();
}

float AdamWConfig::rate(std::int64_t step) const {
  if (step >= warmup_steps) return learning_rate;
  return learning_rate * static_cast<float>(step) / static_cast<float>(warmup_steps);
}

Result<AdamW> AdamW::create(const AdamWConfig& config, const ModelConfig& model) {
  CHORALE_RETURN_IF_ERROR(config.validate());
  AdamW optimizer;
  optimizer.config_ = config;
  optimizer.first_moment_ = zero_parameters(model);
  optimizer.second_moment_ = zero_parameters(model);
  return optimizer;
}

Result<double> AdamW::step(ParameterSet& parameters, const ParameterSet& gradients, int threads) {
  if (!same_shapes(parameters, first_moment_) || !same_shapes(gradients, first_moment_))
    return Status::invalid_argument(
        "parameters and gradients must have the names and shapes of the optimiser's model");
  const std::vector<Block> blocks = blocks_of(parameters);
  const double norm = norm_of(gradients, blocks, threads);
  if (!std::isfinite(norm))
    return Status::invalid_argument(
        fmt::format("the gradient's norm is {} at optimiser step {}: it must be finite", norm, steps_ + 1));

  ++steps_;
  const bool clipped = config_.max_grad_norm > 0 && norm > config_.max_grad_norm;
  const float factor = clipped ? static_cast<float>(config_.max_grad_norm / norm) : 1.0f;
  const float rate = config_.rate(steps_);
  const auto t = static_cast<double>(steps_);
  const auto first_correction = static_cast<float>(1 - std::pow(static_cast<double>(config_.beta1), t));
  const auto second_correction = static_cast<float>(1 - std::pow(static_cast<double>(config_.beta2), t));

  parallel_for(static_cast<std::int64_t>(blocks.size()), threads, [&](std::int64_t index, int) {
    const Block& block = blocks[index];
    const auto w = parameters[block.tensor].value.as<float>();
    const auto g = gradients[block.tensor].value.as<float>();
    const auto m = first_moment_[block.tensor].value.as<float>();
    const auto v = second_moment_[block.tensor].value.as<float>();
    const float decay = parameters[block.tensor].value.view().rank > 1 ? config_.weight_decay : 0.0f;
    for (std::int64_t i = block.first; i < block.last; ++i) {
      const float gradient = g[i] * factor;
      m[i] = config_.beta1 * m[i] + (1 - config_.beta1) * gradient;
      v[i] = config_.beta2 * v[i] + (1 - config_.beta2) * gradient * gradient;
      const float direction =
          m[i] / first_correction / (std::sqrt(v[i] / second_correction) + config_.epsilon);
      w[i] -= rate * (direction + decay * w[i]);
    }
  });
  return norm;
}

Status AdamW::restore(std::int64_t steps, ParameterSet first_moment, ParameterSet second_moment) {
  if (steps < 0)
    return Status::invalid_argument(fmt::format("optimiser steps {}: must not be negative", steps));
  if (!same_shapes(first_moment, first_moment_) || !same_shapes(second_moment, second_moment_))
    return Status::invalid_argument("the optimiser's moments do not have the model's names and shapes");
  steps_ = steps;
  first_moment_ = std::move(first_moment);
  second_moment_ = std::move(second_moment);
  return Status::ok();
}

}  // namespace chorale
