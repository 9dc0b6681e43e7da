// As src/mask/emit_cuda.h writes them: k <= q and, where a table is there, one document; a slope for a score.
#pragma once

#include "params.h"

namespace chorale::kernels {

struct KeyValues {
  static constexpr int count = 1;
  int v[count];
};
using RowValues = KeyValues;
inline int program_document(const TableView* tables, int k) {
  if (tables[0].columns == 0) return 0;
  return static_cast<const int*>(tables[0].values)[std::clamp(k, 0, tables[0].columns - 1)];
}
inline KeyValues program_keys(const TableView* tables, int, int k) { return {{program_document(tables, k)}}; }
inline RowValues program_rows(const TableView* tables, int b, int, int q) {
  return program_keys(tables, b, q);
}
inline bool program_visible(const TableView*, int, int, int q, int k, const RowValues& row,
                            const KeyValues& key) {
  return k <= q && row.v[0] == key.v[0];
}
inline float program_score(const TableView*, float score, float scale, int, int h, int q, int k,
                           const RowValues&, const KeyValues&) {
  return score * scale - 0.01f * static_cast<float>((h + 1) * (q - k));
}
// Documents of the two ranges that do not meet: no pair is visible.
inline int program_coverage(const TableView* tables, int, int, int, int q_first, int q_last, int k_first,
                            int k_last) {
  if (k_first > q_last) return 0;
  if (tables[0].columns == 0) return k_last <= q_first ? 2 : 1;
  int low[2], high[2];
  const int first[2] = {q_first, k_first}, last[2] = {q_last, k_last};
  for (int i = 0; i < 2; ++i) {
    low[i] = high[i] = program_document(tables, first[i]);
    for (int k = first[i]; k <= last[i]; ++k) {
      low[i] = std::min(low[i], program_document(tables, k));
      high[i] = std::max(high[i], program_document(tables, k));
    }
  }
  if (low[0] > high[1] || low[1] > high[0]) return 0;
  return k_last <= q_first && low[0] == high[0] && low[1] == high[1] ? 2 : 1;
}

}  // namespace chorale::kernels
