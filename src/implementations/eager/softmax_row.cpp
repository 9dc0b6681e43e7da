#include "implementations/eager/softmax_row.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/float.h"

namespace chorale::eager {
namespace {

std::int64_t offset_of(const TensorView& view, std::initializer_list<std::int64_t> index) {
  std::int64_t offset = 0;
  int dimension = 0;
  for (const std::int64_t i : index) offset += i * view.stride[dimension++];
  return offset;
}

}  // namespace

void read_row(const TensorView& view, std::initializer_list<std::int64_t> index, std::span<double> row) {
  const std::int64_t begin = offset_of(view, index), step = view.stride[view.rank - 1];
  for (std::size_t c = 0; c < row.size(); ++c) {
    row[c] = load_element(view.data, view.dtype, begin + static_cast<std::int64_t>(c) * step);
  }
}

void write_row(const TensorView& view, std::initializer_list<std::int64_t> index,
               std::span<const double> row) {
  const std::int64_t begin = offset_of(view, index);
  for (std::size_t c = 0; c < row.size(); ++c) {
    store_element(view.data, view.dtype, begin + static_cast<std::int64_t>(c), static_cast<float>(row[c]));
  }
}

Matrix read_keys(const Plan& plan, int sequence, const TensorView& keys, const TensorView& scales,
                 int kv_head) {
  const Batch& batch = plan.batch();
  Matrix matrix = Matrix::zeros(batch.kv_len(sequence), keys.shape[keys.rank - 1]);
  for (std::int64_t position = 0; position < matrix.rows; ++position) {
    if (batch.is_paged()) {
      const std::int64_t entry = sequence * batch.block_table_stride + position / batch.page_size;
      const std::int64_t page = batch.block_table[static_cast<std::size_t>(entry)];
      read_row(keys, {page, position % batch.page_size, kv_head}, matrix.row(position));
    } else {
      read_row(keys, {batch.cu_seqlens_k[static_cast<std::size_t>(sequence)] + position, kv_head},
               matrix.row(position));
    }
  }
  if (!scales.empty()) {
    const float scale = load_element(scales.data, scales.dtype, kv_head * scales.stride[0]);
    for (double& value : matrix.values)
      value = round_to(plan.problem().dtype, static_cast<float>(value) * scale);
  }
  return matrix;
}

double dot(std::span<const double> x, std::span<const double> y) {
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * y[i];
  return sum;
}

void add_scaled(double factor, std::span<const double> x, std::span<double> y) {
  for (std::size_t i = 0; i < x.size(); ++i) y[i] += factor * x[i];
}

SoftmaxRow softmax_row(const Problem& problem, Point at, std::span<const double> query, const Matrix& keys,
                       std::optional<double> sink) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const double scale = problem.scale_or_default();
  const bool sees_all = problem.mask.is_all(), plain = problem.score.is_identity();
  const auto count = static_cast<std::size_t>(keys.rows);
  SoftmaxRow row{.visible = std::vector<std::uint8_t>(count),
                 .scaled = std::vector<double>(count),
                 .score = std::vector<double>(count, -infinity),
                 .weight = std::vector<double>(count)};

  double maximum = sink.value_or(-infinity);
  for (std::size_t k = 0; k < count; ++k) {
    at.k = static_cast<std::int64_t>(k);
    row.visible[k] = sees_all || evaluate_mask(problem.mask.program(), at);
    if (!row.visible[k]) continue;
    row.scaled[k] = scale * dot(query, keys.row(at.k));
    row.score[k] = plain ? row.scaled[k] : evaluate_score(problem.score.program(), at, row.scaled[k]);
    maximum = std::max(maximum, row.score[k]);
  }

  // A NaN among the visible scores makes the sum NaN and so the whole row. With nothing to see, or only
  // scores of -inf, the maximum is -inf: every weight is then 0.
  double sum = 0;
  const auto unnormalised = [&](double score) { return score == -infinity ? 0 : std::exp(score - maximum); };
  for (std::size_t k = 0; k < count; ++k) {
    if (row.visible[k]) sum += row.weight[k] = unnormalised(row.score[k]);
  }
  if (sink) sum += row.sink_weight = unnormalised(*sink);
  row.lse = sum == 0 ? -infinity : maximum + std::log(sum);
  if (sum == 0) return row;
  for (double& weight : row.weight) weight /= sum;
  row.sink_weight /= sum;
  return row;
}

}  // namespace chorale::eager
