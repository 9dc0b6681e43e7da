// libFuzzer's entry. An assertion that fails ends the process in a way that makes libFuzzer keep the input.
#include <cstdlib>

#include "target.h"

namespace {

class AbortOnFailure : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed()) std::abort();  // the printer before this one has said why
  }
};

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  testing::UnitTest::GetInstance()->listeners().Append(new AbortOnFailure);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  chorale::fuzz::run({data, size});
  return 0;
}
