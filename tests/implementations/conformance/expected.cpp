#include "implementations/conformance/expected.h"

#include <algorithm>
#include <cmath>

#include "base/float.h"

namespace chorale::conformance {
namespace {

using eager::Matrix;
using eager::read_row;
using eager::softmax_row;
using eager::SoftmaxRow;
using Vector = std::vector<double>;

constexpr double e = 0x1p-23;  // spacing of float32 at 1: what one step of a kernel's arithmetic may cost

// Spacing at 1 of the type that weights and results are rounded to; for float32 what sums of some hundred
// terms cost.
double u_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return 0x1p-8;
    case DType::float16:
      return 0x1p-11;
    case DType::float32:
    case DType::float8_e4m3:
      break;  // keys only: nothing is rounded to it
  }
  return 512 * 0x1p-24;
}
// Half the smallest subnormal, where rounding stops being relative.
double least_of(DType dtype) { return dtype == DType::float16 ? 0x1p-25 : 0x1p-134; }

// A weight below the smallest normal float32 may count as 0.
constexpr double flushed = 0x1p-126;

double square(double x) { return x * x; }

// 2-norm of the finite entries.
double norm(std::span<const double> x) {
  double sum = 0;
  for (const double v : x) {
    if (std::isfinite(v)) sum += v * v;
  }
  return std::sqrt(sum);
}

// Sums behind one row of a result: the value itself, the squares of its terms (independent roundings add up
// as a root of squares), and what adds up in full.
struct Sums {
  Vector value, squares, absolute;
  double common_squares = 0;
  explicit Sums(std::size_t columns) : value(columns), squares(columns), absolute(columns) {}

  void add(double weight, std::span<const double> x, double error) {
    for (std::size_t c = 0; c < x.size(); ++c) {
      const double term = weight * x[c];
      value[c] += term;
      if (!std::isfinite(term)) continue;
      squares[c] += term * term;
      absolute[c] += (error + flushed) * std::abs(x[c]);
    }
  }
  // 0.75 u (|value| + |n|) and the rest; the whole of u where too few columns even out one rounding's luck.
  // Where weights are rounded before they are summed, a single column can be off by more than the luck of
  // many.
  double bound(DType dtype, bool weights_rounded) const {
    double n = 0;
    for (const double s : squares) n += s;
    const double share = value.size() < 16 ? 1 : 0.75;
    const double weights_share = weights_rounded ? share + 0.5 : share;
    return u_of(dtype) * (share * norm(value) + weights_share * std::sqrt(n)) + norm(absolute) +
           std::sqrt(common_squares) + least_of(dtype) * std::sqrt(static_cast<double>(value.size()));
  }
};

void finish(Bounded& to, std::int64_t row, const Sums& sums, DType dtype, bool weights_rounded) {
  std::ranges::copy(sums.value, to.values.row(row).begin());
  to.bound[static_cast<std::size_t>(row)] = sums.bound(dtype, weights_rounded);
}

double absolute_dot(std::span<const double> x, std::span<const double> y) {
  double sum = 0;
  for (std::size_t c = 0; c < x.size(); ++c) {
    if (const double term = x[c] * y[c]; std::isfinite(term)) sum += std::abs(term);
  }
  return sum;
}

// One query row of one head, and everything that its errors are made of.
struct Row {
  Vector query, grad_out, out;
  SoftmaxRow softmax;
  Vector slope;        // d score / d scaled
  Vector score_error;  // of each key's score
  double lse_error = 0;
  double n = 0;        // |n| of the forward's bound
  Vector out_squares;  // n_c^2
  Vector out_error;    // of each column of out, through the scores
};

void find_score_errors(const Problem& problem, Point at, const Matrix& keys, Row& row) {
  const double scale = problem.scale_or_default(), root = std::sqrt(static_cast<double>(problem.head_dim));
  const bool plain = problem.score.is_identity();
  const auto count = static_cast<std::size_t>(keys.rows);
  row.slope.assign(count, 1);
  row.score_error.assign(count, 0);
  for (std::size_t k = 0; k < count; ++k) {
    if (!row.softmax.visible[k]) continue;
    at.k = static_cast<std::int64_t>(k);
    const double x = row.softmax.scaled[k];
    if (!plain) row.slope[k] = evaluate_score(problem.score.derivative(), at, x);
    if (row.softmax.weight[k] == 0) continue;  // and so is its share of every error
    const double scaled_error = e * (root * scale * absolute_dot(row.query, keys.row(at.k)) + std::abs(x));
    row.score_error[k] = std::abs(row.slope[k]) * scaled_error +
                         4 * e * (std::abs(x) + std::abs(row.softmax.score[k]) + std::abs(row.softmax.lse));
    row.lse_error += row.softmax.weight[k] * row.score_error[k];
  }
  row.lse_error += e * (4 * std::abs(row.softmax.lse) + 32);
}

class Reference {
 public:
  Reference(const Problem& problem, const Data& data, bool weights_rounded)
      : problem_(problem), data_(data), weights_rounded_(weights_rounded), batch_(data.batch) {
    const std::int64_t rows = std::int64_t{batch_.total_q()} * problem.query_heads;
    const std::int64_t keys = batch_.total_k() * problem.kv_heads;
    expected_.out = Bounded(rows, problem.value_dim());
    expected_.lse = Bounded(rows, 1);
    expected_.grad_q = Bounded(rows, problem.head_dim);
    expected_.grad_k = Bounded(keys, problem.head_dim);
    expected_.grad_v = Bounded(keys, problem.value_dim());
    expected_.grad_sinks = Bounded(problem.query_heads, 1);
    sinks_.resize(static_cast<std::size_t>(problem.query_heads), Sums(1));
  }

  Expected run() {
    std::int64_t first_key = 0;
    for (int b = 0; b < batch_.sequences(); ++b) {
      for (int kv_head = 0; kv_head < problem_.kv_heads; ++kv_head) group(b, kv_head, first_key);
      first_key += batch_.kv_len(b);
    }
    for (int head = 0; problem_.sinks && head < problem_.query_heads; ++head) {
      finish(expected_.grad_sinks, head, sinks_[static_cast<std::size_t>(head)], DType::float32,
             weights_rounded_);
    }
    return std::move(expected_);
  }

 private:
  void group(int b, int kv_head, std::int64_t first_key) {
    const Matrix keys = read_keys(problem_, batch_, b, data_.k.view, data_.k_scale.view, kv_head),
                 values = read_keys(problem_, batch_, b, data_.v.view, data_.v_scale.view, kv_head);
    const auto count = static_cast<std::size_t>(keys.rows);
    std::vector<Sums> grad_keys(count, Sums(static_cast<std::size_t>(problem_.head_dim)));
    std::vector<Sums> grad_values(count, Sums(static_cast<std::size_t>(problem_.value_dim())));
    const std::int64_t queries = batch_.q_len(b);
    for (int head = kv_head * problem_.group_size(); head < (kv_head + 1) * problem_.group_size(); ++head) {
      for (std::int64_t i = 0; i < queries; ++i) {
        const std::int64_t place = batch_.cu_seqlens_q[static_cast<std::size_t>(b)] + i;
        const Point at{.b = b, .h = problem_.first_query_head + head, .q = keys.rows - queries + i};
        Row row = forward_row(place, head, at, keys, values);
        backward_row(place, head, row, keys, values, grad_keys, grad_values);
      }
    }
    for (std::size_t k = 0; k < count; ++k) {
      const std::int64_t place = (first_key + static_cast<std::int64_t>(k)) * problem_.kv_heads + kv_head;
      finish(expected_.grad_k, place, grad_keys[k], problem_.dtype, weights_rounded_);
      finish(expected_.grad_v, place, grad_values[k], problem_.dtype, weights_rounded_);
    }
  }

  Row forward_row(std::int64_t place, int head, const Point& at, const Matrix& keys, const Matrix& values) {
    Row row;
    row.query.resize(static_cast<std::size_t>(problem_.head_dim));
    row.grad_out.resize(static_cast<std::size_t>(problem_.value_dim()));
    read_row(data_.q.view, {place, head}, row.query);
    read_row(data_.grad_out.view, {place, head}, row.grad_out);
    std::optional<double> sink;
    if (problem_.sinks) sink = load_element(data_.sinks.view.data, DType::float32, head);
    row.softmax = softmax_row(problem_, at, row.query, keys, sink);
    find_score_errors(problem_, at, keys, row);

    Sums out(row.grad_out.size());
    for (std::int64_t k = 0; k < keys.rows; ++k) {
      const auto i = static_cast<std::size_t>(k);
      if (row.softmax.visible[i]) out.add(row.softmax.weight[i], values.row(k), 0);
    }
    // A score that is off by d shifts the mean of V by p d (V - O).
    for (std::int64_t k = 0; k < keys.rows; ++k) {
      const auto i = static_cast<std::size_t>(k);
      if (!row.softmax.visible[i]) continue;
      for (std::size_t c = 0; c < out.value.size(); ++c) {
        const double distance = values.row(k)[c] - out.value[c];
        if (std::isfinite(distance))
          out.absolute[c] += row.softmax.weight[i] * row.score_error[i] * std::abs(distance);
      }
    }
    row.out = out.value;
    row.out_squares = out.squares;
    row.out_error = out.absolute;
    const std::int64_t index = place * problem_.query_heads + head;
    finish(expected_.out, index, out, problem_.dtype, weights_rounded_);
    expected_.lse.values.row(index)[0] = row.softmax.lse;
    expected_.lse.bound[static_cast<std::size_t>(index)] = row.lse_error;
    return row;
  }

  // How far dO . O may be off: through the rounding of the stored out, and through its scores.
  double delta_error(const Row& row) const {
    const double share = 0.75, weights_share = weights_rounded_ ? share + 0.5 : share;  // as in Sums::bound
    double squares = 0, absolute = 0;
    for (std::size_t c = 0; c < row.out.size(); ++c) {
      const double out_error = share * std::abs(row.out[c]) + weights_share * std::sqrt(row.out_squares[c]);
      squares += square(row.grad_out[c] * out_error);
      absolute += std::abs(row.grad_out[c]) * row.out_error[c];
    }
    return u_of(problem_.dtype) * std::sqrt(squares) + absolute;
  }

  void backward_row(std::int64_t place, int head, const Row& row, const Matrix& keys, const Matrix& values,
                    std::vector<Sums>& grad_keys, std::vector<Sums>& grad_values) {
    const double scale = problem_.scale_or_default(),
                 root = std::sqrt(static_cast<double>(problem_.value_dim()));
    const double delta_size = absolute_dot(row.grad_out, row.out), off = delta_error(row);
    Vector grad_weight(row.slope.size());
    double delta = 0;
    for (std::size_t k = 0; k < grad_weight.size(); ++k) {
      if (!row.softmax.visible[k]) continue;
      grad_weight[k] = eager::dot(row.grad_out, values.row(static_cast<std::int64_t>(k)));
      delta += row.softmax.weight[k] * grad_weight[k];
    }

    Sums grad_query(row.query.size());
    Vector shift(row.query.size());  // what an error of delta moves dQ along
    for (std::size_t k = 0; k < grad_weight.size(); ++k) {
      if (!row.softmax.visible[k]) continue;
      const auto position = static_cast<std::int64_t>(k);
      const double p = row.softmax.weight[k], slope = row.slope[k], change = grad_weight[k] - delta;
      const double p_error = row.score_error[k] + row.lse_error;  // relative
      const double change_error = e * root * (absolute_dot(row.grad_out, values.row(position)) + delta_size);
      const double slope_error = 16 * e * (1 + std::abs(slope));
      const double error = p * (std::abs(slope) * (p_error * std::abs(change) + change_error) +
                                slope_error * std::abs(change));
      grad_values[k].add(p, row.grad_out, p * p_error);
      grad_query.add(scale * p * change * slope, keys.row(position), scale * error);
      grad_keys[k].add(scale * p * change * slope, row.query, scale * error);
      grad_keys[k].common_squares += square(scale * p * slope * off * norm(row.query));
      eager::add_scaled(scale * p * slope, keys.row(position), shift);
    }
    grad_query.common_squares = square(off * norm(shift));
    finish(expected_.grad_q, place * problem_.query_heads + head, grad_query, problem_.dtype,
           weights_rounded_);

    if (!problem_.sinks) return;
    Sums& sink = sinks_[static_cast<std::size_t>(head)];
    const double weight = row.softmax.sink_weight;
    const double sink_error = std::abs(delta) * (2 * row.lse_error) + e * root * delta_size;
    sink.add(-weight * delta, Vector{1.0}, weight * sink_error);
    sink.common_squares += square(weight * off);
  }

  const Problem& problem_;
  const Data& data_;
  bool weights_rounded_;
  const Batch& batch_;
  Expected expected_;
  std::vector<Sums> sinks_;
};

}  // namespace

eager::Matrix read_keys(const Problem& problem, const Batch& batch, int sequence, const TensorView& keys,
                        const TensorView& scales, int kv_head) {
  Matrix matrix = Matrix::zeros(batch.kv_len(sequence), keys.shape[keys.rank - 1]);
  const auto b = static_cast<std::size_t>(sequence);
  for (std::int64_t position = 0; position < matrix.rows; ++position) {
    if (!batch.is_paged()) {
      read_row(keys, {batch.cu_seqlens_k[b] + position, kv_head}, matrix.row(position));
      continue;
    }
    const std::int64_t entry = sequence * batch.block_table_stride + position / batch.page_size;
    const std::int64_t page = batch.block_table[static_cast<std::size_t>(entry)];
    read_row(keys, {page, position % batch.page_size, kv_head}, matrix.row(position));
  }
  if (problem.has_kv_scales()) {
    const float scale = load_element(scales.data, scales.dtype, kv_head);
    for (double& value : matrix.values) value = round_to(problem.dtype, static_cast<float>(value) * scale);
  }
  return matrix;
}

Expected expect(const Problem& problem, const Data& data, bool weights_rounded) {
  return Reference(problem, data, weights_rounded).run();
}

}  // namespace chorale::conformance
