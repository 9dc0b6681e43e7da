#include "implementations/cpu/amx_kernels.h"

// GCC 12's own header leaves vectors uninitialised on purpose and warns of it when inlined.
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <limits>

#include "implementations/cpu/amx_vectors.h"
#include "simd/transpose_16.h"

namespace chorale::tiled::amx {
namespace {

CHORALE_AMX __m512i load_row(const bfloat16* row, std::int64_t column, std::int64_t dim) {
  const std::int64_t left = dim - column;
  if (left >= 32) return _mm512_loadu_si512(row + column);
  return _mm512_maskz_loadu_epi16(left <= 0 ? 0 : (1u << left) - 1, row + column);
}
CHORALE_AMX __m512i load_row(const bfloat16* const* rows, std::int64_t row, std::int64_t count,
                             std::int64_t column, std::int64_t dim) {
  return row < count ? load_row(rows[row], column, dim) : _mm512_setzero_si512();
}

// The vectors of a slab's exponentials. Four at a time, step by step: neighbours do not wait for each other.
template <int Groups>
struct SlabSoftmax {
  Exponential exponential;
  __m512 factor;
  const float* scores;
  bfloat16* p;
  __m512 reference[Groups], sums[Groups][2];

  CHORALE_AMX_INLINE SlabSoftmax(const float* s, float f, const Lanes& lanes, bfloat16* to)
      : factor(_mm512_set1_ps(f)), scores(s), p(to) {
    for (int g = 0; g < Groups; ++g) {
      const __m512 r = _mm512_load_ps(lanes.reference + g * group_rows);
      // With nothing seen, any reference gives p = exp2(-inf) = 0.
      const __mmask16 nothing = _mm512_cmp_ps_mask(r, _mm512_set1_ps(minus_infinity), _CMP_EQ_OQ);
      reference[g] = _mm512_mask_mov_ps(r, nothing, _mm512_setzero_ps());
      sums[g][0] = sums[g][1] = _mm512_setzero_ps();
    }
  }

  // The next pair of keys of every group.
  CHORALE_AMX_INLINE void step() {
    constexpr int n = 2 * Groups;
    __m512 x[n];
    for (int i = 0; i < n; ++i)
      x[i] = _mm512_sub_ps(_mm512_load_ps(scores + i / 2 * slab_keys * group_rows + i % 2 * group_rows),
                           reference[i / 2]);
    for (int i = 0; i < n; ++i) x[i] = _mm512_mul_ps(x[i], factor);
    exponential.apply(x);
    for (int i = 0; i < n; ++i) sums[i / 2][i % 2] = _mm512_add_ps(sums[i / 2][i % 2], x[i]);
    for (int g = 0; g < Groups; ++g)
      _mm512_store_si512(p + g * tile_elements, pairs_of_probabilities(x[2 * g], x[2 * g + 1]));
    scores += 2 * group_rows;
    p += 32;
  }

  // Adds the sums to lanes, unless one is above `most`: the rows of which that is so.
  CHORALE_AMX_INLINE Rows finish(float most, Lanes& lanes) const {
    __m512 sum[Groups];
    Rows above = 0;
    for (int g = 0; g < Groups; ++g) {
      sum[g] = _mm512_add_ps(sums[g][0], sums[g][1]);
      above |= Rows{_mm512_cmp_ps_mask(sum[g], _mm512_set1_ps(most), _CMP_GT_OQ)} << g * group_rows;
    }
    if (above != 0) return above;
    for (int g = 0; g < Groups; ++g) {
      float* all = lanes.sum + g * group_rows;
      _mm512_store_ps(all, _mm512_add_ps(_mm512_load_ps(all), sum[g]));
    }
    return 0;
  }
};

// Scores of 32 keys and 32 queries: four accumulators over all dimensions. `between()` is called after every
// product, while the tile unit works.
template <class Between>
CHORALE_AMX_INLINE void score_block(const bfloat16* keys, const bfloat16* queries, std::int64_t steps,
                                    float* out, Between&& between) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t s = 0; s < steps; ++s, keys += 2 * tile_elements, queries += 2 * tile_elements) {
    _tile_loadd(4, keys, 64);
    _tile_loadd(6, queries, 64);
    _tile_dpbf16ps(0, 4, 6);
    between();
    _tile_loadd(7, queries + tile_elements, 64);
    _tile_dpbf16ps(1, 4, 7);
    between();
    _tile_loadd(5, keys + tile_elements, 64);
    _tile_dpbf16ps(2, 5, 6);
    between();
    _tile_dpbf16ps(3, 5, 7);
    between();
  }
  _tile_stored(0, out, 64);
  _tile_stored(1, out + 512, 64);
  _tile_stored(2, out + 256, 64);
  _tile_stored(3, out + 768, 64);
}

struct Nothing {
  CHORALE_AMX_INLINE void operator()() const {}
};
template <int Steps>
struct Softmaxes {
  SlabSoftmax<2>& slab;
  CHORALE_AMX_INLINE void operator()() const {
    for (int i = 0; i < Steps; ++i) slab.step();
  }
};

// What a state under the reference `from` is multiplied by under `to`, as a power of two: exactly 0 where
// they are equal, -inf included.
CHORALE_AMX __m512 difference(__m512 from, __m512 to, float factor) {
  return _mm512_mul_ps(_mm512_maskz_sub_ps(_mm512_cmp_ps_mask(from, to, _CMP_NEQ_UQ), from, to),
                       _mm512_set1_ps(factor));
}

template <int Groups>
CHORALE_AMX_INLINE void hide_groups(const std::uint32_t* visible, float* scores) {
  const __m512 hidden = _mm512_set1_ps(minus_infinity);
  for (int g = 0; g < Groups; ++g, scores += slab_keys * group_rows) {
    const __m512i words = _mm512_loadu_si512(visible + g * group_rows);
    __m512i bit = _mm512_set1_epi32(1);
    for (std::int64_t k = 0; k < slab_keys; ++k, bit = _mm512_slli_epi32(bit, 1))
      _mm512_mask_store_ps(scores + k * group_rows, _mm512_testn_epi32_mask(words, bit), hidden);
  }
}

template <int Groups>
CHORALE_AMX_INLINE Rows unseen_groups(const Lanes& lanes) {
  Rows rows = 0;
  for (int g = 0; g < Groups; ++g)
    rows |= Rows{_mm512_cmp_ps_mask(_mm512_load_ps(lanes.reference + g * group_rows),
                                    _mm512_set1_ps(minus_infinity), _CMP_EQ_OQ)}
            << g * group_rows;
  return rows;
}

template <int Groups>
CHORALE_AMX_INLINE bool raise_groups(const float* scores, float factor, Rows rows, Lanes& lanes,
                                     float* scales) {
  bool any = false;
  for (std::int64_t g = 0; g < Groups; ++g, scores += slab_keys * group_rows, rows >>= group_rows) {
    float *reference = lanes.reference + g * group_rows, *sum = lanes.sum + g * group_rows;
    _mm512_storeu_ps(scales + g * group_rows, _mm512_set1_ps(1));
    const auto asked = static_cast<__mmask16>(rows);
    if (asked == 0) continue;
    const __m512 before = _mm512_load_ps(reference);
    __m512 largest[4] = {before, before, before, before};
    for (std::int64_t k = 0; k < slab_keys; k += 4)
      for (std::int64_t i = 0; i < 4; ++i)
        largest[i] = _mm512_max_ps(largest[i], _mm512_load_ps(scores + (k + i) * group_rows));
    const __m512 maximum =
        _mm512_max_ps(_mm512_max_ps(largest[0], largest[1]), _mm512_max_ps(largest[2], largest[3]));
    const __mmask16 raised = asked & _mm512_cmp_ps_mask(maximum, before, _CMP_GT_OQ);
    const __m512 after = _mm512_mask_mov_ps(before, raised, maximum);
    __m512 scale[1] = {difference(before, after, factor)};
    Exponential().apply(scale);
    _mm512_storeu_ps(scales + g * group_rows, scale[0]);
    _mm512_store_ps(reference, after);
    _mm512_store_ps(sum, _mm512_mul_ps(_mm512_load_ps(sum), scale[0]));
    // A row that had seen nothing has nothing to rescale.
    any |= (_mm512_cmp_ps_mask(before, _mm512_set1_ps(minus_infinity), _CMP_NEQ_UQ) & raised) != 0;
  }
  return any;
}

// Merges lanes of one group; keep and take are what the two outs are multiplied by.
CHORALE_AMX_INLINE void merge_group(const Lanes& later, std::int64_t g, float factor, Lanes& total,
                                    __m512& keep, __m512& take) {
  float *reference = total.reference + g * group_rows, *sum = total.sum + g * group_rows;
  const __m512 first = _mm512_load_ps(reference), second = _mm512_load_ps(later.reference + g * group_rows);
  const __m512 largest = _mm512_max_ps(first, second);
  __m512 scales[2] = {difference(first, largest, factor), difference(second, largest, factor)};
  Exponential().apply(scales);
  keep = scales[0];
  take = scales[1];
  _mm512_store_ps(reference, largest);
  _mm512_store_ps(sum, _mm512_fmadd_ps(_mm512_load_ps(later.sum + g * group_rows), take,
                                       _mm512_mul_ps(_mm512_load_ps(sum), keep)));
}

}  // namespace

CHORALE_AMX void pack_queries(const bfloat16* const* rows, std::int64_t count, std::int64_t dim,
                              bfloat16* out) {
  for (std::int64_t column = 0; column < dim; column += 32)
    for (std::int64_t g = 0; g < 2; ++g, out += tile_elements) {
      __m512i block[16];
      for (std::int64_t r = 0; r < 16; ++r) block[r] = load_row(rows, g * 16 + r, count, column, dim);
      simd::transpose_16x16(block);
      for (std::int64_t r = 0; r < 16; ++r) _mm512_store_si512(out + r * 32, block[r]);
    }
}

CHORALE_AMX void pack_keys(const bfloat16* const* rows, std::int64_t count, std::int64_t dim, bfloat16* out) {
  for (std::int64_t column = 0; column < dim; column += 32)
    for (std::int64_t r = 0; r < slab_keys; ++r, out += 32)
      _mm512_store_si512(out, load_row(rows, r, count, column, dim));
}

CHORALE_AMX bool pack_values(const bfloat16* const* rows, std::int64_t count, std::int64_t dim,
                             bfloat16* out) {
  // A row's lines are neighbours in memory, and those below take one line of every row in turn.
  for (std::int64_t r = 0; r < count; ++r)
    for (std::int64_t column = 0; column < dim; column += 32) __builtin_prefetch(rows[r] + column);
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinity = _mm512_set1_epi16(0x7f80);
  __mmask32 broken = 0;
  for (std::int64_t column = 0; column < dim; column += 32, out += 2 * tile_elements) {
    __m512i low[16], high[16];
    for (std::int64_t pair = 0; pair < 16; ++pair) {
      const __m512i a = load_row(rows, 2 * pair, count, column, dim),
                    b = load_row(rows, 2 * pair + 1, count, column, dim);
      broken |= _mm512_cmpge_epu16_mask(_mm512_and_si512(a, magnitude), infinity) |
                _mm512_cmpge_epu16_mask(_mm512_and_si512(b, magnitude), infinity);
      interleave(a, b, low[pair], high[pair]);
    }
    simd::transpose_16x16(low);
    simd::transpose_16x16(high);
    for (std::int64_t r = 0; r < 16; ++r) {
      _mm512_store_si512(out + r * 32, low[r]);
      _mm512_store_si512(out + tile_elements + r * 32, high[r]);
    }
  }
  return broken == 0;
}

CHORALE_AMX void clear(Lanes& lanes) {
  for (std::int64_t i = 0; i < strip_rows; i += group_rows) {
    _mm512_store_ps(lanes.reference + i, _mm512_set1_ps(minus_infinity));
    _mm512_store_ps(lanes.sum + i, _mm512_setzero_ps());
  }
}

CHORALE_AMX void scores(const bfloat16* keys, const bfloat16* queries, std::int64_t dim, float* out) {
  score_block(keys, queries, padded(dim) / 32, out, Nothing());
}

CHORALE_AMX void hide(const std::uint32_t* visible, float* scores) { hide_groups<2>(visible, scores); }
CHORALE_AMX Rows unseen(const Lanes& lanes) { return unseen_groups<2>(lanes); }
CHORALE_AMX bool raise(const float* scores, float factor, Rows rows, Lanes& lanes, float* scales) {
  return raise_groups<2>(scores, factor, rows, lanes, scales);
}

CHORALE_AMX void rescale(const float* scales, std::int64_t dim, float* out) {
  const __m512 scale[2] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + group_rows)};
  for (std::int64_t i = 0; i < padded(dim) / 16; ++i)
    for (const __m512& s : scale)
      for (std::int64_t r = 0; r < 16; ++r, out += 16)
        _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), s));
}

CHORALE_AMX Rows softmax(const float* scores, float factor, float most, Lanes& lanes, bfloat16* p,
                         const bfloat16* next_keys, const bfloat16* queries, std::int64_t dim,
                         float* next_scores) {
  SlabSoftmax<2> slab(scores, factor, lanes, p);
  const std::int64_t steps = next_keys == nullptr ? 0 : padded(dim) / 32;
  if (steps == 4) {
    score_block(next_keys, queries, 4, next_scores, Softmaxes<1>{slab});
  } else if (steps == 2) {
    score_block(next_keys, queries, 2, next_scores, Softmaxes<2>{slab});
  } else {
    if (steps > 0) score_block(next_keys, queries, steps, next_scores, Nothing());
    for (std::int64_t k = 0; k < slab_keys; k += 2) slab.step();
  }
  return slab.finish(most, lanes);
}

CHORALE_AMX void add_values(const bfloat16* const* values, std::int64_t slabs, const bfloat16* p,
                            std::int64_t dim, float* out, bool accumulate) {
  for (std::int64_t block = 0; block < padded(dim) / 32; ++block, out += 1024) {
    if (accumulate) {
      _tile_loadd(0, out, 64);
      _tile_loadd(1, out + 256, 64);
      _tile_loadd(2, out + 512, 64);
      _tile_loadd(3, out + 768, 64);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (std::int64_t s = 0; s < slabs; ++s) {
      const bfloat16 *left = values[s] + block * 2 * tile_elements, *right = p + s * 2 * tile_elements;
      _tile_loadd(4, left, 64);
      _tile_loadd(6, right, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + tile_elements, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left + tile_elements, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + 512, 64);
    _tile_stored(3, out + 768, 64);
  }
}

CHORALE_AMX void merge(const Lanes& later, const float* later_out, float factor, std::int64_t dim,
                       Lanes& total, float* total_out) {
  __m512 keep[2], take[2];
  for (std::int64_t g = 0; g < 2; ++g) merge_group(later, g, factor, total, keep[g], take[g]);
  for (std::int64_t i = 0; i < padded(dim) / 16; ++i)
    for (int g = 0; g < 2; ++g)
      for (std::int64_t r = 0; r < 16; ++r, total_out += 16, later_out += 16)
        _mm512_store_ps(total_out, _mm512_fmadd_ps(_mm512_load_ps(later_out), take[g],
                                                   _mm512_mul_ps(_mm512_load_ps(total_out), keep[g])));
}

CHORALE_AMX void unpack(const float* out, std::int64_t dim, float* rows) {
  const std::int64_t row = padded(dim);
  for (std::int64_t i = 0; i < row / 16; ++i)
    for (std::int64_t g = 0; g < 2; ++g, out += 256) {
      __m512i block[16];
      for (std::int64_t r = 0; r < 16; ++r) block[r] = _mm512_load_si512(out + r * 16);
      simd::transpose_16x16(block);
      for (std::int64_t r = 0; r < 16; ++r)
        _mm512_storeu_si512(rows + (g * group_rows + r) * row + i * 16, block[r]);
    }
}

CHORALE_AMX void store_quotients(const float* out, const float* divisors, std::int64_t count,
                                 std::int64_t dim, bool past_caches, bfloat16* const* rows) {
  const __m512 one = _mm512_set1_ps(1);
  const __m512 factor[2] = {_mm512_div_ps(one, _mm512_loadu_ps(divisors)),
                            _mm512_div_ps(one, _mm512_loadu_ps(divisors + group_rows))};
  for (std::int64_t column = 0; column < dim; column += 32, out += 1024) {
    const __mmask32 columns = dim - column >= 32 ? ~0u : (1u << (dim - column)) - 1;
    for (std::int64_t g = 0; g < 2; ++g) {
      __m512i block[16];  // two columns of 16 rows; then 32 columns of a row
      for (std::int64_t r = 0; r < 16; ++r) {
        const float* two = out + r / 8 * 512 + g * 256 + r % 8 * 32;
        __m512 x[2];
        for (int i = 0; i < 2; ++i)
          x[i] = _mm512_add_ps(_mm512_mul_ps(_mm512_load_ps(two + i * 16), factor[g]), _mm512_setzero_ps());
        block[r] = pairs_exactly(x[0], x[1]);
      }
      simd::transpose_16x16(block);
      for (std::int64_t r = 0; r < 16 && g * group_rows + r < count; ++r) {
        bfloat16* to = rows[g * group_rows + r] + column;
        const bool line = columns == ~__mmask32{0} && reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
        if (past_caches && line)
          _mm512_stream_si512(reinterpret_cast<__m512i*>(to), block[r]);
        else
          _mm512_mask_storeu_epi16(to, columns, block[r]);
      }
    }
  }
}

CHORALE_AMX void pack_key_tile(const bfloat16* const* rows, std::int64_t count, std::int64_t dim,
                               bfloat16* out) {
  for (std::int64_t column = 0; column < dim; column += 32)
    for (std::int64_t r = 0; r < 16; ++r, out += 32)
      _mm512_store_si512(out, load_row(rows, r, count, column, dim));
}

template <bool Check>
CHORALE_AMX_INLINE bool pack_pairs(const bfloat16* const* rows, std::int64_t count, std::int64_t dim,
                                   bfloat16* out, Prefetch& prefetch) {
  const __m512i magnitude = _mm512_set1_epi16(0x7fff), infinity = _mm512_set1_epi16(0x7f80);
  __mmask32 broken = 0;
  for (std::int64_t pair = 0; pair < 16; ++pair) {
    prefetch.step();
    for (std::int64_t column = 0; column < dim; column += 32) {
      const __m512i a = load_row(rows, 2 * pair, count, column, dim),
                    b = load_row(rows, 2 * pair + 1, count, column, dim);
      if constexpr (Check)
        broken |= _mm512_cmpge_epu16_mask(_mm512_and_si512(a, magnitude), infinity) |
                  _mm512_cmpge_epu16_mask(_mm512_and_si512(b, magnitude), infinity);
      __m512i low, high;
      interleave(a, b, low, high);
      bfloat16* to = out + column / 16 * tile_elements + pair * 32;
      _mm512_store_si512(to, low);
      _mm512_store_si512(to + tile_elements, high);
    }
  }
  return broken == 0;
}

CHORALE_AMX bool pack_value_pairs(const bfloat16* const* rows, std::int64_t count, std::int64_t dim,
                                  bfloat16* out, bool check, Prefetch& prefetch) {
  return check ? pack_pairs<true>(rows, count, dim, out, prefetch)
               : pack_pairs<false>(rows, count, dim, out, prefetch);
}

CHORALE_AMX void scores_of_few(const KeyTile* tiles, std::int64_t count, const bfloat16* queries,
                               std::int64_t dim, float* out, Prefetch& prefetch) {
  // A tile after the other, so that the lines of a row are read in turn. Tile registers are renamed: the next
  // one's products do not wait for these.
  for (const KeyTile* tile = tiles; tile < tiles + count; ++tile, out += 256) {
    _tile_zero(0);
    for (std::int64_t s = 0; s < padded(dim) / 32; ++s) {
      _tile_loadd(4, queries + s * 2 * tile_elements, 64);
      _tile_loadd(5, tile->rows + s * tile->step, tile->stride * 2);
      _tile_dpbf16ps(0, 5, 4);
      prefetch.step();
    }
    _tile_stored(0, out, 64);
  }
}

CHORALE_AMX void hide_from_few(const std::uint32_t* visible, float* scores) {
  hide_groups<1>(visible, scores);
}
CHORALE_AMX Rows unseen_of_few(const Lanes& lanes) { return unseen_groups<1>(lanes); }
CHORALE_AMX bool raise_few(const float* scores, float factor, Rows rows, Lanes& lanes, float* scales) {
  return raise_groups<1>(scores, factor, rows, lanes, scales);
}

CHORALE_AMX void rescale_few(const float* scales, std::int64_t dim, float* out) {
  for (std::int64_t i = 0; i < padded(dim) / 16; ++i)
    for (std::int64_t r = 0; r < group_rows; ++r, out += 16)
      _mm512_store_ps(out, _mm512_mul_ps(_mm512_load_ps(out), _mm512_set1_ps(scales[r])));
}

CHORALE_AMX Rows softmax_of_few(const float* scores, float factor, float most, Lanes& lanes, bfloat16* p,
                                Prefetch& prefetch) {
  SlabSoftmax<1> slab(scores, factor, lanes, p);
  for (std::int64_t k = 0; k < slab_keys; k += 2) {
    prefetch.step();
    slab.step();
  }
  const Rows above = slab.finish(most, lanes);
  if (above != 0) return above;
  __m512i block[16];
  for (std::int64_t r = 0; r < 16; ++r) block[r] = _mm512_load_si512(p + r * 32);
  simd::transpose_16x16(block);
  for (std::int64_t r = 0; r < 16; ++r) _mm512_store_si512(p + r * 32, block[r]);
  return 0;
}

CHORALE_AMX void add_values_to_few(const bfloat16* const* values, std::int64_t slabs, const bfloat16* p,
                                   std::int64_t dim, float* out, Prefetch& prefetch) {
  for (std::int64_t i = 0; i < padded(dim) / 16; ++i, out += 256) {
    prefetch.step();
    _tile_loadd(6, out, 64);
    for (std::int64_t s = 0; s < slabs; ++s) {
      _tile_loadd(7, p + s * tile_elements, 64);
      _tile_loadd(5, values[s] + i * tile_elements, 64);
      _tile_dpbf16ps(6, 7, 5);
    }
    _tile_stored(6, out, 64);
  }
}

CHORALE_AMX void merge_few(const Lanes& later, const float* later_out, float factor, std::int64_t dim,
                           Lanes& total, float* total_out) {
  __m512 keep_lanes, take_lanes;
  merge_group(later, 0, factor, total, keep_lanes, take_lanes);
  alignas(64) float keep[group_rows], take[group_rows];
  _mm512_store_ps(keep, keep_lanes);
  _mm512_store_ps(take, take_lanes);
  for (std::int64_t i = 0; i < padded(dim) / 16; ++i)
    for (std::int64_t r = 0; r < group_rows; ++r, total_out += 16, later_out += 16)
      _mm512_store_ps(total_out,
                      _mm512_fmadd_ps(_mm512_load_ps(later_out), _mm512_set1_ps(take[r]),
                                      _mm512_mul_ps(_mm512_load_ps(total_out), _mm512_set1_ps(keep[r]))));
}

CHORALE_AMX void gradients(float* scores, float* grad_p, const float* lse, const float* delta, float factor) {
  const Exponential exponential;
  const __m512 scale = _mm512_set1_ps(factor);
  for (std::int64_t g = 0; g < 2; ++g) {
    const __m512 offset = _mm512_loadu_ps(lse + g * group_rows),
                 shift = _mm512_loadu_ps(delta + g * group_rows);
    for (std::int64_t k = 0; k < slab_keys; k += 4, scores += 4 * group_rows, grad_p += 4 * group_rows) {
      __m512 x[4];
      for (int i = 0; i < 4; ++i)
        x[i] = _mm512_fmsub_ps(_mm512_load_ps(scores + i * group_rows), scale, offset);
      exponential.apply(x);
      for (int i = 0; i < 4; ++i) {
        _mm512_store_ps(scores + i * group_rows, x[i]);
        const __m512 gradient = _mm512_load_ps(grad_p + i * group_rows);
        _mm512_store_ps(grad_p + i * group_rows, _mm512_mul_ps(x[i], _mm512_sub_ps(gradient, shift)));
      }
    }
  }
}

CHORALE_AMX void round_gradients(const float* p, const float* grad_scores, const std::uint32_t* visible,
                                 bfloat16* p_left, bfloat16* grad_left, bfloat16* grad_right) {
  const __m512i all = _mm512_set1_epi32(-1);
  const __m512i words[2] = {visible == nullptr ? all : _mm512_loadu_si512(visible),
                            visible == nullptr ? all : _mm512_loadu_si512(visible + group_rows)};
  __m512i bit = _mm512_set1_epi32(1);
  for (std::int64_t k = 0; k < slab_keys; k += 2) {
    __m512 gradient[2][2];  // of two keys, by group
    for (int i = 0; i < 2; ++i, bit = _mm512_slli_epi32(bit, 1)) {
      __m512 probability[2];
      for (int g = 0; g < 2; ++g) {
        const __mmask16 seen = _mm512_test_epi32_mask(words[g], bit);
        const std::int64_t at = (g * slab_keys + k + i) * group_rows;
        probability[g] = _mm512_maskz_mov_ps(seen, _mm512_load_ps(p + at));
        gradient[i][g] = _mm512_maskz_mov_ps(seen, _mm512_load_ps(grad_scores + at));
      }
      _mm512_store_si512(p_left + (k + i) * 32, rounded(probability[0], probability[1]));
      _mm512_store_si512(grad_left + (k + i) * 32, rounded(gradient[i][0], gradient[i][1]));
    }
    for (int g = 0; g < 2; ++g)
      _mm512_store_si512(grad_right + g * tile_elements + k * 16, pairs(gradient[0][g], gradient[1][g]));
  }
}

CHORALE_AMX void add_over_queries(const bfloat16* const* left, const bfloat16* const* right,
                                  std::int64_t strips, std::int64_t dim, float* out) {
  const std::int64_t half = padded(dim) * 16;
  for (std::int64_t i = 0; i < padded(dim) / 16; i += 2, out += 512) {
    _tile_loadd(0, out, 64);
    _tile_loadd(1, out + 256, 64);
    _tile_loadd(2, out + half, 64);
    _tile_loadd(3, out + half + 256, 64);
    for (std::int64_t s = 0; s < strips; ++s) {
      const bfloat16* columns = right[s] + i * tile_elements;
      _tile_loadd(4, left[s], 64);
      _tile_loadd(6, columns, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, columns + tile_elements, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, left[s] + tile_elements, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, 64);
    _tile_stored(1, out + 256, 64);
    _tile_stored(2, out + half, 64);
    _tile_stored(3, out + half + 256, 64);
  }
}

}  // namespace chorale::tiled::amx
