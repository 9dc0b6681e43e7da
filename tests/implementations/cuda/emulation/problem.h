// A batch of sequences, which forward and decode kernels compute on emulated blocks of threads, and what
// float64 makes of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernel.h"

namespace emulation {

struct Lengths {
  int queries, keys;
};

// What changes no bit.
struct Order {
  std::uint64_t seed = 0;
  int clusters = 1;          // of blocks of threads
  int multiprocessors = 10;  // that row blocks of a decode are cut for
};

struct Results {
  std::vector<std::uint16_t> out;
  std::vector<std::uint32_t> lse;  // bits of floats
  bool operator==(const Results&) const = default;
};

class Problem {
 public:
  static constexpr int kv_heads = 2;

  // Heads, types, mask and score are those of `shape`. With a mask, positions see those of their document,
  // all of one where `documents` is empty.
  Problem(const Kernel& shape, std::vector<Lengths> lengths, std::uint64_t seed,
          std::vector<int> documents = {});

  int sequences() const { return static_cast<int>(lengths_.size()); }
  int keys(int sequence) const { return lengths_[static_cast<std::size_t>(sequence)].keys; }
  void set_value(int sequence, int key, int kv_head, int column, float x);
  void set_query(int sequence, int query, int head, int column, float x);

  // Nothing, and a failure of the test, where the kernel fails. An 8-bit cache is wide for a forward.
  std::optional<Results> forward(const Kernel& kernel, const Order& order) const;
  std::optional<Results> decode(const Kernel& kernel, const Order& order) const;

  // Against float64. Infinities and NaN are where they belong.
  void check(const Results& results) const;

 private:
  // Rows of keys or of values, one sequence's after another's: 16-bit elements, or codes and a scale for each
  // head.
  struct Cache {
    int dim = 0;
    std::vector<std::uint16_t> elements;
    std::vector<float> scales;
  };
  struct Memory;

  Memory lay_out(const Kernel& kernel) const;
  void map_cache(const Kernel& kernel, Memory& memory, int key_blocks) const;
  std::vector<unsigned char> pool(const Kernel& kernel, const Cache& cache, const Memory& memory) const;
  std::optional<Results> run(const Kernel& kernel, const Order& order, Memory& memory) const;
  void check_row(const Results& results, int s, int query, int head) const;

  std::uint16_t rounded(float x) const;
  float widened(std::uint16_t element) const;
  float value_of(const Cache& cache, int row, int kv_head, int column) const;
  int first_row(int sequence) const;    // of keys
  int first_token(int sequence) const;  // of queries
  bool is_visible(int position, int key) const;

  Kernel shape_;
  std::vector<Lengths> lengths_;
  std::uint64_t seed_;
  std::vector<int> documents_;
  int heads_, tokens_ = 0, rows_ = 0;  // query heads, queries, keys
  std::vector<std::uint16_t> q_;
  Cache k_, v_;
  std::vector<float> sinks_;
};

}  // namespace emulation
