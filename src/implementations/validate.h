// What every implementation asks of its callers, checked the same way for all of them.
#pragma once

#include <string_view>

#include "chorale/implementation.h"

namespace chorale {

// At plan time: the problem and the batch are each valid, and no table of the mask or the score is indexed
// outside for any pair of the batch. Returns the problem with the batch's tables bound.
Result<Problem> check_plan(const Problem& problem, const Batch& batch);

// ok if the device is a processor; else what a processor's implementation says of it.
Status check_is_cpu(const Device& device);

// Where the tensors lie. What is on a GPU is not looked into: the values of scales are the caller's word, and
// page numbers are the plan's to check.
enum class Memory { host, device };

// At run time: the plan is `implementation`'s own, the tensors fit its batch and share no memory with an
// output, and the page numbers that sequences use lie in the pool. Entries that no sequence uses are never
// looked at.
Status check_forward(const Plan& plan, std::string_view implementation, const ForwardTensors& tensors,
                     Memory memory = Memory::host);
Status check_backward(const Plan& plan, std::string_view implementation, const BackwardTensors& tensors);

// ok if `plan` was made for `problem`, up to the tables that its batch brought.
Status check_same_problem(const Plan& plan, const Problem& problem);

}  // namespace chorale
