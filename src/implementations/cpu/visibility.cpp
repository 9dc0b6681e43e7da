#include "implementations/cpu/visibility.h"

#include <algorithm>
#include <optional>

#include "base/threads.h"
#include "implementations/cpu/plan.h"
#include "mask/program.h"

namespace chorale::tiled {

struct VisibilityComputer::State {
  explicit State(const TiledPlan& p)
      : plan(p),
        program(p.problem().mask.program()),
        evaluator(program),
        by_head(program.uses(Program::Op::h)) {}

  // Narrows the range of slabs until each is empty, full or a single partial one.
  void classify_range(std::int64_t first, std::int64_t last, Visibility::Strip& strip) {
    box.k = {first * Visibility::keys, std::min(last * Visibility::keys, keys) - 1};
    const Coverage coverage = classify(program, box);
    if (coverage == Coverage::partial && last - first > 1) {
      const std::int64_t middle = first + (last - first) / 2;
      classify_range(first, middle, strip);
      classify_range(middle, last, strip);
      return;
    }
    for (std::int64_t slab = first; slab < last; ++slab) {
      const std::int64_t count = std::min(Visibility::keys, keys - slab * Visibility::keys);
      if (coverage == Coverage::empty)
        strip.slabs.push_back(Visibility::empty);
      else if (coverage == Coverage::full && count == Visibility::keys)
        strip.slabs.push_back(Visibility::full);
      else
        add_words(slab * Visibility::keys, count, coverage, strip);
    }
  }

  void add_words(std::int64_t first, std::int64_t count, Coverage coverage, Visibility::Strip& strip) {
    strip.slabs.push_back(static_cast<std::int32_t>(strip.words.size()));
    const std::uint32_t all = count == 32 ? ~0u : (1u << count) - 1;
    const std::int64_t group = plan.problem().group_size();
    for (std::int64_t r = 0; r < Visibility::rows; ++r) {
      std::uint32_t word = coverage == Coverage::full && r < rows ? all : 0;
      if (coverage == Coverage::partial && r < rows) {
        if (r > 0 && !by_head && (first_row + r) % group != 0)
          word = strip.words.back();  // the same position under another head
        else
          word = evaluate(r, first, count);
      }
      strip.words.push_back(word);
    }
  }

  std::uint32_t evaluate(std::int64_t r, std::int64_t first, std::int64_t count) {
    const std::int64_t group = plan.problem().group_size(), row = first_row + r;
    std::uint8_t visible[Visibility::keys];
    evaluator.mask({.b = sequence,
                    .h = plan.problem().first_query_head + kv_head * group + row % group,
                    .q = plan.position(sequence, row / group),
                    .k = first},
                   count, visible);
    std::uint32_t word = 0;
    for (std::int64_t k = 0; k < count; ++k) word |= static_cast<std::uint32_t>(visible[k]) << k;
    return word;
  }

  const TiledPlan& plan;
  const Program& program;
  RowEvaluator evaluator;
  bool by_head;
  int sequence = 0, kv_head = 0;
  std::int64_t first_row = 0, rows = 0, keys = 0;  // of the strip
  Box box;
};

VisibilityComputer::VisibilityComputer(const TiledPlan& plan) : state_(std::make_unique<State>(plan)) {}
VisibilityComputer::~VisibilityComputer() = default;
VisibilityComputer::VisibilityComputer(VisibilityComputer&&) noexcept = default;

void VisibilityComputer::compute(int sequence, int kv_head, std::int64_t index, std::int64_t first,
                                 std::int64_t last, Visibility::Strip& strip) {
  State& s = *state_;
  const std::int64_t group = s.plan.problem().group_size();
  s.sequence = sequence;
  s.kv_head = kv_head;
  s.first_row = index * Visibility::rows;
  s.rows = std::min(Visibility::rows, s.plan.sequence_rows(sequence) - s.first_row);
  s.keys = s.plan.keys(sequence);
  const std::int64_t head = s.plan.problem().first_query_head + kv_head * group;
  s.box = {.b = {sequence, sequence},
           .h = {head, head + group - 1},
           .q = {s.plan.position(sequence, s.first_row / group),
                 s.plan.position(sequence, (s.first_row + s.rows - 1) / group)},
           .k = {}};
  strip.slabs.clear();
  strip.words.clear();
  if (first < last) s.classify_range(first, last, strip);
  strip.visible = strip.first = strip.end = 0;
  for (std::int64_t i = 0; i < std::ssize(strip.slabs); ++i) {
    if (strip.slabs[static_cast<std::size_t>(i)] == Visibility::empty) continue;
    if (strip.visible++ == 0) strip.first = i;
    strip.end = i + 1;
  }
}

Visibility::Seen Visibility::seen(int sequence, int kv_head, std::int64_t row, std::int64_t count,
                                  std::int64_t first) const {
  Seen seen;
  for (const std::int64_t end = row + count; row < end;) {
    const Strip& of = strip(sequence, kv_head, row / rows);
    const std::int64_t last = std::min(end, (row / rows + 1) * rows);
    const Seen low = seen_of_slab(of, first / keys, row % rows, last - row),
               high = seen_of_slab(of, first / keys + 1, row % rows, last - row);
    seen.any |= high.any << keys | low.any;
    seen.all &= high.all << keys | low.all;
    row = last;
  }
  return seen;
}

Visibility::Seen Visibility::seen_of_slab(const Strip& strip, std::int64_t index, std::int64_t row,
                                          std::int64_t count) {
  constexpr std::uint64_t whole = ~std::uint32_t{0};
  const std::int32_t slab =
      index < std::ssize(strip.slabs) ? strip.slabs[static_cast<std::size_t>(index)] : empty;
  if (slab == full) return {whole, whole};
  if (slab == empty) return {0, 0};
  Seen seen{0, whole};
  for (const std::uint32_t word :
       std::span(strip.words).subspan(static_cast<std::size_t>(slab + row), static_cast<std::size_t>(count)))
    seen.any |= word, seen.all &= word;
  return seen;
}

Visibility::Visibility(const TiledPlan& plan) : plan_(plan), heads_(1) {}

void Visibility::compute() {
  const int sequences = plan_.batch().sequences();
  if (plan_.problem().mask.program().uses(Program::Op::h)) heads_ = plan_.problem().kv_heads;
  struct Task {
    int sequence, kv_head;
    std::int64_t index;
  };
  std::vector<Task> tasks;
  for (int sequence = 0; sequence < sequences; ++sequence) {
    const std::int64_t all = plan_.sequence_rows(sequence);
    first_.push_back(static_cast<std::int64_t>(tasks.size()));
    count_.push_back(all > few_rows ? (all + rows - 1) / rows : 0);
    for (int head = 0; head < heads_; ++head)
      for (std::int64_t i = 0; i < count_.back(); ++i) tasks.push_back({sequence, head, i});
  }
  strips_.resize(tasks.size());
  constexpr std::int64_t stretch = 64;  // strips of one call: each makes no more than a few allocations
  std::vector<std::optional<VisibilityComputer>> computers(static_cast<std::size_t>(plan_.threads()));
  const auto count = static_cast<std::int64_t>(tasks.size());
  parallel_for((count + stretch - 1) / stretch, plan_.threads(), [&](std::int64_t part, int worker) {
    auto& computer = computers[static_cast<std::size_t>(worker)];
    if (!computer) computer.emplace(plan_);
    for (std::int64_t i = part * stretch; i < std::min(count, (part + 1) * stretch); ++i) {
      const Task& task = tasks[static_cast<std::size_t>(i)];
      computer->compute(task.sequence, task.kv_head, task.index, 0,
                        (plan_.keys(task.sequence) + keys - 1) / keys, strips_[static_cast<std::size_t>(i)]);
    }
  });
}

}  // namespace chorale::tiled
