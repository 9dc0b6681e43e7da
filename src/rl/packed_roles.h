// What a configuration resolved for a role, as attention over packed sequences.
#pragma once

#include "chorale/roles.h"
#include "trainer/packed_attention.h"

namespace chorale {

// Forward in every layer; backward too where that is resolved. `kv_scales` [layers, kv_heads], of keys
// and of values, if the problem keeps them in 8 bits.
Result<PackedAttention> build_packed_attention(const ResolvedRoles& resolved, Role role, int layers,
                                               const std::vector<float>& kv_scales = {});

}  // namespace chorale
