// Attention: a resolved implementation bound to a problem.
#pragma once

#include <memory>
#include <string_view>

#include "chorale/implementation.h"

namespace chorale {

// Cheap to copy, immutable, and safe to use from several threads at once: two threads that run forward on one
// Attention each get what they would get alone.
class Attention {
 public:
  // `implementation`: a name of implementation_names() or "auto". An explicit name that cannot serve is an
  // error with the reason, never another implementation in its place. Phases: what it will be used for.
  static Result<Attention> create(Problem problem, std::string_view implementation = "auto",
                                  Device device = Device::cpu(),
                                  std::initializer_list<Phase> phases = {Phase::forward});
  Attention(Problem problem, const Implementation& implementation, Device device);

  const Problem& problem() const { return problem_; }
  const Implementation& implementation() const { return *implementation_; }
  Fingerprint fingerprint() const { return implementation_->fingerprint(problem_, device_); }

  // Host work only, once a step. Checks the batch and every table index.
  Result<std::shared_ptr<const Plan>> plan(const Batch& batch) const;
  // `plan` must come from this Attention's plan() (or that of an equal one).
  Status forward(const Plan& plan, const ForwardTensors& tensors) const;
  Status backward(const Plan& plan, const BackwardTensors& tensors) const;

 private:
  Problem problem_;
  const Implementation* implementation_;
  Device device_;
};

}  // namespace chorale
