// local_map: the same computation on every rank, each with its own part of the data.
#include <fmt/format.h>

#include "base/float.h"
#include "chorale/parallel.h"

namespace chorale {
namespace {

Status check_inputs(std::span<const DistributedTensor> inputs, std::span<const Placement> asked) {
  if (inputs.size() != asked.size())
    return Status::invalid_argument(
        fmt::format("local_map: {} inputs given: in_placements names {}", inputs.size(), asked.size()));
  for (std::size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].placement != asked[i])
      return Status::invalid_argument(fmt::format("local_map: input {} lies as {}: must be {}", i,
                                                  inputs[i].placement.describe(), asked[i].describe()));
  return Status::ok();
}

Status check_outputs(std::span<const Tensor> outputs, std::span<const Placement> labels) {
  if (outputs.size() != labels.size())
    return Status::invalid_argument(fmt::format("local_map: {} outputs returned: out_placements names {}",
                                                outputs.size(), labels.size()));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const int rank = outputs[i].view().rank;
    if (labels[i].kind == Placement::Kind::shard && (labels[i].dimension < 0 || labels[i].dimension >= rank))
      return Status::invalid_argument(fmt::format("local_map: output {} is {}: cannot be labelled {}", i,
                                                  outputs[i].view().describe(), labels[i].describe()));
  }
  return Status::ok();
}

Result<std::vector<Tensor>> run_locally(const LocalFunction& function,
                                        std::span<const DistributedTensor> inputs,
                                        std::span<const Placement> in_placements,
                                        std::span<const Placement> out_placements) {
  CHORALE_RETURN_IF_ERROR(check_inputs(inputs, in_placements));
  std::vector<Tensor> local;
  for (const DistributedTensor& input : inputs) local.push_back(input.local);
  CHORALE_ASSIGN_OR_RETURN(std::vector<Tensor> outputs, function(local));
  CHORALE_RETURN_IF_ERROR(check_outputs(outputs, out_placements));
  return outputs;
}

// Every rank learns whether any rank failed, so that none goes on to wait for one that has left.
Status agree(const Status& mine, Communicator& communicator) {
  Tensor code = Tensor::zeros(DType::float32, {1});
  code.as<float>()[0] = static_cast<float>(mine.code());
  const Result<Tensor> codes = communicator.all_gather(code, 0);
  if (!mine.is_ok()) return mine;
  if (!codes) return codes.status();
  for (int rank = 0; rank < communicator.size(); ++rank)
    if (const auto theirs = static_cast<Code>(codes->as<float>()[static_cast<std::size_t>(rank)]);
        theirs != Code::ok)
      return Status(theirs,
                    fmt::format("local_map: rank {} failed ({}), so no rank goes on; it has the reason", rank,
                                name(theirs)));
  return Status::ok();
}

}  // namespace

Result<std::vector<DistributedTensor>> local_map(const LocalFunction& function,
                                                 std::span<const DistributedTensor> inputs,
                                                 std::span<const Placement> in_placements,
                                                 std::span<const Placement> out_placements,
                                                 Communicator& communicator) {
  Result<std::vector<Tensor>> outputs = run_locally(function, inputs, in_placements, out_placements);
  CHORALE_RETURN_IF_ERROR(agree(outputs.status(), communicator));
  std::vector<DistributedTensor> labelled;
  for (std::size_t i = 0; i < outputs->size(); ++i)
    labelled.push_back({std::move((*outputs)[i]), out_placements[i]});
  return labelled;
}

}  // namespace chorale
