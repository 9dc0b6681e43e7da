// Placements, and a tensor cut by one.
#include <fmt/format.h>

#include "chorale/parallel.h"
#include "parallel/shards.h"

namespace chorale {

std::string Placement::describe() const {
  return kind == Kind::replicate ? "Replicate()" : fmt::format("Shard({})", dimension);
}

Result<DistributedTensor> distribute(const Tensor& whole, Placement placement,
                                     const Communicator& communicator) {
  if (placement.kind == Placement::Kind::replicate) return DistributedTensor{whole, placement};
  CHORALE_RETURN_IF_ERROR(check_shard("distribute", whole, placement.dimension));
  const std::int64_t extent = whole.shape(placement.dimension);
  const std::int64_t part = extent / communicator.size();
  if (part * communicator.size() != extent)
    return Status::invalid_argument(
        fmt::format("distribute: dimension {} of {} has {} entries: must divide by the {} ranks",
                    placement.dimension, whole.view().describe(), extent, communicator.size()));
  const std::int64_t first = part * communicator.rank();
  return DistributedTensor{contiguous_copy(whole.view().slice(placement.dimension, first, first + part)),
                           placement};
}

Result<Tensor> DistributedTensor::full(Communicator& communicator) const {
  if (placement.kind == Placement::Kind::replicate) return local;
  return communicator.all_gather(local, placement.dimension);
}

}  // namespace chorale
