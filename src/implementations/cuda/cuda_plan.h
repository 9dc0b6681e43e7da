// The work list of one batch on a GPU.
//
// All that kernels read of it is its image, which lies in pinned memory and goes to the device by one copy.
// Every stream that runs the plan has device memory of its own for it: the image, and behind it what launches
// write: partial states of a split decode, and, where the forward kernel works on 8-bit keys, these as 16-bit
// ones: of all its sequences' keys (in whole tiles, their number rounded up to a power of two), for as many
// KV heads as 32 MiB hold, at least one. So launches in different streams share nothing that either writes.
// The stream's first forward takes that memory; where the card has no room for it, that fails with
// resource_exhausted, which names the bytes that are needed and those that are free, and may be tried again.
//
// So has every capture of a graph, each stream of it. Its addresses stay for the plan's life: the graph
// replays, in any stream, with what update() put there. Replays of graphs that one capture gave must follow
// one another. The plan must live until they are over.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "chorale/implementation.h"
#include "implementations/cuda/gpu.h"
#include "implementations/cuda/plan_memory.h"
#include "implementations/cuda/work_list.h"

namespace chorale::cuda {

class CudaPlan final : public Plan {
 public:
  // Compiles and loads the kernels that it needs, if nobody did before. `cluster` of the decode kernel: 1 or
  // 2, 0 chooses by what there is to do.
  static Result<std::shared_ptr<CudaPlan>> create(std::string_view implementation, Gpu& gpu,
                                                  const Problem& problem, const Batch& batch,
                                                  const Order& order, int cluster = 0);
  ~CudaPlan() override;

  // The same plan for another batch: what follows in any stream works on that. A graph's memory gets it in
  // the order of `stream`, which must not be captured; replays in another stream have to follow that. The
  // batch may have as much of everything as the plan has room for: the first batch's, rounded up to a power
  // of two; resource_exhausted says what has no room. It must need the same kernels: invalid_argument says
  // which does not. On failure the plan is as it was. Not while another thread uses the plan.
  Status update(const Batch& batch, void* stream);
  // Puts the plan on the GPU in the order of `stream`, or for the capture that it takes part in. forward()
  // does it where nobody did.
  Status upload(void* stream) const;
  // Safe to call from several threads at once.
  Status forward(const ForwardTensors& tensors) const;

  struct Heads {  // KV heads
    int first, count;
  };

 private:
  // Where things lie in a copy's memory: offsets.
  struct PartLayout {
    std::size_t counts, next_item, row_blocks, split_items, sequences, arrivals, partial_out,
        partial_reference, partial_sum;
  };
  struct Layout {
    PartLayout forward, decode;
    std::size_t sequences, key_tiles, tables, block_table, table_values;
    std::size_t widened_keys, widened_values;  // the last of all
    std::size_t image_bytes;                   // what the host writes comes first
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

  // Whose launches follow one another: those in a stream, or those that a capture takes from a stream.
  struct Lane {
    unsigned long long id;  // the driver's, of the stream or the capture
    Stream captured;        // null: no capture
    bool operator==(const Lane&) const = default;
  };
  struct Copy {
    Lane lane;
    std::unique_ptr<DeviceMemory> memory;
    int version;  // of the image that is there
  };

  CudaPlan(std::string_view implementation, Gpu& gpu, Problem bound, Batch batch, const Order& order)
      : Plan(implementation, std::move(bound), std::move(batch)), gpu_(gpu), order_(order) {}

  static Sizes sizes_of(const Problem& problem, const Batch& batch, const WorkSizes& work);
  static Status check_room(const Sizes& wanted, const Sizes& room);
  Result<Kernels> find_kernels(const Problem& problem, const Batch& batch, const WorkSizes& work) const;
  std::size_t arrival_counters() const;
  Layout lay_out() const;
  void write_image(const Batch& batch, const WorkSizes& work);
  void point_at_widened(const WorkSizes& work) const;
  template <class T>
  T* image_at(std::size_t offset) const {
    return reinterpret_cast<T*>(image_->data() + offset);
  }
  Result<Lane> lane_of(Stream stream) const;
  Result<std::unique_ptr<DeviceMemory>> take_memory(const Lane& lane) const;
  Status send(Copy& copy, Stream stream) const;
  Result<DevicePointer> be_there(Stream stream) const;
  kernels::PlanView view_of(DevicePointer memory, const PartLayout& layout) const;
  Status forward_widened(DevicePointer memory, const ForwardTensors& tensors) const;
  Status widen(DevicePointer memory, const ForwardTensors& tensors, const TensorView& to_k,
               const TensorView& to_v, Heads heads) const;
  Status launch(const Kernel& kernel, DevicePointer memory, const PartLayout& layout,
                const ForwardTensors& tensors, Heads heads) const;
  void choose_widened_heads();

  Gpu& gpu_;
  Order order_;
  Kernels kernels_;
  Sizes room_{};
  Layout layout_{};
  DecodeShape decode_shape_;
  int widened_heads_ = 1;          // KV heads of a launch over widened keys
  std::int64_t largest_page_ = 0;  // -1: none

  mutable std::mutex mutex_;  // guards what follows, and keeps one forward's launches together
  mutable std::unique_ptr<PinnedMemory> image_;
  mutable std::vector<Copy> copies_;
  int version_ = 0;  // of the image
};

}  // namespace chorale::cuda
