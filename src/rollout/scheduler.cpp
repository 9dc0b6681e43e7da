#include "rollout/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <ranges>

namespace chorale {
namespace {

std::int64_t pages_of(std::int64_t tokens, int page_size) { return (tokens + page_size - 1) / page_size; }

// How many first positions of two generations have the same keys: the same tokens, computed in the same
// phase.
std::int64_t common_keys(const Generation& a, const Generation& b) {
  const std::int64_t tokens = std::ranges::mismatch(a.tokens, b.tokens).in1 - a.tokens.begin();
  const std::int64_t prompt_a = std::ssize(a.request.prompt), prompt_b = std::ssize(b.request.prompt);
  return prompt_a == prompt_b ? tokens : std::min({tokens, prompt_a, prompt_b});
}

}  // namespace

Status SchedulerConfig::validate() const {
  if (tokens_per_step < 1)
    return Status::invalid_argument(fmt::format("tokens_per_step {}: must be at least 1", tokens_per_step));
  if (max_running < 1 || max_running > tokens_per_step)
    return Status::invalid_argument(
        fmt::format("max_running {}: must be from 1 to tokens_per_step = {}", max_running, tokens_per_step));
  return Status::ok();
}

Status Scheduler::submit(const Request& request, const KvCacheConfig& pool) {
  for (const auto& other : generations_) {
    if (other->request.id == request.id)
      return Status::invalid_argument(
          fmt::format("request {}: an unfinished request has this id", request.id));
  }
  // The last token is drawn but never computed. Subtraction, so that nothing can overflow.
  const std::int64_t capacity = pool.pages * pool.page_size;
  if (request.max_new_tokens - 1 > capacity - std::ssize(request.prompt))
    return Status::out_of_range(fmt::format(
        "request {}: a prompt of {} tokens and {} new tokens: the pool of {} pages of {} tokens holds {}",
        request.id, request.prompt.size(), request.max_new_tokens, pool.pages, pool.page_size, capacity));
  auto generation = std::make_unique<Generation>();
  generation->request = request;
  generation->tokens = request.prompt;
  generation->completion.id = request.id;
  generations_.push_back(std::move(generation));
  return Status::ok();
}

// One token at least is always computed: its logits are what the next is drawn from.
Scheduler::Prefix Scheduler::find_prefix(const Generation& newcomer, int page_size) const {
  Prefix best;
  std::int64_t longest = 0;  // counting what running generations know but have not computed yet
  for (const auto& other : generations_) {
    if (!other->is_running()) continue;
    const std::int64_t common = std::min(common_keys(newcomer, *other), newcomer.known() - 1);
    longest = std::max(longest, common);
    const std::int64_t usable = std::min(common, other->cached);
    if (usable > best.tokens) best = {other.get(), usable, false};
  }
  // Less than a page is sooner computed than copied.
  if (best.tokens < page_size) best = {};
  best.grows = longest - best.tokens >= page_size;
  return best;
}

// Pages that the running generations still need for the tokens they know.
Result<std::int64_t> Scheduler::promised_pages(const KvCache& cache) const {
  std::int64_t pages = 0;
  for (const auto& generation : generations_) {
    if (!generation->is_running()) continue;
    CHORALE_ASSIGN_OR_RETURN(const std::int64_t needed,
                             cache.pages_for(*generation->sequence, generation->remaining()));
    pages += needed;
  }
  return pages;
}

// Gives a waiting generation a sequence with as much as there already is of it: its own keys from host
// memory, the published pages of a prompt, or (true) a running generation's, by a fork.
Result<bool> Scheduler::start(Generation& newcomer, const Prefix& prefix, KvCache& cache) {
  if (newcomer.swapped) {
    CHORALE_ASSIGN_OR_RETURN(newcomer.sequence, cache.swap_in(*newcomer.swapped));
    return false;
  }
  // A generated token may have been computed by another implementation than a prompt's, so only prompts are
  // looked up (and published). The token after a prompt, if there is one, is the one left to compute.
  const std::size_t prompt = newcomer.request.prompt.size();
  const auto known = std::span(newcomer.tokens).first(std::min(prompt + 1, newcomer.tokens.size()));
  const KvCache::PrefixMatch match = cache.add_with_prefix(known);
  newcomer.sequence = match.sequence;
  newcomer.cached = match.tokens;
  if (prefix.tokens <= match.tokens) return false;
  CHORALE_RETURN_IF_ERROR(cache.free(match.sequence));
  CHORALE_ASSIGN_OR_RETURN(newcomer.sequence, cache.fork(*prefix.source->sequence));
  newcomer.cached = prefix.tokens;
  CHORALE_RETURN_IF_ERROR(cache.truncate(*newcomer.sequence, prefix.tokens));
  return true;
}

// Waiting generations join in order of arrival while all they know fits beside what is promised, and a page
// more for each running generation, lest the newcomer be preempted at once. One whose beginning is just being
// computed by another waits for it; the others may pass it meanwhile.
Status Scheduler::admit(KvCache& cache) {
  const int page_size = cache.config().page_size;
  std::int64_t running =
      std::ranges::count_if(generations_, [](const auto& generation) { return generation->is_running(); });
  CHORALE_ASSIGN_OR_RETURN(std::int64_t promised, promised_pages(cache));
  for (const auto& generation : generations_) {
    if (generation->is_running()) continue;
    if (running == config_.max_running) break;
    const Prefix prefix = find_prefix(*generation, page_size);
    if (prefix.grows) continue;
    if (generation->swapped &&
        promised + pages_of(generation->known(), page_size) + running > cache.free_pages())
      break;
    CHORALE_ASSIGN_OR_RETURN(const bool forked, start(*generation, prefix, cache));
    CHORALE_ASSIGN_OR_RETURN(const std::int64_t needed,
                             cache.pages_for(*generation->sequence, generation->remaining()));
    if (promised + needed + running > cache.free_pages()) {
      CHORALE_RETURN_IF_ERROR(cache.free(*generation->sequence));
      generation->sequence.reset();
      generation->cached = 0;
      break;
    }
    if (!generation->swapped) {
      generation->completion.shared_tokens += generation->cached;
      stats_.shared_tokens += generation->cached;
      stats_.forks += forked ? 1 : 0;
    }
    generation->swapped.reset();
    promised += needed;
    ++running;
  }
  return Status::ok();
}

// How many tokens each generation computes in this step: first one for each that decodes, then chunks of
// prefill, in order of arrival, until the step is full.
std::vector<std::int64_t> Scheduler::share_budget() const {
  std::vector<std::int64_t> shares(generations_.size(), 0);
  std::int64_t left = config_.tokens_per_step;
  for (const bool decoding : {true, false}) {
    for (std::size_t i = 0; i < shares.size(); ++i) {
      if (!generations_[i]->is_running() || generations_[i]->is_decoding() != decoding) continue;
      shares[i] = std::min(left, generations_[i]->remaining());
      left -= shares[i];
    }
  }
  return shares;
}

Status Scheduler::preempt(Generation& generation, KvCache& cache) {
  if (config_.preemption == Preemption::swap) {
    CHORALE_ASSIGN_OR_RETURN(generation.swapped, cache.swap_out(*generation.sequence));
  } else {
    CHORALE_RETURN_IF_ERROR(cache.free(*generation.sequence));
    generation.cached = 0;
  }
  generation.sequence.reset();
  ++generation.completion.preemptions;
  ++stats_.preemptions;
  return Status::ok();
}

// Takes pages from the latest arrivals until `tokens` more fit; false if the generation itself had to give
// way.
Result<bool> Scheduler::make_room(const Generation& generation, std::int64_t tokens, KvCache& cache) {
  for (;;) {
    CHORALE_ASSIGN_OR_RETURN(const std::int64_t needed, cache.pages_for(*generation.sequence, tokens));
    if (needed <= cache.free_pages()) return true;
    const auto latest = std::ranges::find_if(generations_.rbegin(), generations_.rend(),
                                             [](const auto& other) { return other->is_running(); });
    const bool gives_way = latest->get() == &generation;
    CHORALE_RETURN_IF_ERROR(preempt(**latest, cache));
    if (gives_way) return false;
  }
}

// Whoever is preempted arrived later than the one that room is made for, so no chunk is ever taken back. The
// first to arrive is last to give way, and alone it fits (submit saw to that): it always gets on.
Result<std::vector<Chunk>> Scheduler::schedule(KvCache& cache) {
  std::vector<Chunk> chunks;
  while (chunks.empty() && !generations_.empty()) {
    CHORALE_RETURN_IF_ERROR(
        admit(cache));  // before any append: a page that is about to be written is not shared
    const std::vector<std::int64_t> shares = share_budget();
    for (std::size_t i = 0; i < shares.size(); ++i) {
      Generation& generation = *generations_[i];
      if (shares[i] == 0 || !generation.is_running()) continue;
      CHORALE_ASSIGN_OR_RETURN(const bool has_room, make_room(generation, shares[i], cache));
      if (!has_room) continue;
      Chunk chunk{&generation,
                  static_cast<std::int32_t>(generation.cached),
                  static_cast<std::int32_t>(shares[i]),
                  {}};
      CHORALE_ASSIGN_OR_RETURN(chunk.slots, cache.append(*generation.sequence, shares[i]));
      generation.cached += shares[i];
      chunks.push_back(std::move(chunk));
    }
  }
  return chunks;
}

Status Scheduler::publish(std::span<const Chunk> chunks, KvCache& cache) {
  for (const Chunk& chunk : chunks) {
    const Generation& generation = *chunk.generation;
    const auto page_size = std::int64_t{cache.config().page_size};
    const auto prompt = std::ssize(generation.request.prompt);
    const std::int64_t end = std::min(prompt, std::int64_t{chunk.first} + chunk.count);
    if (end / page_size <= chunk.first / page_size) continue;  // no page of the prompt was filled
    CHORALE_RETURN_IF_ERROR(cache.publish(*generation.sequence,
                                          std::span(generation.tokens).first(static_cast<std::size_t>(end))));
  }
  return Status::ok();
}

Result<Completion> Scheduler::finish(const Generation& generation, KvCache& cache) {
  const auto found =
      std::ranges::find_if(generations_, [&](const auto& other) { return other.get() == &generation; });
  if (found == generations_.end()) return Status::not_found("a generation that this scheduler does not have");
  if (generation.is_running()) CHORALE_RETURN_IF_ERROR(cache.free(*generation.sequence));
  Completion completion = std::move((*found)->completion);
  generations_.erase(found);
  return completion;
}

Status Scheduler::clear(KvCache& cache) {
  for (const auto& generation : generations_) {
    if (generation->is_running()) CHORALE_RETURN_IF_ERROR(cache.free(*generation->sequence));
  }
  generations_.clear();
  return Status::ok();
}

}  // namespace chorale
