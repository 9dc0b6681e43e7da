// The work list of one batch on a GPU.
//
// What kernels read of it lies in one block of device memory and is written by one copy. Its parts keep their
// addresses for the plan's life, so that a CUDA graph which was captured with the plan replays with what
// update() put there.
//
// In the same block lie the partial states of a split decode, and, where the forward kernel works on 8-bit
// keys, these as 16-bit ones: of all its sequences' keys (in whole tiles, their number rounded up to a power
// of two), for as many KV heads as 32 MiB hold, at least one. The first upload takes the block; where the
// card has no room for it, that fails with resource_exhausted, which names the bytes that are needed and
// those that are free, and the plan may try again.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "chorale/implementation.h"
#include "implementations/cuda/gpu.h"
#include "implementations/cuda/page_table.h"
#include "implementations/cuda/plan_memory.h"
#include "implementations/cuda/work_list.h"

namespace chorale::cuda {

class CudaPlan final : public Plan {
 public:
  // Compiles and loads the kernels that it needs, if nobody did before.
  static Result<std::shared_ptr<CudaPlan>> create(std::string_view implementation, Gpu& gpu,
                                                  const Problem& problem, const Batch& batch,
                                                  const Order& order);
  ~CudaPlan() override;

  // The same plan for another batch, in the order of `stream`. The batch may have as much of everything as
  // the plan has room for: the first batch's, rounded up to a power of two; resource_exhausted says what has
  // no room. It must need the same kernels: invalid_argument says which does not. On failure the plan is as
  // it was. Not while another thread uses the plan.
  Status update(const Batch& batch, void* stream);
  // Puts the plan on the GPU in the order of `stream`. forward() does it where nobody did, but not while a
  // graph is being captured.
  Status upload(void* stream) const;
  Status forward(const ForwardTensors& tensors) const;

  struct Heads {  // KV heads
    int first, count;
  };

 private:
  // Where things lie in the plan's memory: offsets.
  struct PartLayout {
    std::size_t counts, next_item, row_blocks, split_items, sequences, arrivals, partial_out,
        partial_reference, partial_sum;
  };
  struct Layout {
    PartLayout forward, decode;
    std::size_t sequences, key_tiles, tables, block_table, table_values;
    std::size_t widened_keys, widened_values;  // the last of all
    std::size_t staged_bytes;                  // what the host writes comes first
    std::size_t device_bytes;
  };
  // How many of everything.
  struct Sizes {
    std::size_t sequences, forward_blocks, decode_blocks, split_items, slots, key_tiles, block_table,
        table_bytes;
  };
  struct Kernels {
    const Kernel *widen = nullptr, *forward = nullptr, *decode = nullptr;  // null: nothing to do
  };

  CudaPlan(std::string_view implementation, Gpu& gpu, Problem bound, Batch batch, const Order& order)
      : Plan(implementation, std::move(bound), std::move(batch)), gpu_(gpu), order_(order) {}

  static Sizes sizes_of(const Problem& problem, const Batch& batch, const WorkList& work);
  static std::size_t arrival_counters(const Sizes& sizes);
  static Status check_room(const Sizes& wanted, const Sizes& room);
  Result<Kernels> find_kernels(const Problem& problem, const Batch& batch, const WorkList& work) const;
  Layout lay_out(const Sizes& sizes) const;
  void write(std::byte* host, DevicePointer device) const;
  void write_part(std::byte* host, const PartLayout& layout, const WorkList::Part& part) const;
  void write_widened(std::byte* host) const;
  Result<bool> is_capturing(Stream stream) const;
  Status upload_locked(Stream stream) const;
  Status take_memory(unsigned long long stream_id) const;
  Status be_there(Stream stream) const;
  template <class T>
  void point_at(std::size_t offset, T*& to) const;
  kernels::PlanView view_of(const PartLayout& layout) const;
  Status forward_widened(const ForwardTensors& tensors) const;
  Status widen(const ForwardTensors& tensors, const TensorView& to_k, const TensorView& to_v,
               Heads heads) const;
  Status launch(const Kernel& kernel, const PartLayout& layout, const ForwardTensors& tensors,
                Heads heads) const;
  void look_over();

  Gpu& gpu_;
  Order order_;
  WorkList work_;
  Kernels kernels_;
  Sizes room_{};
  Layout layout_{};
  PageTable pages_;
  int heads_together_ = 1;  // kernels::ForwardParams

  mutable std::mutex mutex_;  // guards what follows: uploading is part of the first forward
  mutable std::unique_ptr<PlanMemory> memory_;
  mutable unsigned long long stream_id_ = 0;   // in whose order it was uploaded
  mutable unsigned long long awaited_id_ = 0;  // the last other stream that waited for that
};

}  // namespace chorale::cuda
