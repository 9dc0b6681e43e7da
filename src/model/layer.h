// DecoderLayer: one layer of Qwen3, forward and backward over all rows of a call.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "chorale/status.h"
#include "chorale/tensor.h"
#include "model/config.h"
#include "model/linear.h"
#include "model/model.h"
#include "model/row_buffer.h"

namespace chorale {

// cos and sin of each row's position, [rows, head_dim / 2]: the same for every layer.
struct RotaryRows {
  RowBuffer cosines, sines;
};

// What a layer computes and its backward reads. q, k, v and out are in the compute type, as attention takes
// them.
struct LayerRows {
  LayerRows(const ModelConfig& config, std::int64_t rows, bool with_lse);

  RowBuffer input;                  // [rows, hidden_size]: the residual stream
  RowBuffer input_norm;             // [rows, hidden_size]
  RowBuffer q_proj, k_proj;         // [rows, heads * head_dim]
  Tensor q, k, v, out;              // [rows, heads, head_dim]
  Tensor lse;                       // [rows, heads] float32; empty unless wanted
  RowBuffer residual_1, post_norm;  // [rows, hidden_size]
  RowBuffer gate, up, swiglu;       // [rows, intermediate_size]
};

// What a layer computes and nobody reads afterwards, except an observer: shared by all layers.
struct LayerScratch {
  LayerScratch(const ModelConfig& config, std::int64_t rows);

  RowBuffer v_proj, q_norm, k_norm;  // [rows, heads * head_dim]
  RowBuffer attention;               // [rows, heads * head_dim]: `out` as float32
  RowBuffer o_proj, down_proj;       // [rows, hidden_size]
};

// Gradients of what the operations of the same name computed: shared by all layers.
struct LayerGradients {
  LayerGradients(const ModelConfig& config, std::int64_t rows);

  RowBuffer output;  // [rows, hidden_size]: in, of the layer's output; afterwards, of its input
  RowBuffer input, input_norm, residual_1, post_norm;
  RowBuffer partial;           // [rows, hidden_size]: one term of a sum of products
  RowBuffer gate, up, swiglu;  // [rows, intermediate_size]
  RowBuffer attention;         // [rows, heads * head_dim]
  RowBuffer attention_values;  // not a gradient: `out` as float32, which o_proj's weight gradient multiplies
  RowBuffer q_norm, k_norm, q_proj, k_proj, v_proj;
  Tensor out, q, k, v;  // compute type, as attention takes them
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const ParameterSet& parameters, int index);

  // Reads rows.input and fills the rest; `output` may be rows.input.
  Status forward(LayerRows& rows, const RotaryRows& rotary, LayerScratch& scratch, const RowBuffer& output,
                 LayerAttention& attention, Observer* observer, int threads) const;
  // Turns gradients.output into the gradient of the layer's input and adds to the layer's parameters in
  // `sums`.
  Status backward(const LayerRows& rows, const RotaryRows& rotary, LayerGradients& gradients,
                  LayerAttention& attention, ParameterSet& sums, int threads) const;

 private:
  void before_attention(LayerRows& rows, const RotaryRows& rotary, LayerScratch& scratch, RowRange range,
                        int threads) const;
  void after_attention(LayerRows& rows, LayerScratch& scratch, const RowBuffer& output, RowRange range,
                       int threads) const;
  void backward_to_attention(const LayerRows& rows, LayerGradients& gradients, RowRange range,
                             int threads) const;
  void backward_from_attention(const LayerRows& rows, const RotaryRows& rotary, LayerGradients& gradients,
                               RowRange range, int threads) const;
  void backward_weights(const LayerRows& rows, const LayerGradients& gradients, ParameterSet& sums,
                        int threads) const;
  void norm(const RowBuffer& x, const std::vector<float>& weight, RowRange range, const RowBuffer& y) const;
  void norm_and_rotate(const RowBuffer& x, const std::vector<float>& weight, const RotaryRows& rotary,
                       RowRange range, const RowBuffer& normed, const Tensor& rotated) const;
  void norm_and_rotate_backward(const RowBuffer& x, const std::vector<float>& weight,
                                const RotaryRows& rotary, RowRange range, const Tensor& grad_rotated,
                                const RowBuffer& grad_normed, const RowBuffer& grad_x) const;

  const ModelConfig config_;
  const int index_;
  Linear q_proj_, k_proj_, v_proj_, o_proj_, gate_proj_, up_proj_, down_proj_;
  std::vector<float> q_norm_, k_norm_, input_norm_, post_norm_;
};

// A norm's weight in the compute type.
std::vector<float> rounded_weight(const Tensor& weight, DType type);

// Weight gradients of a step: independent tasks, each of which sums over rows in ascending order.
class WeightGradients {
 public:
  void add_linear(const RowBuffer& grad_y, const RowBuffer& x, const Tensor& gradient);
  // Rows hold one or more vectors of the norm's length.
  void add_norm(const RowBuffer& grad_y, const RowBuffer& x, float epsilon, DType type,
                const Tensor& gradient);
  void run(int threads) const;

 private:
  std::vector<std::function<void()>> tasks_;
};

}  // namespace chorale
