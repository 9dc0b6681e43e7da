// For each sequence and KV head:
//
//     for each block of 512 keys
//       for each 4 strips of query rows
//         for each slab of 32 keys that one of the strips sees
//           scores and gradients of p        two products, transposed: a key is a row
//           p and dS                         in registers
//           grad_V, grad_K                   two products over the 4 strips
//         grad_Q                             one product over the block's slabs
//
// Where sequences and heads are too few for the threads, a first pass cut by keys computes grad_K and grad_V,
// a second cut by query rows grad_Q. Each sum is the same chain: query rows ascending in steps of 32, keys
// ascending in steps of 32.
#include "implementations/cpu/amx_backward.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/aligned.h"
#include "base/float.h"
#include "base/threads.h"
#include "implementations/cpu/amx_hidden.h"
#include "implementations/cpu/amx_kernels.h"
#include "implementations/cpu/amx_programs.h"
#include "implementations/cpu/gradient_rows.h"
#include "implementations/cpu/key_rows.h"
#include "implementations/cpu/query_rows.h"
#include "implementations/cpu/visibility.h"
#include "simd/dot_tiles.h"
#include "simd/simd.h"

namespace chorale::tiled {
namespace {

constexpr std::int64_t strip_rows = amx::strip_rows, slab_keys = amx::slab_keys;
constexpr std::int64_t block_slabs = 16, block_strips = 4;
constexpr std::int64_t left_elements = 2 * amx::tile_elements;  // of P^T or dS^T, one strip and slab

class AmxBackward {
 public:
  AmxBackward(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas)
      : plan_(plan),
        problem_(plan.problem()),
        tensors_(tensors),
        deltas_(deltas),
        dim_(problem_.head_dim),
        value_dim_(problem_.value_dim()),
        workers_(plan.threads()) {
    first_key_.resize(static_cast<std::size_t>(plan.batch().sequences()));
    for (std::size_t b = 1; b < first_key_.size(); ++b)
      first_key_[b] = first_key_[b - 1] + plan.batch().kv_len(static_cast<int>(b) - 1);
  }

  void run() {
    std::vector<Task> tasks;
    const bool one_pass = end_before_two_passes(whole_passes(plan_), plan_.threads());
    for (int sequence = 0; sequence < plan_.batch().sequences(); ++sequence)
      for (int head = 0; head < problem_.kv_heads; ++head) {
        const std::int64_t strips = plan_.strips(sequence),
                           blocks = plan_.blocks_of(slabs(sequence), block_slabs);
        if (one_pass) {
          tasks.push_back({sequence, head, 0, strips, 0, blocks, true, true});
          continue;
        }
        for (std::int64_t block = 0; block < blocks; ++block)
          tasks.push_back({sequence, head, 0, strips, block, block + 1, true, false});
        constexpr std::int64_t stretch = 8 * block_strips;
        for (std::int64_t strip = 0; strip < strips; strip += stretch)
          tasks.push_back({sequence, head, strip, std::min(strips, strip + stretch), 0, blocks, false, true});
      }
    std::stable_sort(tasks.begin(), tasks.end(),
                     [&](const Task& x, const Task& y) { return cost(x) > cost(y); });
    parallel_for(static_cast<std::int64_t>(tasks.size()), plan_.threads(), [&](std::int64_t i, int worker) {
      const simd::DotScope scope(simd::DotLevel::amx);
      compute(tasks[static_cast<std::size_t>(i)], at(worker));
    });
  }

 private:
  struct Task {
    int sequence, kv_head;
    std::int64_t first_strip, last_strip, first_block, last_block;
    bool of_keys, of_queries;  // which gradients
  };

  // Everything of one strip that the products want, packed when it is first met.
  struct Strip {
    AlignedVector<bfloat16> queries_by_dim, grad_outs_by_dim, queries_by_row, grad_outs_by_row;
    alignas(64) float lse[strip_rows], delta[strip_rows];
    bool packed = false, finite = false;
  };
  struct Slab {
    AlignedVector<bfloat16> keys_by_dim, values_by_dim, keys_by_key;
    AlignedVector<float> grad_keys, grad_values;
    bool packed = false, finite = false;
  };

  struct Worker {
    explicit Worker(const AmxBackward& pass)
        : programs(pass.plan_),
          visibility(pass.plan_),
          scores(amx::score_elements),
          grad_p(amx::score_elements),
          before(amx::score_elements),
          p_left(block_strips * left_elements),
          grad_left(block_strips * left_elements),
          grad_right(block_strips * block_slabs * left_elements),
          rows(static_cast<std::size_t>(strip_rows * amx::padded(std::max(pass.dim_, pass.value_dim_)))),
          gathered(static_cast<std::size_t>(strip_rows * std::max(pass.dim_, pass.value_dim_))),
          slabs(block_slabs) {}
    amx::Programs programs;
    VisibilityComputer visibility;
    Visibility::Strip few;  // the only strip of a sequence of few rows
    AlignedVector<float> scores, grad_p, before;
    AlignedVector<bfloat16> p_left, grad_left, grad_right;  // of four strips and a slab, or a block's
    AlignedVector<float> rows;
    AlignedVector<bfloat16> gathered;
    std::vector<Slab> slabs;
    std::vector<Strip> strips;
    std::vector<AlignedVector<float>> grad_queries;
  };

  Worker& at(int index) { return workers_.at(index, *this); }

  std::int64_t slabs(int sequence) const { return plan_.blocks_of(plan_.keys(sequence), slab_keys); }
  double cost(const Task& task) const {
    return static_cast<double>(task.last_strip - task.first_strip) *
           static_cast<double>(task.last_block - task.first_block) *
           (task.of_keys && task.of_queries ? 5 : 4);
  }

  const Visibility::Strip& visible(const Task& task, std::int64_t strip, Worker& worker) const {
    if (plan_.sequence_rows(task.sequence) > few_rows)
      return plan_.visibility().strip(task.sequence, task.kv_head, strip);
    return worker.few;
  }

  void compute(const Task& task, Worker& worker) {
    if (plan_.sequence_rows(task.sequence) <= few_rows)
      worker.visibility.compute(task.sequence, task.kv_head, 0, 0, slabs(task.sequence), worker.few);
    const auto strips = static_cast<std::size_t>(task.last_strip - task.first_strip);
    if (worker.strips.size() < strips) worker.strips.resize(strips);
    for (std::size_t i = 0; i < strips; ++i) worker.strips[i].packed = false;
    if (task.of_queries) {
      if (worker.grad_queries.size() < strips) worker.grad_queries.resize(strips);
      for (std::size_t i = 0; i < strips; ++i)
        worker.grad_queries[i].assign(static_cast<std::size_t>(strip_rows * amx::padded(dim_)), 0.0f);
    }
    for (std::int64_t block = task.first_block; block < task.last_block; ++block) {
      for (Slab& slab : worker.slabs) slab.packed = false;
      const std::int64_t last = std::min(slabs(task.sequence), (block + 1) * block_slabs);
      for (std::int64_t strip = task.first_strip; strip < task.last_strip; strip += block_strips)
        meet(task, strip, std::min(task.last_strip, strip + block_strips), block * block_slabs, last, worker);
      if (task.of_keys)
        for (std::int64_t slab = block * block_slabs; slab < last; ++slab)
          store_grad_keys(task, slab, worker);
    }
    if (task.of_queries)
      for (std::int64_t strip = task.first_strip; strip < task.last_strip; ++strip)
        store_grad_queries(task, strip, worker);
  }

  Strip& strip_of(const Task& task, std::int64_t strip, Worker& worker) const {
    return worker.strips[static_cast<std::size_t>(strip - task.first_strip)];
  }
  static Slab& slab_of(std::int64_t slab, Worker& worker) {
    return worker.slabs[static_cast<std::size_t>(slab % block_slabs)];
  }

  // Up to four strips and a block of keys.
  void meet(const Task& task, std::int64_t first_strip, std::int64_t last_strip, std::int64_t first_slab,
            std::int64_t last_slab, Worker& worker) {
    std::array<std::array<const bfloat16*, block_slabs>, block_strips> keys;  // of grad_Q's products
    std::array<std::int64_t, block_strips> waiting{};
    const auto right = [&](std::int64_t i) {
      return worker.grad_right.data() + i * block_slabs * left_elements;
    };
    const auto add_grad_queries = [&](std::int64_t i) {
      auto& count = waiting[static_cast<std::size_t>(i)];
      if (count > 0)
        amx::add_values(keys[static_cast<std::size_t>(i)].data(), count, right(i), dim_,
                        grad_queries(task, first_strip + i, worker), true);
      count = 0;
    };
    for (std::int64_t slab = first_slab; slab < last_slab; ++slab) {
      std::array<Meeting, block_strips> meetings;
      std::int64_t count = 0;
      for (std::int64_t strip = first_strip; strip < last_strip; ++strip) {
        const Visibility::Strip& seen = visible(task, strip, worker);
        const std::int32_t entry = seen.slabs[static_cast<std::size_t>(slab)];
        if (entry == Visibility::empty) continue;
        Meeting& meeting = meetings[static_cast<std::size_t>(count)];
        meeting = {
            &strip_of(task, strip, worker), entry == Visibility::full ? nullptr : seen.words.data() + entry,
            worker.p_left.data() + count * left_elements, worker.grad_left.data() + count * left_elements};
        ++count;
        pack(task, strip, *meeting.strip, worker);
        pack(task, slab, slab_of(slab, worker), worker);
        const std::int64_t i = strip - first_strip;
        auto& position = waiting[static_cast<std::size_t>(i)];
        bfloat16* grad_right = right(i) + position * left_elements;
        compute_pairs(task, strip, slab, meeting, grad_right, worker);
        if (!task.of_queries) continue;
        const Slab& packed = slab_of(slab, worker);
        if (meeting.words != nullptr && !packed.finite) {
          const AlignedVector<bfloat16> one(grad_right, grad_right + left_elements);
          add_grad_queries(i);
          amx::add_visible_values(meeting.words, packed.keys_by_key.data(), one.data(), dim_,
                                  grad_queries(task, strip, worker));
        } else {
          keys[static_cast<std::size_t>(i)][static_cast<std::size_t>(position++)] = packed.keys_by_key.data();
        }
      }
      if (task.of_keys) add_grad_keys(meetings.data(), count, slab_of(slab, worker));
    }
    if (task.of_queries)
      for (std::int64_t i = 0; i < last_strip - first_strip; ++i) add_grad_queries(i);
  }

  struct Meeting {
    Strip* strip;
    const std::uint32_t* words;  // null: all visible
    bfloat16 *p_left, *grad_left;
  };

  // P and dS of one strip and slab.
  void compute_pairs(const Task& task, std::int64_t strip, std::int64_t slab, const Meeting& meeting,
                     bfloat16* grad_right, Worker& worker) {
    const Strip& s = *meeting.strip;
    const Slab& k = slab_of(slab, worker);
    float *scores = worker.scores.data(), *grad_p = worker.grad_p.data();
    const std::int64_t first_row = strip * strip_rows;
    amx::scores(k.keys_by_dim.data(), s.queries_by_dim.data(), dim_, scores);
    amx::scores(k.values_by_dim.data(), s.grad_outs_by_dim.data(), value_dim_, grad_p);
    worker.programs.apply({task.sequence, task.kv_head, first_row, rows(task, strip), slab}, scores,
                          worker.before.data());
    if (meeting.words != nullptr) amx::hide(meeting.words, scores);
    amx::gradients(scores, grad_p, s.lse, s.delta, plan_.log2_factor());
    worker.programs.differentiate({task.sequence, task.kv_head, first_row, rows(task, strip), slab},
                                  worker.before.data(), grad_p);
    amx::round_gradients(scores, grad_p, meeting.words, meeting.p_left, meeting.grad_left, grad_right);
  }

  void add_grad_keys(const Meeting* meetings, std::int64_t count, Slab& slab) {
    bool finite = true;
    for (std::int64_t i = 0; i < count; ++i)
      finite = finite && (meetings[i].words == nullptr || meetings[i].strip->finite);
    std::array<const bfloat16*, block_strips> p, grads, queries, grad_outs;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<std::size_t>(i);
      p[at] = meetings[i].p_left;
      grads[at] = meetings[i].grad_left;
      queries[at] = meetings[i].strip->queries_by_row.data();
      grad_outs[at] = meetings[i].strip->grad_outs_by_row.data();
    }
    if (count == 0) return;
    if (finite) {
      amx::add_over_queries(p.data(), grad_outs.data(), count, value_dim_, slab.grad_values.data());
      amx::add_over_queries(grads.data(), queries.data(), count, dim_, slab.grad_keys.data());
      return;
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      if (meetings[i].words == nullptr) {
        amx::add_over_queries(&p[i], &grad_outs[i], 1, value_dim_, slab.grad_values.data());
        amx::add_over_queries(&grads[i], &queries[i], 1, dim_, slab.grad_keys.data());
      } else {
        amx::add_visible_over_queries(meetings[i].words, p[i], grad_outs[i], value_dim_,
                                      slab.grad_values.data());
        amx::add_visible_over_queries(meetings[i].words, grads[i], queries[i], dim_, slab.grad_keys.data());
      }
    }
  }

  float* grad_queries(const Task& task, std::int64_t strip, Worker& worker) const {
    return worker.grad_queries[static_cast<std::size_t>(strip - task.first_strip)].data();
  }
  std::int64_t rows(const Task& task, std::int64_t strip) const {
    return std::min(strip_rows, plan_.sequence_rows(task.sequence) - strip * strip_rows);
  }

  void pack(const Task& task, std::int64_t strip, Strip& s, Worker& worker) {
    if (s.packed) return;
    s.packed = true;
    for (auto* form : {&s.queries_by_dim, &s.queries_by_row})
      form->resize(static_cast<std::size_t>(amx::block_elements(dim_)));
    for (auto* form : {&s.grad_outs_by_dim, &s.grad_outs_by_row})
      form->resize(static_cast<std::size_t>(amx::block_elements(value_dim_)));
    std::array<const bfloat16*, strip_rows> rows{};
    const std::int64_t first = strip * strip_rows;
    std::int64_t count = locate_rows(plan_, tensors_.q, task.sequence, task.kv_head, first, strip_rows,
                                     rows.data(), worker.gathered.data());
    amx::pack_queries(rows.data(), count, dim_, s.queries_by_dim.data());
    amx::Prefetch none;
    s.finite = amx::pack_value_pairs(rows.data(), count, dim_, s.queries_by_row.data(), true, none);
    count = locate_rows(plan_, tensors_.grad_out, task.sequence, task.kv_head, first, strip_rows, rows.data(),
                        worker.gathered.data());
    amx::pack_queries(rows.data(), count, value_dim_, s.grad_outs_by_dim.data());
    s.finite &= amx::pack_value_pairs(rows.data(), count, value_dim_, s.grad_outs_by_row.data(), true, none);
    for (std::int64_t r = 0; r < strip_rows; ++r) {
      s.lse[r] = std::numeric_limits<float>::infinity();  // p is 0
      s.delta[r] = 0;
      if (r >= count) continue;
      const std::int64_t query = plan_.query_of_row(task.sequence, first + r),
                         head = plan_.head_of_row(task.kv_head, first + r);
      const float lse = load_element(tensors_.lse.data, DType::float32,
                                     query * tensors_.lse.stride[0] + head * tensors_.lse.stride[1]);
      if (lse != -std::numeric_limits<float>::infinity()) s.lse[r] = lse * log2_e;
      s.delta[r] = deltas_[static_cast<std::size_t>(query * problem_.query_heads + head)];
    }
  }

  void pack(const Task& task, std::int64_t slab, Slab& s, Worker& worker) {
    if (s.packed) return;
    s.packed = true;
    for (auto* form : {&s.keys_by_dim, &s.keys_by_key})
      form->resize(static_cast<std::size_t>(amx::block_elements(dim_)));
    s.values_by_dim.resize(static_cast<std::size_t>(amx::block_elements(value_dim_)));
    s.grad_keys.assign(static_cast<std::size_t>(slab_keys * amx::padded(dim_)), 0.0f);
    s.grad_values.assign(static_cast<std::size_t>(slab_keys * amx::padded(value_dim_)), 0.0f);
    const KeyRows keys(plan_, tensors_.k, tensors_.k_scale, task.sequence, task.kv_head, false);
    const KeyRows values(plan_, tensors_.v, tensors_.v_scale, task.sequence, task.kv_head, true);
    const std::int64_t first = slab * slab_keys,
                       count = std::min(slab_keys, plan_.keys(task.sequence) - first);
    std::array<const bfloat16*, slab_keys> rows;
    keys.rows(first, count, rows.data(), worker.gathered.data());
    amx::pack_keys(rows.data(), count, dim_, s.keys_by_dim.data());
    s.finite = amx::pack_values(rows.data(), count, dim_, s.keys_by_key.data());
    values.rows(first, count, rows.data(), worker.gathered.data());
    amx::pack_keys(rows.data(), count, value_dim_, s.values_by_dim.data());
  }

  void store_grad_queries(const Task& task, std::int64_t strip, Worker& worker) {
    amx::unpack(grad_queries(task, strip, worker), dim_, worker.rows.data());
    for (std::int64_t r = 0; r < rows(task, strip); ++r) {
      float* row = worker.rows.data() + r * amx::padded(dim_);
      simd::scale(row, problem_.scale_or_default(), dim_);
      store_gradient(row, tensors_.grad_q, plan_.query_of_row(task.sequence, strip * strip_rows + r),
                     plan_.head_of_row(task.kv_head, strip * strip_rows + r));
    }
  }

  void store_grad_keys(const Task& task, std::int64_t slab, Worker& worker) {
    Slab& s = slab_of(slab, worker);
    const std::int64_t first = slab * slab_keys,
                       count = std::min(slab_keys, plan_.keys(task.sequence) - first);
    const std::int64_t row = first_key_[static_cast<std::size_t>(task.sequence)] + first;
    for (std::int64_t k = 0; k < count; ++k) {
      float* gradient = gather(s.packed ? s.grad_keys.data() : nullptr, k, dim_, worker);
      simd::scale(gradient, problem_.scale_or_default(), dim_);
      store_gradient(gradient, tensors_.grad_k, row + k, task.kv_head);
      store_gradient(gather(s.packed ? s.grad_values.data() : nullptr, k, value_dim_, worker),
                     tensors_.grad_v, row + k, task.kv_head);
    }
  }

  // One key's row of a slab's sums; zeros where no query met the slab.
  static float* gather(const float* sums, std::int64_t key, std::int64_t dim, Worker& worker) {
    float* row = worker.rows.data();
    if (sums == nullptr) return std::fill_n(row, dim, 0.0f), row;
    for (std::int64_t c = 0; c < amx::padded(dim); c += 16)
      std::copy_n(sums + key / 16 * amx::padded(dim) * 16 + c * 16 + key % 16 * 16, 16, row + c);
    return row;
  }

  const TiledPlan& plan_;
  const Problem& problem_;
  const BackwardTensors& tensors_;
  const std::vector<float>& deltas_;
  std::int64_t dim_, value_dim_;
  std::vector<std::int64_t> first_key_;
  PerWorker<Worker> workers_;
};

}  // namespace

void amx_backward(const TiledPlan& plan, const BackwardTensors& tensors, const std::vector<float>& deltas) {
  AmxBackward(plan, tensors, deltas).run();
}

}  // namespace chorale::tiled
