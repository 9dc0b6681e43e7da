// The programs that emit_cuda_test.cpp judges: write_cuda_cases.cpp writes their CUDA source when the tests
// are built, the host's compiler compiles it, and the test compares it with the other readings of the same
// programs.
#pragma once

#include <string>
#include <vector>

#include "chorale/mask.h"
#include "mask/random_program.h"

namespace chorale::testing {

struct CudaCase {
  std::string name;
  Mask mask;
  Score score;
};

inline std::vector<CudaCase> cuda_cases() {
  std::vector<std::int32_t> document(300), grid(3 * 100);
  for (std::size_t i = 0; i < document.size(); ++i) document[i] = static_cast<std::int32_t>(i / 37);
  for (std::size_t i = 0; i < grid.size(); ++i) grid[i] = static_cast<std::int32_t>(i % 100 / 23);
  const Table ids = Table::integers("ids", document),
              ids_2d = Table::integers_2d("ids", 3, 100, grid).value();
  std::vector<CudaCase> cases = {
      {"all", mask::all(), {}},
      {"causal", mask::causal(), score::softcap(50)},
      {"window", mask::causal() && mask::window(5), score::alibi(score::alibi_slopes(8))},
      {"prefix", mask::prefix_lm(7), {}},
      {"document", mask::causal() && mask::document(ids),
       Score::parse("score * exp(-0.01 * abs(q - k))").value()},
      {"document_2d", mask::document(ids_2d), Score::parse("score + log(1.0 + sqrt(k))").value()},
      {"strided", Mask::parse("(q - k) % 4 == 0 and q / 16 >= k / 16").value(), {}},
      {"heads", Mask::parse("k <= q and (h % 2 == 0 or q - k < 8)").value(), {}},
      {"far", Mask::parse("q * k * 1000 - k < 9000000000 + b").value(), {}},
  };
  constexpr int random_cases = 48;
  for (int seed = 0; seed < random_cases; ++seed) {
    RandomProgram random(static_cast<std::uint64_t>(seed), true);
    Mask mask = Mask::from(RandomProgram(static_cast<std::uint64_t>(1000 + seed)).boolean(seed % 6)).value();
    Score score = Score::from(random.floating(seed % 5)).value();
    cases.push_back({"random_" + std::to_string(seed), std::move(mask), std::move(score)});
  }
  return cases;
}

}  // namespace chorale::testing
