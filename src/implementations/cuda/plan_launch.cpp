// What a plan launches: the kernels' arguments, made of one layer's tensors.
#include <fmt/format.h>

#include <algorithm>

#include "implementations/cuda/cuda_plan.h"
#include "implementations/cuda/tensor_maps.h"
#include "kernels/params.h"

namespace chorale::cuda {
namespace {

constexpr float log2_e = 0x1.715476p+0f;

// A page pool as it is, packed rows as a pool of one page.
TensorView as_pages(const TensorView& view) {
  if (view.rank == 4) return view;
  TensorView pages = view;
  pages.rank = 4;
  pages.shape = {1, view.shape[0], view.shape[1], view.shape[2]};
  pages.stride = {0, view.stride[0], view.stride[1], view.stride[2]};
  return pages;
}

// Blocks of columns in a box of keys, and of values.
struct BoxBlocks {
  int keys = 1, values = 1;
  explicit BoxBlocks(const KernelKey& key) {
    if (key.kind != KernelKind::decode) return;
    keys = kernels::box_column_blocks(key.head_dim, key.value_dim, key.fp8_cache, key.page_size);
    values = kernels::value_box_blocks(key.value_dim, key.fp8_cache, key.cluster, keys);
  }
};

template <class T>
void point_at(DevicePointer address, T*& to) {
  to = reinterpret_cast<T*>(address);
}
template <class T>
T* pointer_of(const TensorView& view) {
  return view.empty() ? nullptr : static_cast<T*>(view.data);
}

Status check_vector(std::string_view name, const TensorView& view) {
  if (view.empty() || view.is_contiguous()) return Status::ok();
  return Status::unsupported(fmt::format("{}: must be contiguous on a GPU", name));
}

Status check_layout(const ForwardTensors& tensors) {
  CHORALE_RETURN_IF_ERROR(check_alignment("q", tensors.q));
  CHORALE_RETURN_IF_ERROR(check_alignment("k", tensors.k));
  CHORALE_RETURN_IF_ERROR(check_alignment("v", tensors.v));
  CHORALE_RETURN_IF_ERROR(check_alignment("out", tensors.out));
  CHORALE_RETURN_IF_ERROR(check_vector("lse", tensors.lse));
  CHORALE_RETURN_IF_ERROR(check_vector("sinks", tensors.sinks));
  CHORALE_RETURN_IF_ERROR(check_vector("k_scale", tensors.k_scale));
  return check_vector("v_scale", tensors.v_scale);
}

// The tensors of some KV heads and of their query heads.
ForwardTensors slice_heads(const ForwardTensors& tensors, CudaPlan::Heads heads, int group) {
  ForwardTensors part = tensors;
  const auto slice = [&](TensorView& view, int dimension, int heads_of_one) {
    if (!view.empty())
      view = view.slice(dimension, heads.first * heads_of_one, (heads.first + heads.count) * heads_of_one);
  };
  for (TensorView* view : {&part.k, &part.v}) slice(*view, view->rank - 2, 1);
  for (TensorView* view : {&part.k_scale, &part.v_scale}) slice(*view, 0, 1);
  for (TensorView* view : {&part.q, &part.out, &part.lse}) slice(*view, 1, group);
  slice(part.sinks, 0, group);
  return part;
}

}  // namespace

Status CudaPlan::forward(const ForwardTensors& tensors) const {
  CHORALE_RETURN_IF_ERROR(check_layout(tensors));
  if (batch().is_paged() && largest_page_ >= tensors.k.shape[0])
    return Status::out_of_range(fmt::format("the block table has page {}: the pool has pages 0 to {}",
                                            static_cast<std::int32_t>(largest_page_),
                                            tensors.k.shape[0] - 1));
  if (kernels_.forward == nullptr && kernels_.decode == nullptr) return Status::ok();
  const std::lock_guard lock(mutex_);
  const Gpu::Scope scope(gpu_);
  CHORALE_ASSIGN_OR_RETURN(const DevicePointer memory, be_there(static_cast<Stream>(tensors.stream)));
  const Heads all{0, problem().kv_heads};
  if (kernels_.widen != nullptr)
    CHORALE_RETURN_IF_ERROR(forward_widened(memory, tensors));
  else if (kernels_.forward != nullptr)
    CHORALE_RETURN_IF_ERROR(launch(*kernels_.forward, memory, layout_.forward, tensors, all));
  if (kernels_.decode == nullptr) return Status::ok();
  return launch(*kernels_.decode, memory, layout_.decode, tensors, all);
}

// Some heads after others, in the same memory.
Status CudaPlan::forward_widened(DevicePointer memory, const ForwardTensors& tensors) const {
  const int kv_heads = problem().kv_heads, group = problem().group_size();
  for (int first = 0; first < kv_heads; first += widened_heads_) {
    const Heads heads{first, std::min(widened_heads_, kv_heads - first)};
    ForwardTensors part = slice_heads(tensors, heads, group);
    const auto rows = static_cast<std::int64_t>(room_.key_tiles) * order_.tile;
    const auto widened = [&](std::size_t offset, int dim) {
      return TensorView::contiguous(reinterpret_cast<const void*>(memory + offset), problem().dtype,
                                    {rows, heads.count, dim});
    };
    const TensorView k = widened(layout_.widened_keys, problem().head_dim),
                     v = widened(layout_.widened_values, problem().value_dim());
    CHORALE_RETURN_IF_ERROR(widen(memory, part, k, v, heads));
    part.k = k;
    part.v = v;
    CHORALE_RETURN_IF_ERROR(launch(*kernels_.forward, memory, layout_.forward, part, heads));
  }
  return Status::ok();
}

kernels::PlanView CudaPlan::view_of(DevicePointer memory, const PartLayout& layout) const {
  kernels::PlanView view{};
  point_at(memory + layout.counts, view.counts);
  point_at(memory + layout.sequences, view.sequences);
  point_at(memory + layout.row_blocks, view.row_blocks);
  point_at(memory + layout.split_items, view.split_items);
  point_at(memory + layout_.block_table, view.block_table);
  point_at(memory + layout_.tables, view.tables);
  point_at(memory + layout.next_item, view.next_item);
  return view;
}

Status CudaPlan::widen(DevicePointer memory, const ForwardTensors& tensors, const TensorView& to_k,
                       const TensorView& to_v, Heads heads) const {
  const TensorView k = as_pages(tensors.k), v = as_pages(tensors.v);
  kernels::WidenParams params{};
  params.k = rows_of(k);
  params.v = rows_of(v);
  params.k_page_stride = k.stride[0];
  params.v_page_stride = v.stride[0];
  params.k_scale = pointer_of<const float>(tensors.k_scale);
  params.v_scale = pointer_of<const float>(tensors.v_scale);
  params.k_wide = rows_of(to_k);
  params.v_wide = rows_of(to_v);
  point_at(memory + layout_.key_tiles, params.tiles);
  params.plan = view_of(memory, layout_.forward);
  point_at(memory + layout_.sequences, params.plan.sequences);
  params.heads = heads.count;
  params.first_query_head = problem().first_query_head + heads.first * problem().group_size();
  // Some on each multiprocessor, so that one's loads run beside another's stores.
  constexpr int side_by_side = 4;
  return gpu_.launch(*kernels_.widen, side_by_side * gpu_.multiprocessors(), &params,
                     static_cast<Stream>(tensors.stream));
}

Status CudaPlan::launch(const Kernel& kernel, DevicePointer memory, const PartLayout& layout,
                        const ForwardTensors& tensors, Heads heads) const {
  const Driver& d = gpu_.driver();
  const KernelKey& key = kernel.key;
  kernels::ForwardParams params{};
  const TensorView k = as_pages(tensors.k), v = as_pages(tensors.v);
  const BoxBlocks blocks(key);
  const int slots = key.paged ? std::min(key.page_size, key.tile) : key.tile;
  const int query_box[] = {64, key.group, key.positions}, key_box[] = {key.fp8_cache ? 128 : 64, 1, slots, 1};
  CHORALE_ASSIGN_OR_RETURN(params.q, tensor_map(d, "q", tensors.q, query_box));
  if (blocks.keys > 1) {
    CHORALE_ASSIGN_OR_RETURN(params.k, column_blocks_map(d, "k", k, slots, blocks.keys));
    CHORALE_ASSIGN_OR_RETURN(params.v, column_blocks_map(d, "v", v, slots, blocks.values));
  } else {
    CHORALE_ASSIGN_OR_RETURN(params.k, tensor_map(d, "k", k, key_box));
    CHORALE_ASSIGN_OR_RETURN(params.v, tensor_map(d, "v", v, key_box));
  }
  if (constexpr int rows = kernels::forward_warp_rows;
      key.kind == KernelKind::forward && rows % key.group == 0) {
    const int out_box[] = {64, key.group, rows / key.group};
    CHORALE_ASSIGN_OR_RETURN(params.out_boxes, tensor_map(d, "out", tensors.out, out_box));
  }
  params.out = rows_of(tensors.out);
  params.k_rows = rows_of(k);
  params.v_rows = rows_of(v);
  params.k_page_stride = k.stride[0];
  params.v_page_stride = v.stride[0];
  params.lse = pointer_of<float>(tensors.lse);
  params.sinks = pointer_of<const float>(tensors.sinks);
  params.k_scale = pointer_of<const float>(tensors.k_scale);
  params.v_scale = pointer_of<const float>(tensors.v_scale);

  params.plan = view_of(memory, layout);
  point_at(memory + layout.partial_out, params.partial_out);
  point_at(memory + layout.partial_reference, params.partial_reference);
  point_at(memory + layout.partial_sum, params.partial_sum);
  point_at(memory + layout.arrivals, params.arrivals);
  params.slots = static_cast<int>(room_.slots);
  params.arrival_counters = static_cast<int>(arrival_counters());
  params.item_room = static_cast<int>(room_.split_items);

  const Problem& p = problem();
  params.scale = p.scale_or_default();
  params.factor = p.score.is_identity() ? params.scale * log2_e : log2_e;
  params.kv_heads = p.kv_heads;
  params.heads = heads.count;
  params.first_query_head = p.first_query_head + heads.first * p.group_size();
  // As many blocks of threads as the card runs at once: each takes work until none is left, and a graph may
  // find more of it later.
  return gpu_.launch(kernel, gpu_.multiprocessors(), &params, static_cast<Stream>(tensors.stream));
}

}  // namespace chorale::cuda
