// shard_heads: each rank's own heads, of a problem, of a cache, of the cache's scales.
#include <fmt/format.h>

#include "chorale/parallel.h"

namespace chorale {
namespace {

// KV heads [first, first + count) of a rank.
struct HeadRange {
  int first, count;
};

Result<HeadRange> own_heads(int kv_heads, const Communicator& communicator) {
  const int ranks = communicator.size();
  if (kv_heads < 1 || kv_heads % ranks != 0)
    return Status::invalid_argument(
        fmt::format("kv_heads {}: must divide by the {} ranks, so that each computes whole groups of heads",
                    kv_heads, ranks));
  return HeadRange{communicator.rank() * (kv_heads / ranks), kv_heads / ranks};
}

}  // namespace

Result<Problem> shard_heads(const Problem& problem, const Communicator& communicator) {
  CHORALE_RETURN_IF_ERROR(problem.validate());
  CHORALE_ASSIGN_OR_RETURN(const HeadRange own, own_heads(problem.kv_heads, communicator));
  Problem part = problem;
  const int group = problem.query_heads / problem.kv_heads;
  part.query_heads = own.count * group;
  part.kv_heads = own.count;
  part.first_query_head = problem.first_query_head + own.first * group;
  return part;
}

Result<KvCacheConfig> shard_heads(const KvCacheConfig& cache, const Communicator& communicator) {
  CHORALE_RETURN_IF_ERROR(cache.validate());
  CHORALE_ASSIGN_OR_RETURN(const HeadRange own, own_heads(cache.kv_heads, communicator));
  KvCacheConfig part = cache;
  part.kv_heads = own.count;
  CHORALE_ASSIGN_OR_RETURN(part.key_scales, shard_scales(cache.key_scales, cache.kv_heads, communicator));
  CHORALE_ASSIGN_OR_RETURN(part.value_scales, shard_scales(cache.value_scales, cache.kv_heads, communicator));
  return part;
}

Result<std::vector<float>> shard_scales(std::span<const float> scales, int kv_heads,
                                        const Communicator& communicator) {
  CHORALE_ASSIGN_OR_RETURN(const HeadRange own, own_heads(kv_heads, communicator));
  const auto heads = static_cast<std::size_t>(kv_heads);
  if (scales.size() % heads != 0)
    return Status::invalid_argument(fmt::format(
        "{} scales: must be one for each of the {} KV heads of every layer", scales.size(), heads));
  std::vector<float> part;
  for (; !scales.empty(); scales = scales.subspan(heads)) {
    const auto mine =
        scales.subspan(static_cast<std::size_t>(own.first), static_cast<std::size_t>(own.count));
    part.insert(part.end(), mine.begin(), mine.end());
  }
  return part;
}

}  // namespace chorale
