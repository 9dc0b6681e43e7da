// The constants of this implementation's order of arithmetic (docs/numerics.md). Changing one changes bits, and the
// fingerprint with them.
#pragma once

#include <cstdint>

namespace chorale::tiled {

inline constexpr std::int64_t tile_keys = 64;      // T: keys that share one step of the online softmax
inline constexpr std::int64_t chunk_keys = 1024;   // C: keys that are accumulated from zero and merged in order

inline constexpr float log2_e = 0x1.715476p+0f;

// Free choices: they change the speed only.
inline constexpr std::int64_t block_rows = 128;    // rows of a query block: query positions times heads of a group

}  // namespace chorale::tiled
