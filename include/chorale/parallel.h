// Heads over ranks: run attention on each rank's own heads, and say how the outputs lie.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "chorale/kv_cache.h"
#include "chorale/problem.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// How a tensor lies over the ranks: whole on each of them, or cut along one dimension into equal parts.
struct Placement {
  enum class Kind { replicate, shard } kind = Kind::replicate;
  int dimension = 0;  // of shard
  static Placement replicate() { return {}; }
  static Placement shard(int dimension) { return {Kind::shard, dimension}; }
  bool operator==(const Placement&) const = default;
  std::string describe() const;  // "Replicate()", "Shard(1)"
};

// A group of processes that call the same functions in the same order. Not thread-safe.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // Gathers equal shards along a dimension; every rank gets the whole.
  virtual Result<Tensor> all_gather(const TensorView& shard, int dimension) = 0;
  virtual Status barrier() = 0;
};
// The one process alone, and MPI_COMM_WORLD (MPI is initialised on first use, finalised at exit).
std::shared_ptr<Communicator> single_process();
Result<std::shared_ptr<Communicator>> mpi_world();

// This rank's part of a tensor and how the whole lies.
struct DistributedTensor {
  Tensor local;
  Placement placement;
  // The whole tensor, on every rank.
  Result<Tensor> full(Communicator& communicator) const;
};
// Cuts a tensor that every rank holds; fails if the dimension does not divide.
Result<DistributedTensor> distribute(const Tensor& whole, Placement placement,
                                     const Communicator& communicator);

// Calls `function` with every input's local part and labels its outputs with `out_placements`. Inputs whose
// placement is not the one asked for are an error, as is a different number of inputs or outputs: nothing is
// moved silently.
using LocalFunction = std::function<Result<std::vector<Tensor>>(std::span<const Tensor>)>;
Result<std::vector<DistributedTensor>> local_map(const LocalFunction& function,
                                                 std::span<const DistributedTensor> inputs,
                                                 std::span<const Placement> in_placements,
                                                 std::span<const Placement> out_placements,
                                                 Communicator& communicator);

// The part of a problem that one rank computes: its heads, with first_query_head set so that programs see
// global heads. Fails if kv_heads does not divide by the ranks, naming both.
Result<Problem> shard_heads(const Problem& problem, const Communicator& communicator);
// The part of a cache that one rank keeps: its KV heads, with their scales of every layer where the pages
// hold float8_e4m3.
Result<KvCacheConfig> shard_heads(const KvCacheConfig& cache, const Communicator& communicator);
// This rank's of scales [layers, kv_heads]: what its trainer quantises its own keys or values with.
Result<std::vector<float>> shard_scales(std::span<const float> scales, int kv_heads,
                                        const Communicator& communicator);

}  // namespace chorale
