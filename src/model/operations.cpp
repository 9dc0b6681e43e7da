// The loops of operations.h, compiled for each instruction set by Highway's foreach_target. Each step is one
// correctly rounded operation per element (or a function of simd/math-inl.h), so all sets give the same bits.
#include "model/operations.h"

#include <array>
#include <cmath>
#include <cstring>

#include "simd/product.h"
#include "simd/simd.h"

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/operations.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "simd/math-inl.h"

#ifndef CHORALE_OPERATIONS_TABLE
#define CHORALE_OPERATIONS_TABLE
namespace chorale::ops {
// What each instruction set provides, for one rounding.
struct Functions {
  void (*add)(const float*, const float*, std::int64_t, float*);
  void (*norm)(const float*, const float*, std::int64_t, float, float*);
  void (*norm_weight)(const float*, std::int64_t, float, const float*, float*);
  void (*rotate)(const float*, const float*, const float*, std::int64_t, float*);
  void (*swiglu)(const float*, const float*, std::int64_t, float*);
  void (*swiglu_backward)(const float*, const float*, std::int64_t, const float*, float*, float*);
};
}  // namespace chorale::ops
#endif

HWY_BEFORE_NAMESPACE();
namespace chorale::ops {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::exp_vector;

using D = hn::CappedTag<float, 16>;
using V = hn::Vec<D>;
constexpr std::int64_t N = hn::MaxLanes(D());

// How a vector is read and written: whole, or the last elements of a row through a copy padded with zeros, so
// that both run the same instructions.
struct Whole {
  HWY_INLINE V load(const float* from) const { return hn::LoadU(D(), from); }
  HWY_INLINE void store(V v, float* to) const { hn::StoreU(v, D(), to); }
};
struct Part {
  std::size_t bytes;
  HWY_INLINE V load(const float* from) const {
    alignas(64) float all[16] = {};
    std::memcpy(all, from, bytes);
    return hn::Load(D(), all);
  }
  HWY_INLINE void store(V v, float* to) const {
    alignas(64) float all[16];
    hn::Store(v, D(), all);
    std::memcpy(to, all, bytes);
  }
};
// body(access, i) for each vector of n elements.
template <class Body>
HWY_INLINE void for_vectors(std::int64_t n, const Body& body) {
  std::int64_t i = 0;
  for (; i + N <= n; i += N) body(Whole{}, i);
  if (i < n) body(Part{static_cast<std::size_t>(n - i) * sizeof(float)}, i);
}

struct Exact {
  static HWY_INLINE V round(V x) { return x; }
};
struct Bfloat16 {
  static HWY_INLINE V round(V x) { return simd::HWY_NAMESPACE::round_to_bfloat16(D(), x); }
};

HWY_INLINE V logistic(V x) {
  const V one = hn::Set(D(), 1.0f);
  return hn::Div(one, hn::Add(one, exp_vector(D(), hn::Neg(x))));
}

template <class R>
void add_rows(const float* x, const float* z, std::int64_t n, float* y) {
  for_vectors(n, [=](auto access, std::int64_t i) HWY_ATTR {
    access.store(R::round(hn::Add(access.load(x + i), access.load(z + i))), y + i);
  });
}

template <class R>
void norm_row(const float* x, const float* weight, std::int64_t n, float factor, float* y) {
  for_vectors(n, [=](auto access, std::int64_t i) HWY_ATTR {
    const V normed = R::round(hn::Mul(access.load(x + i), hn::Set(D(), factor)));
    access.store(R::round(hn::Mul(normed, access.load(weight + i))), y + i);
  });
}

template <class R>
void norm_weight_row(const float* x, std::int64_t n, float factor, const float* grad_y, float* grad_weight) {
  for_vectors(n, [=](auto access, std::int64_t i) HWY_ATTR {
    const V normed = R::round(hn::Mul(access.load(x + i), hn::Set(D(), factor)));
    access.store(hn::Add(access.load(grad_weight + i), hn::Mul(normed, access.load(grad_y + i))),
                 grad_weight + i);
  });
}

void multiply_rows(const float* x, const float* z, std::int64_t n, float* y) {
  for_vectors(n, [=](auto access, std::int64_t i)
                     HWY_ATTR { access.store(hn::Mul(access.load(x + i), access.load(z + i)), y + i); });
}

// Both products are rounded before they are added, as Transformers does.
template <class R>
void rotate_row(const float* x, const float* cosines, const float* sines, std::int64_t half, float* y) {
  for_vectors(half, [=](auto access, std::int64_t i) HWY_ATTR {
    const V first = access.load(x + i), second = access.load(x + half + i);
    const V cosine = access.load(cosines + i), sine = access.load(sines + i);
    const V turned_first = R::round(hn::Mul(hn::Neg(second), sine)),
            turned_second = R::round(hn::Mul(first, sine));
    access.store(R::round(hn::Add(R::round(hn::Mul(first, cosine)), turned_first)), y + i);
    access.store(R::round(hn::Add(R::round(hn::Mul(second, cosine)), turned_second)), y + half + i);
  });
}

void rotate_back_row(const float* grad_y, const float* cosines, const float* sines, std::int64_t half,
                     float* grad_x) {
  for_vectors(half, [=](auto access, std::int64_t i) HWY_ATTR {
    const V first = access.load(grad_y + i), second = access.load(grad_y + half + i);
    const V cosine = access.load(cosines + i), sine = access.load(sines + i);
    access.store(hn::Add(hn::Mul(first, cosine), hn::Mul(second, sine)), grad_x + i);
    access.store(hn::Sub(hn::Mul(second, cosine), hn::Mul(first, sine)), grad_x + half + i);
  });
}

template <class R>
void swiglu_row(const float* gate, const float* up, std::int64_t n, float* y) {
  for_vectors(n, [=](auto access, std::int64_t i) HWY_ATTR {
    const V g = access.load(gate + i);
    const V activation = R::round(hn::Mul(logistic(g), g));
    access.store(R::round(hn::Mul(activation, access.load(up + i))), y + i);
  });
}

template <class R>
void swiglu_backward_row(const float* gate, const float* up, std::int64_t n, const float* grad_y,
                         float* grad_gate, float* grad_up) {
  for_vectors(n, [=](auto access, std::int64_t i) HWY_ATTR {
    const V g = access.load(gate + i), grad = access.load(grad_y + i), one = hn::Set(D(), 1.0f);
    const V sigmoid = logistic(g);
    const V activation = R::round(hn::Mul(sigmoid, g));
    const V slope = hn::Add(sigmoid, hn::Mul(hn::Mul(g, sigmoid), hn::Sub(one, sigmoid)));
    const V through_up = hn::Mul(grad, access.load(up + i));
    access.store(hn::Mul(grad, activation), grad_up + i);
    access.store(hn::Mul(through_up, slope), grad_gate + i);
  });
}

template <class R>
constexpr Functions functions_of() {
  return {add_rows<R>, norm_row<R>, norm_weight_row<R>, rotate_row<R>, swiglu_row<R>, swiglu_backward_row<R>};
}

const Functions* functions_of_target(DType type) {
  static constexpr Functions exact = functions_of<Exact>(), bfloat16 = functions_of<Bfloat16>();
  return type == DType::bfloat16 ? &bfloat16 : &exact;
}

}  // namespace HWY_NAMESPACE
}  // namespace chorale::ops
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace chorale::ops {
namespace {

HWY_EXPORT(functions_of_target);
HWY_EXPORT(multiply_rows);
HWY_EXPORT(rotate_back_row);

const Functions& functions(DType type) {
  // The first call of level() settles which targets CHORALE_SIMD allows.
  static const bool settled = !simd::level().empty();
  (void)settled;
  return *HWY_DYNAMIC_DISPATCH(functions_of_target)(type);
}

}  // namespace

float inverse_root_mean_square(const float* x, std::int64_t n, float epsilon) {
  return 1.0f / std::sqrt(simd::dot(x, x, n) / static_cast<float>(n) + epsilon);
}

void round(DType type, float* x, std::int64_t n) {
  if (type == DType::bfloat16) simd::round_rows(x, 0, 1, n);
}

void add(const float* x, const float* z, std::int64_t n, DType type, float* y) {
  functions(type).add(x, z, n, y);
}

void rms_norm(const float* x, const float* weight, std::int64_t n, float epsilon, DType type, float* y) {
  functions(type).norm(x, weight, n, inverse_root_mean_square(x, n, epsilon), y);
}

// With r the inverse root and g = weight * grad_y: grad_x = r g - x r^3 / n (g . x).
void rms_norm_backward(const float* x, const float* weight, std::int64_t n, float epsilon,
                       const float* grad_y, float* grad_x) {
  const float factor = inverse_root_mean_square(x, n, epsilon);
  HWY_DYNAMIC_DISPATCH(multiply_rows)(grad_y, weight, n, grad_x);
  const float along = -factor * factor * (simd::dot(grad_x, x, n) / static_cast<float>(n));
  simd::scale_add(x, along, grad_x, n);
  simd::scale(grad_x, factor, n);
}

void rms_norm_backward_weight(const float* x, std::int64_t n, float factor, DType type, const float* grad_y,
                              float* grad_weight) {
  functions(type).norm_weight(x, n, factor, grad_y, grad_weight);
}

void rotate(const float* x, const float* cosines, const float* sines, std::int64_t n, DType type, float* y) {
  functions(type).rotate(x, cosines, sines, n / 2, y);
}

void rotate_backward(const float* grad_y, const float* cosines, const float* sines, std::int64_t n,
                     float* grad_x) {
  HWY_DYNAMIC_DISPATCH(rotate_back_row)(grad_y, cosines, sines, n / 2, grad_x);
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
  functions(type).swiglu(gate, up, n, y);
}

void swiglu_backward(const float* gate, const float* up, std::int64_t n, DType type, const float* grad_y,
                     float* grad_gate, float* grad_up) {
  functions(type).swiglu_backward(gate, up, n, grad_y, grad_gate, grad_up);
}

}  // namespace chorale::ops
#endif  // HWY_ONCE
