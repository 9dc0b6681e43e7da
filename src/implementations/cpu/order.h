// The constants of this implementation's orders of arithmetic (docs/numerics.md). Changing one changes bits,
// and the fingerprint with them.
#pragma once

#include <cstdint>

namespace chorale::tiled {

// How products are summed: see simd/simd.h and simd/dot_tiles.h. Each has its own bits.
enum class Arithmetic {
  fp32_fma,  // inputs widened to float32, chains of fused multiply-adds
  vdpbf16,   // AVX-512 BF16: pairs of bfloat16 products
  tdpbf16,   // AMX: pairs of bfloat16 products, 32 at a time
};

inline constexpr std::int64_t chunk_keys =
    1024;  // C: keys that are accumulated from zero and merged in order
inline constexpr float log2_e = 0x1.715476p+0f;

inline constexpr std::int64_t tile_keys = 64;      // T: keys that share one step of the online softmax
inline constexpr std::int64_t amx_tile_keys = 32;  // the same on AMX

// Free choice: it changes the speed only.
inline constexpr std::int64_t block_rows =
    128;                                      // rows of a query block: query positions times heads of a group
inline constexpr std::int64_t few_rows = 16;  // of a sequence: up to so many are one tile on AMX

}  // namespace chorale::tiled
