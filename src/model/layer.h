// DecoderLayer: one layer of Qwen3, forward and backward over all rows of a call.
#pragma once

#include <cstdint>
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

// What a layer computes: shared by all layers. q, k, v and out are in the compute type, as attention takes
// them.
struct LayerRows {
  LayerRows(const ModelConfig& config, std::int64_t rows);

  RowBuffer input;                          // [rows, hidden_size]: the residual stream
  RowBuffer input_norm;                     // [rows, hidden_size]
  RowBuffer q_proj, k_proj, v_proj;         // [rows, heads * head_dim]
  RowBuffer q_norm, k_norm;                 // [rows, heads * head_dim]
  Tensor q, k, v, out;                      // [rows, heads, head_dim]
  Tensor lse;                               // [rows, heads] float32; empty unless wanted
  RowBuffer attention;                      // [rows, heads * head_dim]: `out` as float32
  RowBuffer o_proj, residual_1, post_norm;  // [rows, hidden_size]
  RowBuffer gate, up, swiglu;               // [rows, intermediate_size]
  RowBuffer down_proj;                      // [rows, hidden_size]
};

// What backward reads of one layer, in the compute type, which holds these values exactly. The rest it
// computes again from them.
struct LayerActivations {
  LayerActivations(const ModelConfig& config, std::int64_t rows);

  Tensor input, q_proj, k_proj, residual_1, gate, up;  // [rows, columns]
  Tensor q, k, v, out, lse;                            // as in LayerRows
};

// Gradients of what the operations of the same name computed: shared by all layers.
struct LayerGradients {
  LayerGradients(const ModelConfig& config, std::int64_t rows);

  RowBuffer output;  // [rows, hidden_size]: in, of the layer's output; afterwards, of its input
  RowBuffer input, input_norm, residual_1, post_norm;
  RowBuffer partial;           // [rows, hidden_size]: one term of a sum of products
  RowBuffer gate, up, swiglu;  // [rows, intermediate_size]
  RowBuffer attention;         // [rows, heads * head_dim]
  RowBuffer q_norm, k_norm, q_proj, k_proj, v_proj;
  Tensor out, q, k, v;  // compute type, as attention takes them
};

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, const ParameterSet& parameters, int index, int threads);
  // New values of the same shape, in the same memory.
  void assign(const ParameterSet& parameters, int threads);

  // Turns rows.input into the layer's output and fills the rest. With `kept`, keeps what backward needs.
  Status forward(LayerRows& rows, const RotaryRows& rotary, LayerActivations* kept, LayerAttention& attention,
                 Observer* observer, int threads) const;
  // Turns gradients.output into the gradient of the layer's input and adds to the layer's parameters in
  // `sums`. `rows` is scratch.
  Status backward(const LayerActivations& kept, LayerRows& rows, const RotaryRows& rotary,
                  LayerGradients& gradients, LayerAttention& attention, ParameterSet& sums,
                  int threads) const;

 private:
  void before_attention(const LayerRows& rows, const RotaryRows& rotary, LayerActivations* kept,
                        RowRange range, int threads) const;
  void after_attention(const LayerRows& rows, LayerActivations* kept, RowRange range, int threads) const;
  void observe(const LayerRows& rows, Observer& observer) const;
  void backward_to_attention(const LayerActivations& kept, const LayerRows& rows, LayerGradients& gradients,
                             RowRange range, int threads) const;
  void backward_from_attention(const LayerActivations& kept, const LayerRows& rows, const RotaryRows& rotary,
                               LayerGradients& gradients, RowRange range, int threads) const;
  void backward_weights(const LayerRows& rows, const LayerGradients& gradients, ParameterSet& sums,
                        int threads) const;
  void norm(const float* x, const std::vector<float>& weight, float* y) const;
  void norm_and_rotate(const float* x, const std::vector<float>& weight, std::int64_t columns,
                       const float* cosines, const float* sines, float* normed, void* rotated) const;
  void norm_and_rotate_backward(const float* x, const std::vector<float>& weight, std::int64_t columns,
                                const float* cosines, const float* sines, float* grad_normed,
                                float* grad_x) const;

  const ModelConfig config_;
  const int index_;
  Linear q_proj_, k_proj_, v_proj_, o_proj_, gate_proj_, up_proj_, down_proj_;
  std::vector<float> q_norm_, k_norm_, input_norm_, post_norm_;
};

// A norm's weight in the compute type.
std::vector<float> rounded_weight(const Tensor& weight, DType type);

// Adds sum over rows of a norm's part to its weight's gradient, rows ascending. Rows hold one or more vectors
// of the norm's length.
void add_norm_gradient(const RowBuffer& grad_y, const RowBuffer& x, float epsilon, DType type,
                       const Tensor& gradient, int threads);

}  // namespace chorale
