#include "implementations/conformance/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "base/float.h"

namespace chorale::conformance {
namespace {

// Row `i` of a tensor whose leading dimensions are [rows, heads]; a tensor of rank 2 has one column, of rank
// 1 one head.
std::vector<double> stored_row(const TensorView& view, std::int64_t i, std::int64_t columns) {
  std::vector<double> row(static_cast<std::size_t>(columns));
  if (view.rank == 3) {
    eager::read_row(view, {i / view.shape[1], i % view.shape[1]}, row);
    return row;
  }
  const std::int64_t place = view.rank == 2
                                 ? i / view.shape[1] * view.stride[0] + i % view.shape[1] * view.stride[1]
                                 : i * view.stride[0];
  row[0] = load_element(view.data, view.dtype, place);
  return row;
}

bool same_kind(double x, double y) {
  if (std::isfinite(x) && std::isfinite(y)) return true;
  return std::isnan(x) ? std::isnan(y) : x == y;
}

struct Comparison {
  double worst = 0;     // error / bound, of the worst row
  std::string failure;  // "" or the first row that fails
};

std::string coordinate(const TensorView& view, std::int64_t row) {
  if (view.rank == 1) return fmt::format("[{}]", row);
  return fmt::format("[{}, {}]", row / view.shape[1], row % view.shape[1]);
}

Comparison compare(const Bounded& expected, const TensorView& actual) {
  Comparison result;
  for (std::int64_t i = 0; i < expected.values.rows; ++i) {
    const auto wanted = expected.values.row(i);
    const auto got = stored_row(actual, i, expected.values.columns);
    double squares = 0;
    std::size_t worst_column = 0;
    bool kinds_agree = true;
    for (std::size_t c = 0; c < got.size() && kinds_agree; ++c) {
      kinds_agree = same_kind(got[c], wanted[c]);
      const double error = std::isfinite(wanted[c]) && kinds_agree ? got[c] - wanted[c] : 0;
      squares += error * error;
      if (!kinds_agree || std::abs(error) > std::abs(got[worst_column] - wanted[worst_column]))
        worst_column = c;
    }
    const double error = std::sqrt(squares), bound = expected.bound[static_cast<std::size_t>(i)];
    if (error > 0) result.worst = std::max(result.worst, error / bound);
    if (!result.failure.empty() || (kinds_agree && !(error > bound))) continue;
    result.failure = fmt::format(
        "at {} is off by {:.3e} where {:.3e} is allowed; column {} is {} and should be {}",
        coordinate(actual, i), error, bound, worst_column, got[worst_column], wanted[worst_column]);
  }
  return result;
}

struct Output {
  std::string_view name;
  const Stored* actual;
  const Bounded* expected;
  double Margins::*margin;
};
std::vector<Output> outputs(const Problem& problem, const Data& data, const Expected& expected,
                            Passes passes) {
  std::vector<Output> list{{"out", &data.out, &expected.out, &Margins::out},
                           {"lse", &data.lse, &expected.lse, &Margins::lse}};
  if (passes == Passes::forward) return list;
  list.push_back({"grad_q", &data.grad_q, &expected.grad_q, &Margins::grad_q});
  list.push_back({"grad_k", &data.grad_k, &expected.grad_k, &Margins::grad_k});
  list.push_back({"grad_v", &data.grad_v, &expected.grad_v, &Margins::grad_v});
  if (problem.sinks)
    list.push_back({"grad_sinks", &data.grad_sinks, &expected.grad_sinks, &Margins::grad_sinks});
  return list;
}

// Calls body(offset from the view's data) for each element.
void for_each_element(const TensorView& view, const std::function<void(std::int64_t)>& body,
                      int dimension = 0, std::int64_t at = 0) {
  if (dimension == view.rank) return body(at);
  for (std::int64_t i = 0; i < view.shape[dimension]; ++i)
    for_each_element(view, body, dimension + 1, at + i * view.stride[dimension]);
}

std::span<const std::byte> bytes_of(const Tensor& memory) {
  return {static_cast<const std::byte*>(memory.view().data), memory.bytes()};
}

// Whether memory around an output's elements is as `store` left it.
bool surroundings_untouched(const Stored& output, Arrangement arrangement) {
  const TensorView& view = output.view;
  const Stored fresh =
      store(view.dtype, std::span(view.shape.data(), static_cast<std::size_t>(view.rank)), arrangement, NAN);
  Tensor copy = output.memory.clone();
  const std::int64_t begin = (static_cast<const std::byte*>(view.data) - bytes_of(output.memory).data()) /
                             static_cast<std::int64_t>(size_of(view.dtype));
  for_each_element(view, [&](std::int64_t at) {
    store_element(copy.view().data, view.dtype, begin + at, load_element(fresh.view.data, view.dtype, at));
  });
  // Compared with NaN equal to NaN: copying an element may set its quiet bit.
  for (std::int64_t i = 0; i < copy.elements(); ++i) {
    if (!same_kind(load_element(copy.view().data, view.dtype, i),
                   load_element(fresh.memory.view().data, view.dtype, i)))
      return false;
  }
  return true;
}

Problem bind(const Case& test) {
  Problem bound = test.problem;
  bound.mask = bound.mask.with_tables(test.tables).value();
  bound.score = bound.score.with_tables(test.tables).value();
  return bound;
}

}  // namespace

bool same_bits(const Stored& x, const Stored& y) {
  return std::ranges::equal(bytes_of(x.memory), bytes_of(y.memory));
}

Result<Data> run(const Implementation& implementation, const Case& test, Background background,
                 const Device& device, Passes passes) {
  Data data = make_data(test, background);
  CHORALE_ASSIGN_OR_RETURN(const auto plan, implementation.plan(test.problem, data.batch, device));
  CHORALE_RETURN_IF_ERROR(implementation.forward(*plan, data.forward()));
  if (passes == Passes::both) CHORALE_RETURN_IF_ERROR(implementation.backward(*plan, data.backward()));
  return data;
}

void Margins::include(const Margins& other) {
  for (const auto member : {&Margins::out, &Margins::lse, &Margins::grad_q, &Margins::grad_k,
                            &Margins::grad_v, &Margins::grad_sinks}) {
    this->*member = std::max(this->*member, other.*member);
  }
}

namespace {

// Whether probabilities are rounded to 16 bits before they meet values: the fingerprint's part "p" says so.
bool rounds_weights(const Implementation& implementation, const Case& test, const Device& device) {
  const Fingerprint fingerprint = implementation.fingerprint(test.problem, device);
  return std::ranges::any_of(fingerprint.parts, [](const Fingerprint::Part& part) {
    return part.name == "p" && part.value != "fp32";
  });
}

}  // namespace

Report check(const Implementation& implementation, const Case& test, const Device& device, Passes passes) {
  Report report;
  const auto fail = [&](const std::string& what) {
    report.failures.push_back(fmt::format("{}: {}: {}", implementation.name(), test.describe(), what));
  };
  const Result<Data> data = run(implementation, test, Background::poison, device, passes);
  const Result<Data> clean = run(implementation, test, Background::zeros, device, passes);
  if (!data || !clean) {
    fail((data ? clean : data).status().message());
    return report;
  }
  const Expected expected = expect(bind(test), *data, rounds_weights(implementation, test, device));
  for (const Output& output : outputs(test.problem, *data, expected, passes)) {
    const Comparison comparison = compare(*output.expected, output.actual->view);
    report.margins.*output.margin = comparison.worst;
    if (!comparison.failure.empty()) fail(fmt::format("{} {}", output.name, comparison.failure));
    if (!surroundings_untouched(*output.actual, test.outputs)) {
      fail(fmt::format("{}: memory around it was written", output.name));
    }
  }
  const auto theirs = outputs(test.problem, *clean, expected, passes);
  for (std::size_t i = 0; const Output& output : outputs(test.problem, *data, expected, passes)) {
    if (same_bits(*output.actual, *theirs[i++].actual)) continue;
    fail(fmt::format("{} has other bits where unused and hidden memory holds zeros", output.name));
  }

  // The clean run's tensors serve once more, their out wiped first.
  const Tensor with_lse = clean->out.memory.clone();
  const TensorView& out = clean->out.view;
  for_each_element(out, [&](std::int64_t at) { store_element(out.data, out.dtype, at, NAN); });
  ForwardTensors tensors = clean->forward();
  tensors.lse = {};
  const auto plan = implementation.plan(test.problem, clean->batch, device);
  if (const Status status = implementation.forward(**plan, tensors); !status.is_ok()) {
    fail("without lse: " + status.message());
  }
  if (!std::ranges::equal(bytes_of(with_lse), bytes_of(clean->out.memory))) {
    fail("out has other bits when lse is not asked for");
  }
  return report;
}

}  // namespace chorale::conformance
