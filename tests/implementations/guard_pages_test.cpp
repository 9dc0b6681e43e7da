// Every tensor right before, or right behind, memory that no process may touch. A kernel that reads or writes
// one element beyond a tensor faults here, where memory around it would have hidden that.
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "guarded_memory.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Arrangement;
using conformance::Background;
using conformance::Case;
using conformance::Data;
using conformance::Stored;

// From the view's first element to behind its last.
std::size_t extent(const TensorView& view) {
  std::int64_t last = 0;
  for (int i = 0; i < view.rank; ++i) last += (view.shape[i] - 1) * view.stride[i];
  return view.empty() || view.elements() == 0 ? 0 : static_cast<std::size_t>(last + 1) * size_of(view.dtype);
}

std::vector<Stored*> tensors(Data& data) {
  return {&data.q,   &data.k,   &data.v,      &data.k_scale, &data.v_scale, &data.sinks,     &data.grad_out,
          &data.out, &data.lse, &data.grad_q, &data.grad_k,  &data.grad_v,  &data.grad_sinks};
}

struct Place {
  const Implementation* implementation;
  Side side;
};

class GuardPages : public testing::TestWithParam<Place> {
 protected:
  static void check(const Case& test) {
    SCOPED_TRACE(test.describe());
    guarded_work = test.describe();
    const Implementation& implementation = *GetParam().implementation;
    Data free = conformance::run(implementation, test, Background::poison, Device::cpu(2)).value();
    Data guarded = conformance::make_data(test, Background::poison);
    std::vector<GuardedMemory> memories;
    for (Stored* stored : tensors(guarded)) {
      if (extent(stored->view) == 0) continue;
      GuardedMemory& memory = memories.emplace_back(extent(stored->view), GetParam().side);
      std::memcpy(memory.data(), stored->view.data, extent(stored->view));
      stored->view.data = memory.data();
    }
    const auto plan = implementation.plan(test.problem, guarded.batch, Device::cpu(2)).value();
    const Status forward = implementation.forward(*plan, guarded.forward());
    ASSERT_TRUE(forward.is_ok()) << forward.message();
    const Status backward = implementation.backward(*plan, guarded.backward());
    ASSERT_TRUE(backward.is_ok()) << backward.message();
    const auto here = tensors(guarded), there = tensors(free);
    for (std::size_t i = 0; i < here.size(); ++i)
      if (extent(here[i]->view) != 0)
        EXPECT_EQ(std::memcmp(here[i]->view.data, there[i]->view.data, extent(here[i]->view)), 0)
            << "tensor " << i;
  }

 private:
  const FaultsAreTold told_;
};

TEST_P(GuardPages, NothingOutsideATensorIsTouched) {
  struct Types {
    DType dtype;
    std::optional<DType> kv_dtype;
  };
  for (const auto& [dtype, kv_dtype] :
       {Types{DType::float32, {}}, Types{DType::bfloat16, {}}, Types{DType::float16, {}},
        Types{DType::bfloat16, DType::float8_e4m3}}) {
    for (const int dim : {1, 7, 80, 96, 128}) {
      for (const int page_size : {0, 1, 16, 256}) {
        const Arrangement arrangement = dim == 7 || dim == 96 ? Arrangement::padded : Arrangement::contiguous;
        check({.feature = "guard pages",
               .problem = {.query_heads = 4,
                           .kv_heads = 2,
                           .head_dim = dim,
                           .value_head_dim = dim == 80 ? 33 : dim,
                           .dtype = dtype,
                           .kv_dtype = kv_dtype,
                           .mask = mask::causal(),
                           .sinks = page_size == 16},
               .sequences = {{3, 17, 1}, {0, 5, 2}, {1, 70, 3}, {5, 0, 4}, {33, 33, 5}, {1, 16, 6}},
               .page_size = page_size,
               .page_order = static_cast<std::uint64_t>(dim),
               .inputs = arrangement,
               .outputs = arrangement});
        if (HasFatalFailure()) return;
      }
    }
  }
}

// More than a chunk of keys, and enough rows for what is packed once for all of them.
TEST_P(GuardPages, NothingOutsideALongSequenceIsTouched) {
  if (GetParam().implementation->name() == "eager") return;  // a pair at a time, whatever the length: no news
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const int dim : {33, 128}) {
      for (const int page_size : {0, 16}) {
        check({.feature = "guard pages, long",
               .problem = {.query_heads = 2,
                           .kv_heads = 1,
                           .head_dim = dim,
                           .dtype = dtype,
                           .mask = dim == 33 ? mask::causal() : mask::causal() && mask::window(200)},
               .sequences = {{1, 1100, 1}, {300, 1030, 2}},
               .page_size = page_size});
        if (HasFatalFailure()) return;
      }
    }
  }
}

std::vector<Place> places() {
  std::vector<Place> all;
  for (const Implementation* implementation : servants())
    for (const Side side : {Side::begin, Side::end}) all.push_back({implementation, side});
  return all;
}
std::string place_name(const testing::TestParamInfo<Place>& info) {
  return std::string(info.param.implementation->name()) +
         (info.param.side == Side::begin ? "_Begin" : "_End");
}
INSTANTIATE_TEST_SUITE_P(Implementations, GuardPages, testing::ValuesIn(places()), place_name);

// Control: one byte beyond either end is one too many.
TEST(GuardPagesDeathTest, AByteOutsideFaults) {
  guarded_work = "control";
  for (const Side side : {Side::begin, Side::end}) {
    const GuardedMemory memory(100, side);
    const volatile std::byte* outside = side == Side::begin ? memory.data() - 1 : memory.data() + 100;
    EXPECT_EXIT(
        {
          const FaultsAreTold told;
          (void)*outside;
        },
        testing::ExitedWithCode(1), "touched memory outside a tensor: control");
  }
}

}  // namespace
}  // namespace chorale
