// As src/mask/emit_cuda.h writes them: k <= q and, where a table is there, one document.
#pragma once

#include "params.h"

namespace chorale::kernels {

struct KeyValues {
  static constexpr int count = 1;
  int v[count];
};
using RowValues = KeyValues;
inline KeyValues program_keys(const TableView* tables, int, int k) {
  return {{tables[0].columns == 0
               ? 0
               : static_cast<const int*>(tables[0].values)[std::min(k, tables[0].columns - 1)]}};
}
inline RowValues program_rows(const TableView* tables, int b, int, int q) {
  return program_keys(tables, b, q);
}
inline bool program_visible(const TableView*, int, int, int q, int k, const RowValues& row,
                            const KeyValues& key) {
  return k <= q && row.v[0] == key.v[0];
}
inline float program_score(const TableView*, float score, float scale, int, int, int, int, const RowValues&,
                           const KeyValues&) {
  return score * scale;
}
inline int program_coverage(const TableView* tables, int, int, int, int q_first, int q_last, int k_first,
                            int k_last) {
  if (k_first > q_last) return 0;
  return tables[0].columns == 0 && k_last <= q_first ? 2 : 1;
}

}  // namespace chorale::kernels
