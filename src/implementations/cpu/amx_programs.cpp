#include "implementations/cpu/amx_programs.h"

#include <algorithm>

#include "implementations/cpu/amx_kernels.h"

namespace chorale::tiled::amx {

Programs::Programs(const TiledPlan& plan)
    : plan_(plan),
      score_(plan.problem().score.program()),
      derivative_(plan.problem().score.derivative()),
      plain_(plan.problem().score.is_identity()) {}

template <class Use>
void Programs::each_row(const Place& place, const float* from, float* to, Use use) {
  const std::int64_t first = place.slab * slab_keys, group = plan_.problem().group_size();
  const std::int64_t count = std::min(slab_keys, plan_.keys(place.sequence) - first);
  for (std::int64_t r = 0; r < place.rows; ++r) {
    const std::int64_t index = place.first_row + r;
    const std::int64_t lane = r / group_rows * slab_keys * group_rows + r % group_rows;
    float row[slab_keys];
    for (std::int64_t k = 0; k < count; ++k) row[k] = from[lane + k * group_rows];
    use(row,
        Point{.b = place.sequence,
              .h = plan_.problem().first_query_head + place.kv_head * group + index % group,
              .q = plan_.position(place.sequence, index / group),
              .k = first},
        count);
    for (std::int64_t k = 0; k < count; ++k) to[lane + k * group_rows] = row[k];
  }
}

void Programs::apply(const Place& place, float* scores, float* before) {
  if (plain_) return;
  if (before != nullptr)
    for (std::int64_t i = 0; i < score_elements; ++i) before[i] = scores[i] * plan_.scale();
  each_row(place, scores, scores, [&](float* row, const Point& start, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) row[k] *= plan_.scale();
    score_.score(start, count, row, row);
  });
}

void Programs::differentiate(const Place& place, const float* before, float* gradients) {
  if (plain_) return;
  float slopes[score_elements];
  each_row(place, before, slopes, [&](float* row, const Point& start, std::int64_t count) {
    derivative_.score(start, count, row, row);
  });
  const std::int64_t count = std::min(slab_keys, plan_.keys(place.sequence) - place.slab * slab_keys);
  for (std::int64_t r = 0; r < place.rows; ++r) {
    const std::int64_t lane = r / group_rows * slab_keys * group_rows + r % group_rows;
    for (std::int64_t k = 0; k < count; ++k)
      gradients[lane + k * group_rows] *= slopes[lane + k * group_rows];
  }
}

}  // namespace chorale::tiled::amx
