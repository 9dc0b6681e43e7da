#include "rl/packed_roles.h"

#include <fmt/format.h>

namespace chorale {
namespace {

const Resolution* find(const ResolvedRoles& resolved, Role role, int layer, Phase phase) {
  if (const auto found = resolved.roles.find(role); found != resolved.roles.end())
    for (const Resolution& resolution : found->second)
      if (resolution.phase == phase && resolution.first_layer <= layer && layer <= resolution.last_layer)
        return &resolution;
  return nullptr;
}

}  // namespace

Result<PackedAttention> build_packed_attention(const ResolvedRoles& resolved, Role role, int layers,
                                               const std::vector<float>& kv_scales) {
  std::vector<PackedLayer> packed;
  for (int layer = 0; layer < layers; ++layer) {
    const Resolution* forward = find(resolved, role, layer, Phase::forward);
    if (forward == nullptr)
      return Status::invalid_argument(
          fmt::format("{}: forward of layer {} is not resolved", name(role), layer));
    CHORALE_ASSIGN_OR_RETURN(Attention attention, forward->build());
    packed.push_back({std::move(attention), std::nullopt});
    const Resolution* backward = find(resolved, role, layer, Phase::backward);
    if (backward == nullptr) continue;
    CHORALE_ASSIGN_OR_RETURN(packed.back().backward, backward->build());
  }
  return PackedAttention(std::move(packed), kv_scales, kv_scales);
}

}  // namespace chorale
