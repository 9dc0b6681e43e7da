#include "rl/packed_roles.h"

#include <fmt/format.h>

#include <algorithm>

namespace chorale {
namespace {

Result<Attention> build(const ResolvedRoles& resolved, Role role, int layer, Phase phase) {
  if (const auto found = resolved.roles.find(role); found != resolved.roles.end())
    for (const Resolution& resolution : found->second)
      if (resolution.phase == phase && resolution.first_layer <= layer && layer <= resolution.last_layer)
        return resolution.build();
  return Status::invalid_argument(
      fmt::format("{}: {} of layer {} is not resolved", name(role), name(phase), layer));
}

}  // namespace

Result<PackedAttention> build_packed_attention(const ResolvedRoles& resolved, Role role, int layers,
                                               const std::vector<float>& kv_scales) {
  const bool learns = std::ranges::count(phases(role), Phase::backward) > 0;
  std::vector<PackedLayer> packed;
  for (int layer = 0; layer < layers; ++layer) {
    CHORALE_ASSIGN_OR_RETURN(Attention forward, build(resolved, role, layer, Phase::forward));
    packed.push_back({std::move(forward), std::nullopt});
    if (!learns) continue;
    CHORALE_ASSIGN_OR_RETURN(packed.back().backward, build(resolved, role, layer, Phase::backward));
  }
  return PackedAttention(std::move(packed), kv_scales, kv_scales);
}

}  // namespace chorale
