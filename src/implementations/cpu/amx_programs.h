// Score programs for scores that lie transposed, a key a row (amx_kernels.h).
#pragma once

#include "implementations/cpu/plan.h"
#include "mask/program.h"

namespace chorale::tiled::amx {

class Programs {
 public:
  explicit Programs(const TiledPlan& plan);

  // `rows` query rows from first_row on (numbered as TiledPlan::query_of_row does) against one slab.
  struct Place {
    int sequence, kv_head;
    std::int64_t first_row, rows, slab;
  };
  // Turns products q . k into what the score program makes of them. `before`, if not null, gets what the
  // program saw.
  void apply(const Place& place, float* scores, float* before);
  // Multiplies gradients of scores by the program's derivative.
  void differentiate(const Place& place, const float* before, float* gradients);

 private:
  // Calls use(row, start point, number of keys) with each query row as an array; it becomes the lane again.
  template <class Use>
  void each_row(const Place& place, const float* from, float* to, Use use);

  const TiledPlan& plan_;
  RowEvaluator score_, derivative_;
  bool plain_;
};

}  // namespace chorale::tiled::amx
