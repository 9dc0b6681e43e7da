// What `chorale bench` times: one phase of one layer on random data, and how much work that is.
#pragma once

#include <cstdint>
#include <vector>

#include "chorale/attention.h"

namespace chorale::app {

struct WorkShape {
  Phase phase = Phase::forward;  // forward: packed; prefill and decode: pages in random order
  int sequences = 1, length = 0, page_size = 16;
};

// The tensors lie in host memory and live as long as this.
class Work {
 public:
  static Result<Work> create(const Problem& problem, const WorkShape& shape);
  const Batch& batch() const { return batch_; }
  const ForwardTensors& tensors() const { return tensors_; }

  double operations() const { return operations_; }  // products of visible pairs
  double bytes() const { return bytes_; }            // of keys and values, each read once

 private:
  Batch batch_;
  std::vector<Tensor> owned_;
  ForwardTensors tensors_;
  double operations_ = 0, bytes_ = 0;
};

}  // namespace chorale::app
