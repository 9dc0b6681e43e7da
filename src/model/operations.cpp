#include "model/operations.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "simd/simd.h"

namespace chorale::ops {
namespace {

// Values that an operation keeps in a stack buffer at a time; a multiple of simd::lanes.
constexpr std::int64_t chunk_size = 256;

template <class Body>
void for_chunks(std::int64_t n, const Body& body) {
  for (std::int64_t begin = 0; begin < n; begin += chunk_size) body(begin, std::min(chunk_size, n - begin));
}

// sigmoid[i] = 1 / (1 + exp(-x[i]))
void logistic(const float* x, std::int64_t n, float* sigmoid) {
  for (std::int64_t i = 0; i < n; ++i) sigmoid[i] = -x[i];
  simd::exp(sigmoid, sigmoid, n);
  for (std::int64_t i = 0; i < n; ++i) sigmoid[i] = 1.0f / (1.0f + sigmoid[i]);
}

}  // namespace

float inverse_root_mean_square(const float* x, std::int64_t n, float epsilon) {
  return 1.0f / std::sqrt(simd::dot(x, x, n) / static_cast<float>(n) + epsilon);
}

void round(DType type, float* x, std::int64_t n) {
  if (type == DType::float32) return;
  for_chunks(n, [&](std::int64_t begin, std::int64_t count) {
    std::array<std::uint16_t, chunk_size> narrow;
    simd::from_float(x + begin, type, narrow.data(), count);
    simd::to_float(narrow.data(), type, x + begin, count);
  });
}

void add(const float* x, const float* z, std::int64_t n, DType type, float* y) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] + z[i];
  round(type, y, n);
}

void rms_norm(const float* x, const float* weight, std::int64_t n, float epsilon, DType type, float* y) {
  const float factor = inverse_root_mean_square(x, n, epsilon);
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * factor;
  round(type, y, n);
  for (std::int64_t i = 0; i < n; ++i) y[i] *= weight[i];
  round(type, y, n);
}

// With r the inverse root and g = weight * grad_y: grad_x = r g - x r^3 / n (g . x).
void rms_norm_backward(const float* x, const float* weight, std::int64_t n, float epsilon,
                       const float* grad_y, float* grad_x) {
  const float factor = inverse_root_mean_square(x, n, epsilon);
  for (std::int64_t i = 0; i < n; ++i) grad_x[i] = grad_y[i] * weight[i];
  const float along = -factor * factor * (simd::dot(grad_x, x, n) / static_cast<float>(n));
  simd::scale_add(x, along, grad_x, n);
  simd::scale(grad_x, factor, n);
}

void rms_norm_backward_weight(const float* x, std::int64_t n, float factor, DType type, const float* grad_y,
                              float* grad_weight) {
  for_chunks(n, [&](std::int64_t begin, std::int64_t count) {
    std::array<float, chunk_size> normed;
    for (std::int64_t i = 0; i < count; ++i) normed[i] = x[begin + i] * factor;
    round(type, normed.data(), count);
    for (std::int64_t i = 0; i < count; ++i) grad_weight[begin + i] += normed[i] * grad_y[begin + i];
  });
}

// Both products are rounded before they are added, as Transformers does.
void rotate(const float* x, const float* cosines, const float* sines, std::int64_t n, DType type, float* y) {
  const std::int64_t half = n / 2;
  for_chunks(half, [&](std::int64_t begin, std::int64_t count) {
    std::array<float, chunk_size> turned_first, turned_second;
    const float *first = x + begin, *second = x + half + begin, *cosine = cosines + begin,
                *sine = sines + begin;
    float *y_first = y + begin, *y_second = y + half + begin;
    for (std::int64_t i = 0; i < count; ++i) {
      y_first[i] = first[i] * cosine[i];
      y_second[i] = second[i] * cosine[i];
      turned_first[i] = -second[i] * sine[i];
      turned_second[i] = first[i] * sine[i];
    }
    for (float* product : {y_first, y_second, turned_first.data(), turned_second.data()})
      round(type, product, count);
    add(y_first, turned_first.data(), count, type, y_first);
    add(y_second, turned_second.data(), count, type, y_second);
  });
}

void rotate_backward(const float* grad_y, const float* cosines, const float* sines, std::int64_t n,
                     float* grad_x) {
  const std::int64_t half = n / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    grad_x[i] = grad_y[i] * cosines[i] + grad_y[i + half] * sines[i];
    grad_x[i + half] = grad_y[i + half] * cosines[i] - grad_y[i] * sines[i];
  }
}

void rotary_angles(std::int64_t position, const double* frequencies, std::int64_t half, DType type,
                   float* cosines, float* sines) {
  for (std::int64_t i = 0; i < half; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
  round(type, cosines, half);
  round(type, sines, half);
}

void swiglu(const float* gate, const float* up, std::int64_t n, DType type, float* y) {
  logistic(gate, n, y);
  for (std::int64_t i = 0; i < n; ++i) y[i] *= gate[i];
  round(type, y, n);
  for (std::int64_t i = 0; i < n; ++i) y[i] *= up[i];
  round(type, y, n);
}

void swiglu_backward(const float* gate, const float* up, std::int64_t n, DType type, const float* grad_y,
                     float* grad_gate, float* grad_up) {
  for_chunks(n, [&](std::int64_t begin, std::int64_t count) {
    std::array<float, chunk_size> sigmoid{}, activation;
    const float *g = gate + begin, *u = up + begin, *grad = grad_y + begin;
    logistic(g, count, sigmoid.data());
    for (std::int64_t i = 0; i < count; ++i) activation[i] = sigmoid[i] * g[i];
    round(type, activation.data(), count);
    for (std::int64_t i = 0; i < count; ++i) {
      grad_up[begin + i] = grad[i] * activation[i];
      grad_gate[begin + i] = grad[i] * u[i] * (sigmoid[i] + g[i] * sigmoid[i] * (1.0f - sigmoid[i]));
    }
  });
}

}  // namespace chorale::ops
