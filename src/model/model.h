// Model: Qwen3, forward and backward by hand.
//
// Rows are tokens. Every row-wise operation gives a row the same bits however many rows there are and
// whichever threads run (docs/numerics.md, "Around attention"), and trainer and rollout call the same code
// here; only the attention that they pass in differs.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/implementation.h"
#include "chorale/status.h"
#include "chorale/tensor.h"
#include "model/config.h"

namespace chorale {

// Float32 tensors under Hugging Face's names ("model.layers.0.self_attn.q_proj.weight", ...), in a fixed
// order that depends on the config alone. Master weights, gradients and optimiser state all have this shape.
// With tied embeddings there is no lm_head.weight.
struct NamedTensor {
  std::string name;
  Tensor value;
};
using ParameterSet = std::vector<NamedTensor>;
// Names and shapes of a config, zero-filled: what gradients start from.
ParameterSet zero_parameters(const ModelConfig& config);
// Normal with deviation 0.02 (norms are 1), from a seed: the same on every machine.
ParameterSet random_parameters(const ModelConfig& config, std::uint64_t seed);

// How a caller runs attention inside the model. Views are [rows, heads, head_dim] in the compute type; q and
// k are normalised and rotated. An implementation may store k and v into a cache first.
class LayerAttention {
 public:
  virtual ~LayerAttention() = default;
  virtual Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                         const TensorView& out, const TensorView& lse) = 0;
  // Only trainers implement it. Views as in BackwardTensors.
  virtual Status backward(int layer, const BackwardTensors& tensors) {
    (void)layer, (void)tensors;
    return Status::unsupported("this attention has no backward");
  }
};

// Sees every operation's output as it is computed, for `chorale verify`. layer is -1 before the first layer
// ("embed") and config.num_hidden_layers after the last ("norm", "logits"). Inside a layer: "input_norm",
// "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "q_rotary", "k_rotary", "attention", "o_proj",
// "residual_1", "post_norm", "gate_proj", "up_proj", "swiglu", "down_proj", "residual_2". Rows of `output`
// are the rows of the call, those of "logits" its logit_rows; a row's elements are contiguous.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void record(int layer, std::string_view operation, const TensorView& output) = 0;
};

struct ModelInputs {
  std::span<const std::int32_t> tokens;      // [rows]
  std::span<const std::int32_t> positions;   // [rows], from 0 at each sequence's start
  std::span<const std::int32_t> logit_rows;  // which rows' logits are wanted, ascending
};

class Activations;  // what backward needs, kept by forward; opaque. One backward at a time.

class Model {
 public:
  // Packs the weights for the products. Fails on names or shapes that are not the config's.
  static Result<Model> create(const ModelConfig& config, const ParameterSet& parameters, int threads = 0);
  // New values after an optimiser step (or a checkpoint), in the same memory unless somebody else
  // (activations, a copy of the model) still looks at the old ones.
  Status set_parameters(const ParameterSet& parameters);

  const ModelConfig& config() const;

  // Logits [logit_rows, vocab_size] float32. With `activations`, keeps what backward needs; what is there
  // already is overwritten if nobody else looks at it and the number of rows is the same.
  Result<Tensor> forward(const ModelInputs& inputs, LayerAttention& attention,
                         std::shared_ptr<Activations>* activations = nullptr,
                         Observer* observer = nullptr) const;
  // The same in two steps, for more rows than logits fit in memory: what the head reads, [logit_rows,
  // hidden_size] float32, and the logits of some of its rows.
  Result<Tensor> forward_hidden(const ModelInputs& inputs, LayerAttention& attention,
                                std::shared_ptr<Activations>* activations = nullptr,
                                Observer* observer = nullptr) const;
  Result<Tensor> logits(const TensorView& hidden) const;

  // Adds d loss / d parameter into `gradients` (zero_parameters' shape). Deterministic: each sum in one fixed
  // order. grad_logits: [logit_rows, vocab_size] float32.
  Status backward(const Activations& activations, const TensorView& grad_logits, LayerAttention& attention,
                  ParameterSet& gradients) const;
  // In two steps, as above. Of some rows, ascending: adds the head's gradient and gives that of `hidden`;
  // then everything below, for all rows of forward_hidden together.
  Result<Tensor> backward_logits(const TensorView& hidden, const TensorView& grad_logits,
                                 ParameterSet& gradients) const;
  Status backward_hidden(const Activations& activations, const TensorView& grad_hidden,
                         LayerAttention& attention, ParameterSet& gradients) const;

 private:
  struct State;
  explicit Model(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace chorale
