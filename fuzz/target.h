// What a fuzz target is: one function over bytes that fails, by GoogleTest's assertions, if a property does
// not hold.
//
// Linked with libFuzzer (preset `fuzz`) it searches for such bytes. In every other build it is a test that
// replays the kept ones, a file of fuzz/corpus/<target> each.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <string_view>

namespace chorale::fuzz {

// One target defines it.
void run(std::span<const std::uint8_t> input);

inline std::string_view text_of(std::span<const std::uint8_t> input) {
  return {reinterpret_cast<const char*>(input.data()), input.size()};
}

// Decisions taken from bytes; zeros once they have run out.
class Bytes {
 public:
  explicit Bytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  std::uint8_t byte() {
    if (bytes_.empty()) return 0;
    const std::uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }
  // In [0, n), for n up to 2^16.
  std::int64_t below(std::int64_t n) { return (n <= 256 ? byte() : byte() << 8 | byte()) % n; }
  // Mostly small; any number of 32 bits after an escape.
  std::int32_t integer() {
    const std::uint8_t first = byte();
    if (first < 0xf0) return first < 0xe0 ? first : first - 0xf0;
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 8 | byte();
    return static_cast<std::int32_t>(value);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace chorale::fuzz
