// The cache's stream of operations, against the model of tests/kv. The first byte chooses the page size and
// the hash.
#include "kv/cache_model.h"
#include "target.h"

namespace chorale::fuzz {

void run(std::span<const std::uint8_t> input) {
  Bytes bytes(input);
  const int setup = bytes.byte();
  kv_model::CacheModel model(
      {.page_size = 1 << setup % 5, .hash = setup / 8 % 2 == 0 ? nullptr : kv_model::colliding_hash},
      [&](std::int64_t n) { return bytes.below(n); });
  for (int step = 0; step < 200 && !bytes.empty(); ++step) {
    model.step();
    if (testing::Test::HasFatalFailure()) return;
  }
  model.free_all();
}

}  // namespace chorale::fuzz
