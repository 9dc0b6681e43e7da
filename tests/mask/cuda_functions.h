// The compiled functions of each case, in the order of cuda_cases().
#pragma once

#include "params.h"

namespace chorale::testing {

struct CudaFunctions {
  bool (*visible)(const kernels::TableView* tables, int b, int h, int q, int k);
  float (*score)(const kernels::TableView* tables, float score, int b, int h, int q, int k);
  int (*coverage)(const kernels::TableView* tables, int b, int h_first, int h_last, int q_first, int q_last,
                  int k_first, int k_last);
};
extern const CudaFunctions cuda_functions[];

}  // namespace chorale::testing
