#include "implementations/cuda/cuda_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "implementations/cuda/page_table.h"
#include "implementations/cuda/plan_tables.h"
#include "implementations/validate.h"
#include "mask/emit_cuda.h"

namespace chorale::cuda {
namespace {

// Hands out offsets one after another.
class Cursor {
 public:
  template <class T>
  std::size_t take(std::size_t count) {
    constexpr std::size_t alignment = 128;  // a line of the L2 cache
    at_ = (at_ + alignment - 1) / alignment * alignment;
    return std::exchange(at_, at_ + count * sizeof(T));
  }
  std::size_t at() const { return at_; }

 private:
  std::size_t at_ = 0;
};

// All but the block table, of which the image keeps what is used.
Batch without_table(const Batch& batch) {
  Batch rest;
  rest.cu_seqlens_q = batch.cu_seqlens_q;
  rest.cu_seqlens_k = batch.cu_seqlens_k;
  rest.kv_lens = batch.kv_lens;
  rest.block_table_stride = batch.block_table_stride;
  rest.page_size = batch.page_size;
  rest.tables = batch.tables;
  return rest;
}

// Lengths that the emitted programs and the kernels' 32-bit positions are right for.
Status check_lengths(const Batch& batch) {
  constexpr std::int64_t margin = 4096;  // positions of a tile past the end are computed too
  for (int s = 0; s < batch.sequences(); ++s)
    if (const int most = std::max(batch.q_len(s), batch.kv_len(s)); most > cuda_positions - margin)
      return Status::unsupported(
          fmt::format("sequence {} has {} positions: must be at most {}", s, most, cuda_positions - margin));
  if (batch.sequences() > cuda_sequences)
    return Status::unsupported(
        fmt::format("{} sequences: must be at most {}", batch.sequences(), cuda_sequences));
  return Status::ok();
}

}  // namespace

CudaPlan::Sizes CudaPlan::sizes_of(const Problem& problem, const Batch& batch, const WorkSizes& work) {
  Sizes sizes{};
  sizes.sequences = static_cast<std::size_t>(batch.sequences());
  sizes.forward_blocks = static_cast<std::size_t>(work.forward.blocks);
  sizes.decode_blocks = static_cast<std::size_t>(work.decode.blocks);
  sizes.split_items = static_cast<std::size_t>(work.split.chunks);
  sizes.slots = static_cast<std::size_t>(work.split.most_slots);
  sizes.key_tiles = static_cast<std::size_t>(work.key_tiles);
  sizes.block_table = batch.block_table.size();
  sizes.table_bytes = room_for_tables(problem);
  return sizes;
}

Status CudaPlan::check_room(const Sizes& wanted, const Sizes& room) {
  const std::tuple<std::string_view, std::size_t, std::size_t> all[] = {
      {"sequences", wanted.sequences, room.sequences},
      {"blocks of query rows", wanted.forward_blocks, room.forward_blocks},
      {"decoding sequences", wanted.decode_blocks, room.decode_blocks},
      {"chunks of keys", wanted.split_items, room.split_items},
      {"partial states", wanted.slots, room.slots},
      {"tiles of 8-bit keys to widen", wanted.key_tiles, room.key_tiles},
      {"entries of the block table", wanted.block_table, room.block_table},
      {"bytes of tables", wanted.table_bytes, room.table_bytes}};
  for (const auto& [what, want, have] : all)
    if (want > have)
      return Status::resource_exhausted(
          fmt::format("the plan has room for {} {}: the batch has {}", have, what, want));
  return Status::ok();
}

// Of a KV head (kernels/params.h).
std::size_t CudaPlan::arrival_counters() const {
  return room_.decode_blocks + room_.slots / kernels::merge_step;
}

CudaPlan::Layout CudaPlan::lay_out() const {
  const Sizes& sizes = room_;
  const auto heads = static_cast<std::size_t>(problem().kv_heads);
  Layout layout{};
  Cursor cursor;
  const auto take_part = [&](PartLayout& part, std::size_t blocks, std::size_t items) {
    part.counts = cursor.take<kernels::PlanCounts>(1);
    part.next_item = cursor.take<int>(2);
    part.row_blocks = cursor.take<kernels::RowBlock>(blocks);
    part.split_items = cursor.take<kernels::SplitItem>(items);
    part.arrivals = cursor.take<int>(items == 0 ? 0 : heads * arrival_counters());
  };
  take_part(layout.forward, sizes.forward_blocks, 0);
  take_part(layout.decode, sizes.decode_blocks, sizes.split_items);
  layout.sequences = cursor.take<kernels::Sequence>(sizes.sequences);
  layout.forward.sequences = layout.decode.sequences = layout.sequences;
  if (kernels_.widen != nullptr) layout.forward.sequences = cursor.take<kernels::Sequence>(sizes.sequences);
  layout.key_tiles = cursor.take<kernels::KeyTile>(sizes.key_tiles);
  layout.tables = cursor.take<kernels::TableView>(kernels::max_tables);
  layout.block_table = cursor.take<int>(sizes.block_table);
  layout.table_values = cursor.take<std::byte>(sizes.table_bytes);
  layout.image_bytes = cursor.at();
  const std::size_t rows =
      heads * sizes.slots * static_cast<std::size_t>(decode_shape_.positions * problem().group_size());
  layout.decode.partial_out = cursor.take<float>(rows * static_cast<std::size_t>(problem().value_dim()));
  layout.decode.partial_reference = cursor.take<float>(rows);
  layout.decode.partial_sum = cursor.take<float>(rows);
  const std::size_t keys =
      sizes.key_tiles * static_cast<std::size_t>(order_.tile * widened_heads_) * size_of(problem().dtype);
  layout.widened_keys = cursor.take<std::byte>(keys * static_cast<std::size_t>(problem().head_dim));
  layout.widened_values = cursor.take<std::byte>(keys * static_cast<std::size_t>(problem().value_dim()));
  layout.device_bytes = cursor.at();
  return layout;
}

Result<CudaPlan::Kernels> CudaPlan::find_kernels(const Problem& problem, const Batch& batch,
                                                 const WorkSizes& work) const {
  Kernels kernels;
  for (const KernelKey& key : kernel_keys(work, problem, order_, batch.page_size)) {
    const Kernel*& found = key.kind == KernelKind::widen     ? kernels.widen
                           : key.kind == KernelKind::forward ? kernels.forward
                                                             : kernels.decode;
    CHORALE_ASSIGN_OR_RETURN(found, gpu_.kernel(key));
  }
  return kernels;
}

Result<std::shared_ptr<CudaPlan>> CudaPlan::create(std::string_view implementation, Gpu& gpu,
                                                   const Problem& problem, const Batch& batch,
                                                   const Order& order, int cluster) {
  CHORALE_ASSIGN_OR_RETURN(Problem bound, check_plan(problem, batch));
  CHORALE_RETURN_IF_ERROR(check_lengths(batch));
  std::shared_ptr<CudaPlan> plan(
      new CudaPlan(implementation, gpu, std::move(bound), without_table(batch), order));
  const WorkSizes work = measure_work(plan->problem(), batch, order, gpu.multiprocessors(), {1, cluster});
  CHORALE_ASSIGN_OR_RETURN(plan->kernels_, plan->find_kernels(plan->problem(), batch, work));
  Sizes room = sizes_of(plan->problem(), batch, work);
  for (std::size_t* size : {&room.sequences, &room.forward_blocks, &room.decode_blocks, &room.split_items,
                            &room.slots, &room.key_tiles, &room.block_table, &room.table_bytes})
    if (*size > 0) *size = std::bit_ceil(*size);
  plan->room_ = room;
  plan->decode_shape_ = work.decode_shape();
  plan->choose_widened_heads();
  plan->layout_ = plan->lay_out();
  CHORALE_ASSIGN_OR_RETURN(plan->image_, PlanMemoryPool::of(gpu).take_pinned(plan->layout_.image_bytes));
  plan->write_image(batch, work);
  return plan;
}

// A capture's memory is no stream's: freeing it waits for replays.
CudaPlan::~CudaPlan() {
  PlanMemoryPool& pool = PlanMemoryPool::of(gpu_);
  if (image_ != nullptr) pool.give_back(std::move(image_));
  for (Copy& copy : copies_)
    if (copy.lane.captured == nullptr) pool.give_back(copy.lane.id, std::move(copy.memory));
}

Status CudaPlan::update(const Batch& batch, void* stream) {
  CHORALE_ASSIGN_OR_RETURN(Problem bound, check_plan(problem(), batch));
  CHORALE_RETURN_IF_ERROR(check_lengths(batch));
  const WorkSizes work = measure_work(bound, batch, order_, gpu_.multiprocessors(), decode_shape_);
  CHORALE_RETURN_IF_ERROR(check_room(sizes_of(bound, batch, work), room_));
  // A kernel without work ends at once.
  CHORALE_ASSIGN_OR_RETURN(const Kernels kernels, find_kernels(bound, batch, work));
  for (const auto& [now, then] : {std::pair(kernels.widen, kernels_.widen),
                                  {kernels.forward, kernels_.forward},
                                  {kernels.decode, kernels_.decode}})
    if (now != nullptr && now != then)
      return Status::invalid_argument(fmt::format("the plan was made for {}: the batch needs {}",
                                                  then == nullptr ? "no such work" : then->key.describe(),
                                                  now->key.describe()));
  const std::lock_guard lock(mutex_);
  const Gpu::Scope scope(gpu_);
  CHORALE_ASSIGN_OR_RETURN(const Lane lane, lane_of(static_cast<Stream>(stream)));
  if (lane.captured != nullptr)
    return Status::invalid_argument("the stream is being captured: a plan is updated outside of captures");
  PlanMemoryPool& pool = PlanMemoryPool::of(gpu_);
  CHORALE_ASSIGN_OR_RETURN(std::unique_ptr<PinnedMemory> image, pool.take_pinned(layout_.image_bytes));
  pool.give_back(std::exchange(image_, std::move(image)));  // it may still be copied from
  replace(std::move(bound), without_table(batch));
  write_image(batch, work);
  ++version_;
  for (Copy& copy : copies_)  // a stream's is brought up to date by its next forward
    if (copy.lane.captured != nullptr) CHORALE_RETURN_IF_ERROR(send(copy, static_cast<Stream>(stream)));
  return Status::ok();
}

// Of how many KV heads 8-bit keys are widened at a time: as many as find room in the L2 cache, which has
// 50 MB, beside what passes through. That is for the plan's whole life, since a captured graph has a launch
// for each time.
void CudaPlan::choose_widened_heads() {
  if (kernels_.widen == nullptr) return;
  constexpr std::int64_t cache_bytes = 32 << 20;
  const Problem& p = problem();
  const std::int64_t head_bytes = static_cast<std::int64_t>(room_.key_tiles) * order_.tile *
                                  (p.head_dim + p.value_dim()) * static_cast<std::int64_t>(size_of(p.dtype));
  const auto most = static_cast<int>(
      std::clamp<std::int64_t>(cache_bytes / std::max<std::int64_t>(1, head_bytes), 1, p.kv_heads));
  const int times = (p.kv_heads + most - 1) / most;
  widened_heads_ = (p.kv_heads + times - 1) / times;
}

// All of the image but the views of tables (send()). `batch`: with its block table.
void CudaPlan::write_image(const Batch& batch, const WorkSizes& work) {
  const Layout& at = layout_;
  const WorkCounts counts = write_work(
      problem(), batch, order_, gpu_.multiprocessors(), work,
      {image_at<kernels::RowBlock>(at.forward.row_blocks), image_at<kernels::RowBlock>(at.decode.row_blocks),
       image_at<kernels::SplitItem>(at.decode.split_items), image_at<kernels::KeyTile>(at.key_tiles)});
  const int stride = static_cast<int>(batch.block_table_stride);
  *image_at<kernels::PlanCounts>(at.forward.counts) = {work.forward.blocks, 0, stride, work.key_tiles,
                                                       counts.heads_together};
  *image_at<kernels::PlanCounts>(at.decode.counts) = {work.decode.blocks, counts.split_items, stride, 0, 1};
  for (const PartLayout* part : {&at.forward, &at.decode}) std::fill_n(image_at<int>(part->next_item), 2, 0);
  std::fill_n(image_at<int>(at.decode.arrivals),
              arrival_counters() * static_cast<std::size_t>(problem().kv_heads), 0);
  auto* sequences = image_at<kernels::Sequence>(at.sequences);
  for (int s = 0; s < batch.sequences(); ++s) sequences[s] = device_sequence(batch, s);
  if (kernels_.widen != nullptr) point_at_widened(work);
  largest_page_ = copy_pages(batch, image_at<std::int32_t>(at.block_table));
  write_tables(problem(), image_at<std::byte>(at.table_values));
}

// Where the forward kernel finds keys that were widened.
void CudaPlan::point_at_widened(const WorkSizes& work) const {
  auto* sequences = image_at<kernels::Sequence>(layout_.forward.sequences);
  std::copy_n(image_at<kernels::Sequence>(layout_.sequences), batch().sequences(), sequences);
  const auto* tiles = image_at<kernels::KeyTile>(layout_.key_tiles);
  for (int i = 0; i < work.key_tiles; ++i)
    if (tiles[i].number == 0) sequences[tiles[i].sequence].kv_first = i * order_.tile;
}

Status CudaPlan::upload(void* stream) const {
  const std::lock_guard lock(mutex_);
  const Gpu::Scope scope(gpu_);
  return be_there(static_cast<Stream>(stream)).status();
}

// A stream that is being captured has no number.
Result<CudaPlan::Lane> CudaPlan::lane_of(Stream stream) const {
  using namespace driver_constants;
  const Driver& d = gpu_.driver();
  int capture = capture_none;
  unsigned long long id = 0;
  CHORALE_RETURN_IF_ERROR(
      d.check(d.stream_capture(stream, &capture, &id, nullptr, nullptr, nullptr), "looking at the stream"));
  if (capture == capture_active) return Lane{id, stream};
  if (capture != capture_none)
    return Status::invalid_argument("the stream's capture has failed: it takes no more work");
  CHORALE_RETURN_IF_ERROR(d.check(d.stream_id(stream, &id), "looking at the stream"));
  return Lane{id, nullptr};
}

Result<std::unique_ptr<DeviceMemory>> CudaPlan::take_memory(const Lane& lane) const {
  PlanMemoryPool& pool = PlanMemoryPool::of(gpu_);
  auto taken = lane.captured != nullptr ? pool.take_unused(layout_.device_bytes)
                                        : pool.take(lane.id, layout_.device_bytes);
  if (taken) return taken;
  const Status status = taken.status().with_context("a plan's memory");
  if (kernels_.widen == nullptr) return status;
  return Status(status.code(), fmt::format("{}; {} bytes are for 8-bit keys as {}, of {} KV heads at a time",
                                           status.message(), layout_.device_bytes - layout_.widened_keys,
                                           name(problem().dtype), widened_heads_));
}

// Only views of tables differ from copy to copy: to change them waits, on the host, for the copy before.
Status CudaPlan::send(Copy& copy, Stream stream) const {
  const DevicePointer to = copy.memory->address();
  if (has_tables(problem())) {
    CHORALE_RETURN_IF_ERROR(image_->wait());
    write_table_views(problem(), to + layout_.table_values, image_at<kernels::TableView>(layout_.tables));
  }
  CHORALE_RETURN_IF_ERROR(image_->copy(to, layout_.image_bytes, stream));
  copy.version = version_;
  return Status::ok();
}

// The plan's memory for the next launches in `stream`, with the image that is there by then. A capture's must
// be there before any replay: it is sent beside the capture, and waited for.
Result<DevicePointer> CudaPlan::be_there(Stream stream) const {
  CHORALE_ASSIGN_OR_RETURN(const Lane lane, lane_of(stream));
  auto copy = std::ranges::find(copies_, lane, &Copy::lane);
  if (copy == copies_.end()) {
    CHORALE_ASSIGN_OR_RETURN(std::unique_ptr<DeviceMemory> memory, take_memory(lane));
    copies_.push_back({lane, std::move(memory), -1});
    copy = copies_.end() - 1;
  }
  if (copy->version == version_) return copy->memory->address();
  if (lane.captured == nullptr) {
    CHORALE_RETURN_IF_ERROR(send(*copy, stream));
  } else {
    CHORALE_ASSIGN_OR_RETURN(const std::unique_ptr<SideStream> side, SideStream::create(gpu_));
    CHORALE_RETURN_IF_ERROR(send(*copy, side->stream()));
    CHORALE_RETURN_IF_ERROR(side->wait());
  }
  return copy->memory->address();
}

}  // namespace chorale::cuda
