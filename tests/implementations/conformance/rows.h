// Rows of a case's results, found by what they are and not by where they lie.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <tuple>
#include <vector>

#include "base/float.h"
#include "implementations/conformance/case.h"

namespace chorale::conformance {

using Token = std::tuple<std::uint64_t, std::int64_t, std::int64_t>;  // content, position, head
using RowBits = std::vector<std::uint32_t>;
using Rows = std::map<Token, RowBits>;

inline void append(const TensorView& view, std::int64_t row, std::int64_t head, RowBits& bits) {
  const std::int64_t columns = view.rank == 3 ? view.shape[2] : 1;
  for (std::int64_t c = 0; c < columns; ++c) {
    const std::int64_t at = row * view.stride[0] + head * view.stride[1] + c;
    bits.push_back(std::bit_cast<std::uint32_t>(load_element(view.data, view.dtype, at)));
  }
}

// One row after the other of every tensor, whose rows are a sequence's queries or its keys.
inline Rows collect(const Case& test, std::int32_t Sequence::*length,
                    std::initializer_list<const Stored*> tensors) {
  Rows rows;
  std::int64_t row = 0;
  for (const Sequence& s : test.sequences) {
    for (std::int64_t i = 0; i < s.*length; ++i, ++row) {
      for (std::int64_t head = 0; head < (*tensors.begin())->view.shape[1]; ++head) {
        RowBits& bits = rows[{s.content, s.keys - s.*length + i, head}];
        for (const Stored* tensor : tensors) append(tensor->view, row, head, bits);
      }
    }
  }
  return rows;
}
inline Rows forward_rows(const Case& test, const Data& data) {
  return collect(test, &Sequence::queries, {&data.out, &data.lse});
}

// How many rows of `some` are in `all` with other bits. Rows that `all` lacks are a mistake of the test.
inline std::size_t differences(const Rows& all, const Rows& some) {
  std::size_t count = 0;
  for (const auto& [token, bits] : some) {
    const auto found = all.find(token);
    if (found == all.end())
      ADD_FAILURE() << "no row to compare with";
    else if (found->second != bits)
      ++count;
  }
  return count;
}

}  // namespace chorale::conformance
