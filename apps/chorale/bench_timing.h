// Timing of `chorale bench`.
#pragma once

#include <functional>

#include "chorale/status.h"
#include "implementations/cuda/gpu.h"

namespace chorale::app {

struct Timing {
  double seconds = 0;  // of a step, median
  double spread = 0;   // interquartile range over median
};

// Runs the step for about so many seconds, after once to warm up.
Result<Timing> time_on_cpu(const std::function<Status()>& step, double seconds);
// The same on a GPU: a sample is ten steps in one stream between two events.
Result<Timing> time_on_gpu(const cuda::Gpu& gpu, const std::function<Status(cuda::Stream)>& step,
                           double seconds);

// Bytes a second of a copy within the GPU's memory, read and written.
Result<double> copy_bandwidth(const cuda::Gpu& gpu, double seconds);

}  // namespace chorale::app
