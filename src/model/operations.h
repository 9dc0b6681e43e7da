// Operations on one row, forward and backward side by side.
//
// `type` is the compute type: with bfloat16 an operation rounds its result (and the intermediate values that
// a bfloat16 Transformers model rounds) to bfloat16, though rows are held as float32. Gradients are float32
// throughout: rounding is taken as the identity. Each sum has one order that depends on the row's length
// alone.
#pragma once

#include <cstdint>

#include "chorale/tensor.h"

namespace chorale::ops {

// Rounds n values in place: to bfloat16, or not at all for float32.
void round(DType type, float* x, std::int64_t n);

// y = x + z. y may be x or z.
void add(const float* x, const float* z, std::int64_t n, DType type, float* y);

// y = weight * (x / sqrt(mean(x^2) + epsilon)). (Zhang and Sennrich 2019.)
void rms_norm(const float* x, const float* weight, std::int64_t n, float epsilon, DType type, float* y);
// grad_x is written; it may be grad_y.
void rms_norm_backward(const float* x, const float* weight, std::int64_t n, float epsilon,
                       const float* grad_y, float* grad_x);
float inverse_root_mean_square(const float* x, std::int64_t n, float epsilon);
// Adds this row's part of the weight's gradient, for some of its elements. `factor`: the row's inverse root.
void rms_norm_backward_weight(const float* x, std::int64_t n, float factor, DType type, const float* grad_y,
                              float* grad_weight);

// Rotary embedding of one head (Su et al. 2021), halves paired as in Transformers: with h = n / 2,
// y[i] = x[i] cos[i] - x[i + h] sin[i], y[i + h] = x[i + h] cos[i] + x[i] sin[i]. y may not be x.
void rotate(const float* x, const float* cosines, const float* sines, std::int64_t n, DType type, float* y);
// The rotation back. grad_x may not be grad_y.
void rotate_backward(const float* grad_y, const float* cosines, const float* sines, std::int64_t n,
                     float* grad_x);
// cosines[i] and sines[i] of position * frequencies[i], the angle in float64, then rounded to float32 and to
// `type`.
void rotary_angles(std::int64_t position, const double* frequencies, std::int64_t half, DType type,
                   float* cosines, float* sines);

// y = gate * sigmoid(gate) * up. (Shazeer 2020.) y may not be gate or up.
void swiglu(const float* gate, const float* up, std::int64_t n, DType type, float* y);
void swiglu_backward(const float* gate, const float* up, std::int64_t n, DType type, const float* grad_y,
                     float* grad_gate, float* grad_up);

}  // namespace chorale::ops
