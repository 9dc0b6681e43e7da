#include "implementations/cuda/kernel_key.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <mutex>

#include "implementations/cuda/order.h"
#include "mask/emit_cuda.h"

namespace chorale::cuda {

namespace {

bool same_code(const Program& x, const Program& y) {
  const auto same_kind = [](const Table& s, const Table& t) {
    return s.rank() == t.rank() && s.is_float() == t.is_float();
  };
  return std::ranges::equal(x.instructions(), y.instructions()) &&
         std::ranges::equal(x.tables(), y.tables(), same_kind);
}

// Emission costs more than the rest of a plan, and a run has a handful of programs.
std::string emitted(const Problem& problem) {
  struct Entry {
    Mask mask;
    Score score;
    std::string text;
  };
  constexpr std::size_t most = 32;
  static std::mutex mutex;
  static auto& entries = *new std::deque<Entry>;
  const std::lock_guard lock(mutex);
  for (const Entry& entry : entries)
    if (same_code(entry.mask.program(), problem.mask.program()) &&
        same_code(entry.score.program(), problem.score.program()))
      return entry.text;
  entries.push_front(
      {problem.mask, problem.score, emit_cuda(problem.mask.program(), problem.score.program())});
  if (entries.size() > most) entries.pop_back();
  return entries.front().text;
}

}  // namespace

std::string_view name(KernelKind kind) {
  switch (kind) {
    case KernelKind::forward:
      return "forward";
    case KernelKind::decode:
      return "decode";
    case KernelKind::widen:
      return "widen";
    case KernelKind::store:
      return "store";
    case KernelKind::copy_pages:
      return "copy_pages";
  }
  return "unknown";
}

std::string KernelKey::entry() const { return fmt::format("chorale_{}", name(kind)); }

std::string KernelKey::describe() const {
  std::string text = fmt::format("{} {} d{}", name(kind), bfloat16 ? "bf16" : "fp16", head_dim);
  if (value_dim != head_dim) text += fmt::format("/{}", value_dim);
  if (group != 1) text += fmt::format(" group {}", group);
  if (kind == KernelKind::decode) text += fmt::format(" q{}", positions);
  if (cluster != 1) text += fmt::format(" cluster {}", cluster);
  text += paged ? fmt::format(" page {}", page_size) : " packed";
  for (const auto& [set, word] :
       {std::pair(fp8_cache, "fp8"), {masked, "masked"}, {scored, "scored"}, {sinks, "sinks"}})
    if (set) text += fmt::format(" {}", word);
  return text;
}

KernelKey kernel_key(KernelKind kind, const Problem& problem, int page_size, DecodeShape shape) {
  return kernel_key(kind, problem, order_of(problem.head_dim, problem.value_dim()), page_size, shape);
}

KernelKey kernel_key(KernelKind kind, const Problem& problem, const Order& order, int page_size,
                     DecodeShape shape) {
  KernelKey key;
  key.kind = kind;
  key.head_dim = problem.head_dim;
  key.value_dim = problem.value_dim();
  key.bfloat16 = problem.dtype == DType::bfloat16;
  const bool reads_widened = kind == KernelKind::forward && problem.has_kv_scales();
  key.fp8_cache = problem.has_kv_scales() && !reads_widened;
  key.page_size = reads_widened ? 0 : page_size;
  key.paged = key.page_size != 0;
  key.tile = order.tile;
  key.chunk = order.chunk;
  key.positions = 1;
  if (kind == KernelKind::store || kind == KernelKind::copy_pages) return key;
  key.group = problem.group_size();
  key.masked = !problem.mask.is_all();
  key.program = emitted(problem);
  if (kind == KernelKind::widen) return key;
  key.scored = !problem.score.is_identity();
  key.sinks = problem.sinks;
  if (kind != KernelKind::decode) shape = {std::max(1, block_rows / key.group), 1};
  key.positions = shape.positions;
  key.cluster = shape.cluster;
  return key;
}

}  // namespace chorale::cuda
