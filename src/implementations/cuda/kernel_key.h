// KernelKey: which kernel, compiled for what. Equal keys are one kernel.
#pragma once

#include <string>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "implementations/cuda/order.h"

namespace chorale::cuda {

enum class KernelKind { forward, decode, widen, store, copy_pages };
std::string_view name(KernelKind kind);

// What a decode kernel is compiled for beside the problem: query positions of a row block, a power of two and
// at most decode_rows / group, and blocks of threads that share an item. Changes no bit.
struct DecodeShape {
  int positions = 1;
  int cluster = 1;  // 1 or 2
};

struct KernelKey {
  KernelKind kind = KernelKind::forward;
  int head_dim = 0, value_dim = 0;
  int group = 1;  // query heads of a KV head
  bool bfloat16 = true;
  bool fp8_cache = false;
  bool paged = false;
  int page_size = 0;  // 0: packed
  bool masked = false, scored = false, sinks = false;
  int tile = 0, chunk = 0, positions = 0;
  int cluster = 1;
  std::string program;  // emitted from mask and score; empty for kernels of neither

  bool operator==(const KernelKey&) const = default;
  std::string entry() const;     // "chorale_forward"
  std::string describe() const;  // "forward bf16 d128 group 4 paged 16 masked"
};

// The kernel of this kind that serves a problem over packed (page_size 0) or paged keys. A forward over 8-bit
// keys is one over packed keys of 16 bits, which widen makes.
KernelKey kernel_key(KernelKind kind, const Problem& problem, int page_size, DecodeShape shape = {});
// The same in another order of arithmetic, which gives other bits.
KernelKey kernel_key(KernelKind kind, const Problem& problem, const Order& order, int page_size,
                     DecodeShape shape);

}  // namespace chorale::cuda
