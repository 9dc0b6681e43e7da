#include "implementations/cpu/amx_hidden.h"

#include <algorithm>

#include "base/aligned.h"

namespace chorale::tiled::amx {
namespace {

bool sees(const std::uint32_t* visible, std::int64_t row, std::int64_t key) {
  return visible[row] >> key & 1;
}

// Where an element of a right operand lies: inner value `inner` of column `column`.
std::size_t in_pairs(std::int64_t inner, std::int64_t column) {
  return static_cast<std::size_t>(column / 16 * tile_elements + inner / 2 * 32 + column % 16 * 2 + inner % 2);
}

// For each of `count` rows (or keys): `hidden` clears what it does not see in a copy of the operand,
// `multiply` adds the product with that to a copy of out, and `keep` names the elements that are the row's
// own.
template <class Hide, class Multiply, class Element>
void one_by_one(std::int64_t count, const bfloat16* operand, std::int64_t dim, float* out, Hide hide,
                Multiply multiply, Element element) {
  const AlignedVector<float> before(out, out + 32 * padded(dim));
  for (std::int64_t i = 0; i < count; ++i) {
    AlignedVector<bfloat16> shown(operand, operand + block_elements(dim));
    AlignedVector<float> sums = before;
    for (std::int64_t c = 0; c < padded(dim); ++c) hide(i, c, shown);
    multiply(shown.data(), sums.data());
    for (std::int64_t c = 0; c < padded(dim); ++c) {
      const std::int64_t index = element(i, c);
      out[index] = sums[static_cast<std::size_t>(index)];
    }
  }
}

}  // namespace

void add_visible_values(const std::uint32_t* visible, const bfloat16* values, const bfloat16* p,
                        std::int64_t dim, float* out) {
  one_by_one(
      strip_rows, values, dim, out,
      [&](std::int64_t row, std::int64_t c, AlignedVector<bfloat16>& shown) {
        for (std::int64_t k = 0; k < slab_keys; ++k)
          if (!sees(visible, row, k)) shown[static_cast<std::size_t>(c * slab_keys + k)] = {0};
      },
      [&](const bfloat16* shown, float* sums) { add_values(&shown, 1, p, dim, sums, true); },
      [](std::int64_t row, std::int64_t c) {
        return (c / 16 * 2 + row / 16) * 256 + c % 16 * 16 + row % 16;
      });
}

void add_visible_values_to_few(const std::uint32_t* visible, const bfloat16* values, const bfloat16* p,
                               std::int64_t dim, float* out) {
  AlignedVector<float> all(static_cast<std::size_t>(32 * padded(dim)));
  std::copy_n(out, group_rows * padded(dim), all.data());
  Prefetch none;
  one_by_one(
      group_rows, values, dim, all.data(),
      [&](std::int64_t row, std::int64_t c, AlignedVector<bfloat16>& shown) {
        for (std::int64_t k = 0; k < slab_keys; ++k)
          if (!sees(visible, row, k)) shown[in_pairs(k, c)] = {0};
      },
      [&](const bfloat16* shown, float* sums) { add_values_to_few(&shown, 1, p, dim, sums, none); },
      [](std::int64_t row, std::int64_t c) { return c / 16 * 256 + row * 16 + c % 16; });
  std::copy_n(all.data(), group_rows * padded(dim), out);
}

void add_visible_over_queries(const std::uint32_t* visible, const bfloat16* left, const bfloat16* right,
                              std::int64_t dim, float* out) {
  one_by_one(
      slab_keys, right, dim, out,
      [&](std::int64_t key, std::int64_t c, AlignedVector<bfloat16>& shown) {
        for (std::int64_t r = 0; r < strip_rows; ++r)
          if (!sees(visible, r, key)) shown[in_pairs(r, c)] = {0};
      },
      [&](const bfloat16* shown, float* sums) { add_over_queries(&left, &shown, 1, dim, sums); },
      [&](std::int64_t key, std::int64_t c) {
        return key / 16 * padded(dim) * 16 + c / 16 * 256 + key % 16 * 16 + c % 16;
      });
}

}  // namespace chorale::tiled::amx
