// Bad input: what every implementation refuses, and the sentence it does so with. A refused call writes
// nothing.
#include <gmock/gmock.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

#include "chorale/attention.h"
#include "implementations/conformance/check.h"
#include "implementations/servants.h"
#include "implementations/views.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::Data;
using ::testing::HasSubstr;

class Refusals : public EveryImplementation {
 protected:
  static Case packed() {
    return {.feature = "refusals",
            .problem = {.query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 8,
                        .dtype = DType::bfloat16,
                        .mask = mask::causal()},
            .sequences = {{2, 5, 1}, {3, 3, 2}}};
  }
  static Case paged() {
    Case test = packed();
    test.page_size = 2;
    return test;
  }
  static Case with_sinks() {
    Case test = packed();
    test.problem.sinks = true;
    return test;
  }

  Result<std::shared_ptr<const Plan>> plan(const Case& test, const Data& data) const {
    return implementation().plan(test.problem, data.batch, Device::cpu());
  }

  template <class Tensors>
  struct Refusal {
    std::function<void(Tensors&)> change;
    std::string sentence;
  };
  // Each change of a good call is refused with its sentence, and the outputs keep their bytes.
  void expect_forward_refusals(const Case& test, const std::vector<Refusal<ForwardTensors>>& refusals) const {
    const Data data = conformance::make_data(test), fresh = conformance::make_data(test);
    const auto good = plan(test, data).value();
    for (const auto& refusal : refusals) {
      ForwardTensors tensors = data.forward();
      refusal.change(tensors);
      EXPECT_THAT(implementation().forward(*good, tensors).message(), HasSubstr(refusal.sentence));
      EXPECT_TRUE(conformance::same_bits(data.out, fresh.out) && conformance::same_bits(data.lse, fresh.lse))
          << refusal.sentence;
    }
    const Status status = implementation().forward(*good, data.forward());
    EXPECT_TRUE(status.is_ok()) << status.message();
  }
  void expect_backward_refusals(const Case& test,
                                const std::vector<Refusal<BackwardTensors>>& refusals) const {
    const Data data = conformance::make_data(test), fresh = conformance::make_data(test);
    const auto good = plan(test, data).value();
    ASSERT_TRUE(implementation().forward(*good, data.forward()).is_ok());
    for (const auto& refusal : refusals) {
      BackwardTensors tensors = data.backward();
      refusal.change(tensors);
      EXPECT_THAT(implementation().backward(*good, tensors).message(), HasSubstr(refusal.sentence));
      EXPECT_TRUE(conformance::same_bits(data.grad_q, fresh.grad_q) &&
                  conformance::same_bits(data.grad_k, fresh.grad_k) &&
                  conformance::same_bits(data.grad_v, fresh.grad_v))
          << refusal.sentence;
    }
    const Status status = implementation().backward(*good, data.backward());
    EXPECT_TRUE(status.is_ok()) << status.message();
  }
};
INSTANTIATE_TEST_SUITE_P(Implementations, Refusals, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Refusals, Problems) {
  Case test = packed();
  const Data data = conformance::make_data(test);
  test.problem.head_dim = 257;
  EXPECT_EQ(implementation().supports(test.problem, Device::cpu(), Phase::forward).message(),
            "head_dim 257: must be from 1 to 256");
  EXPECT_EQ(plan(test, data).status().message(), "head_dim 257: must be from 1 to 256");
}

TEST_P(Refusals, Batches) {
  const auto expect_refused = [&](const Case& test, const std::function<void(Batch&)>& change,
                                  const std::string& sentence) {
    Data data = conformance::make_data(test);
    ASSERT_TRUE(plan(test, data).has_value());
    change(data.batch);
    EXPECT_THAT(plan(test, data).status().message(), HasSubstr(sentence));
  };
  expect_refused(
      packed(), [](Batch& b) { b.cu_seqlens_q[0] = 1; }, "cu_seqlens_q");
  expect_refused(
      packed(), [](Batch& b) { b.cu_seqlens_q[1] = 9; }, "cu_seqlens_q");
  expect_refused(
      packed(), [](Batch& b) { b.cu_seqlens_k.pop_back(); }, "cu_seqlens_k");
  expect_refused(
      paged(), [](Batch& b) { b.kv_lens[0] = 100; }, "kv_lens[0] is 100");
  expect_refused(
      paged(), [](Batch& b) { b.kv_lens[1] = -1; }, "kv_lens[1] is -1");
  expect_refused(
      paged(), [](Batch& b) { b.page_size = 3; }, "page_size");
  expect_refused(
      paged(), [](Batch& b) { b.page_size = 512; }, "page_size");
}

TEST_P(Refusals, TablesTooShortOrOfAnotherType) {
  Case test = packed();
  const Table four = Table::integers("document", {0, 0, 1, 1});
  test.problem.mask = mask::document(four);
  const Data data = conformance::make_data(packed());
  const Status short_table = plan(test, data).status();
  EXPECT_EQ(short_table.code(), Code::out_of_range);
  EXPECT_THAT(short_table.message(), HasSubstr("sequence 0: "));
  EXPECT_THAT(short_table.message(), HasSubstr("document"));

  Data bound = conformance::make_data(packed());
  bound.batch.tables = {Table::integers("document", {0, 0, 1, 1, 1})};
  EXPECT_TRUE(plan(test, bound).has_value());
  bound.batch.tables = {Table::floats("document", {0, 0, 1, 1, 1})};
  EXPECT_THAT(plan(test, bound).status().message(), HasSubstr("document"));

  test = packed();  // the score's tables are looked at too
  const Table bias = Table::floats("bias", {0, 0, 1, 1});
  test.problem.score = Score::parse("score + bias[k]", std::span(&bias, 1)).value();
  EXPECT_THAT(plan(test, data).status().message(), HasSubstr("bias"));
}

TEST_P(Refusals, ForwardCalls) {
  using F = ForwardTensors;
  expect_forward_refusals(
      packed(),
      {{[](F& t) { t.q = {}; }, "q: must be given"},
       {[](F& t) { t.out = {}; }, "out: must be given"},
       {[](F& t) { t.q.shape[0] = 4; }, "q is bfloat16 [4, 4, 8]: must be bfloat16 [5, 4, 8]"},
       {[](F& t) { t.q.rank = 2; }, "q is bfloat16 [5, 4]: must be bfloat16 [5, 4, 8]"},
       {[](F& t) { t.q.rank = 5; }, "q: rank 5: must be from 0 to 4"},
       {[](F& t) { t.k.dtype = DType::float16; }, "k is float16 [8, 2, 8]: must be bfloat16 [8, 2, 8]"},
       {[](F& t) { t.v.shape[2] = 4; }, "v is bfloat16 [8, 2, 4]: must be bfloat16 [8, 2, 8]"},
       {[](F& t) { t.out.shape[1] = 2; }, "out is bfloat16 [5, 2, 8]: must be bfloat16 [5, 4, 8]"},
       {[](F& t) { t.lse.dtype = DType::bfloat16; }, "lse is bfloat16 [5, 4]: must be float32 [5, 4]"},
       {[](F& t) { t.k.stride[0] = -16; }, "k: stride -16 of dimension 0: must not be negative"},
       {[](F& t) { t.k.stride[0] = std::int64_t{1} << 62; },
        "k: bfloat16 [8, 2, 8] with these strides spans more than 2^63 bytes"},
       {[](F& t) { t.v.data = static_cast<std::byte*>(t.v.data) + 1; },
        "v: its data is not aligned to the 2 bytes of bfloat16"},
       {[](F& t) { t.out.stride[2] = 2; },
        "out: stride 2 of its last dimension: must be 1, since it is written"},
       {[](F& t) { t.out.stride[1] = 0; }, "out: stride 0 of dimension 1: must be at least"},
       {[](F& t) { t.out.stride[0] = 24; }, "out: stride 24 of dimension 0: must be at least 32"},
       {[](F& t) { t.lse.stride[0] = 0; }, "lse: stride 0 of dimension 0: must be at least 1"},
       {[](F& t) { t.out = t.q; }, "out is written, so it may not share memory with q"},
       {[](F& t) { t.sinks = t.lse; }, "sinks: must be left empty, since the problem has no sinks"}});
  expect_forward_refusals(
      with_sinks(), {{[](F& t) { t.sinks = {}; }, "sinks: must be given, since the problem has sinks"},
                     {[](F& t) { t.sinks.shape[0] = 2; }, "sinks is float32 [2]: must be float32 [4]"}});
  expect_forward_refusals(
      paged(),
      {{[](F& t) { t.k.shape[1] = 4; }, "]: must be bfloat16 [any, 2, 2, 8]"},
       {[](F& t) { t.k.shape[0] = -1; }, "k is bfloat16 [-1, 2, 2, 8]: must be bfloat16 [any, 2, 2, 8]"},
       {[](F& t) { t.v.shape[0] -= 1; }, "v is bfloat16 [7, 2, 2, 8]: must be bfloat16 [8, 2, 2, 8]"},
       {[](F& t) { t.k.shape[0] = t.v.shape[0] = 1; }, ": the pool has pages 0 to 0"}});
}

TEST_P(Refusals, BackwardCalls) {
  using B = BackwardTensors;
  expect_backward_refusals(
      packed(),
      {{[](B& t) { t.lse = {}; }, "lse: must be given"},
       {[](B& t) { t.grad_out.shape[0] = 1; }, "grad_out is bfloat16 [1, 4, 8]: must be bfloat16 [5, 4, 8]"},
       {[](B& t) { t.grad_q.dtype = DType::float32; },
        "grad_q is float32 [5, 4, 8]: must be bfloat16 [5, 4, 8]"},
       {[](B& t) { t.grad_k.stride[1] = 0; }, "grad_k: stride 0 of dimension 1: must be at least"},
       {[](B& t) { t.grad_v = t.grad_k; }, "grad_k is written, so it may not share memory with grad_v"},
       {[](B& t) { t.grad_q = t.grad_out; }, "grad_q is written, so it may not share memory with grad_out"},
       {[](B& t) { t.grad_sinks = t.lse; },
        "grad_sinks: must be left empty, since the problem has no sinks"}});
  expect_backward_refusals(with_sinks(), {{[](B& t) { t.sinks = {}; }, "sinks: must be given"},
                                          {[](B& t) { t.grad_sinks = {}; }, "grad_sinks: must be given"}});
  expect_backward_refusals(
      paged(), {{[](B& t) { t.grad_k = t.k; }, "grad_k is bfloat16 [8, 2, 2, 8]: must be bfloat16 [8, 2, 8]"},
                {[](B& t) { t.k.shape[0] = t.v.shape[0] = 1; }, ": the pool has pages 0 to 0"}});
}

TEST_P(Refusals, PagesThatASequenceUsesButThePoolLacks) {
  const Case test = paged();
  for (const std::int32_t page : {-1, 8, std::numeric_limits<std::int32_t>::min()}) {
    Data data = conformance::make_data(test);
    data.batch.block_table[static_cast<std::size_t>(data.batch.block_table_stride + 1)] = page;
    const auto planned = plan(test, data).value();
    const std::string sentence =
        "block_table[1][1] is page " + std::to_string(page) + ": the pool has pages 0 to 7";
    EXPECT_EQ(implementation().forward(*planned, data.forward()).message(), sentence);
    EXPECT_EQ(implementation().backward(*planned, data.backward()).message(), sentence);
    EXPECT_EQ(implementation().forward(*planned, data.forward()).code(), Code::out_of_range);
  }
}

TEST_P(Refusals, PlansOfAnotherMaker) {
  const Case test = packed();
  const Data data = conformance::make_data(test);
  for (const Implementation* other : servants()) {
    if (other == &implementation()) continue;
    const auto theirs = other->plan(test.problem, data.batch, Device::cpu()).value();
    const std::string sentence = "the plan was made by " + std::string(other->name()) + ": must be made by " +
                                 std::string(implementation().name());
    EXPECT_EQ(implementation().forward(*theirs, data.forward()).message(), sentence);
    EXPECT_EQ(implementation().backward(*theirs, data.backward()).message(), sentence);
  }
}

TEST_P(Refusals, PlansOfAnotherBatch) {
  const Case test = packed();
  Case longer = test;
  longer.sequences[0] = {3, 5, 1};
  const Data data = conformance::make_data(test), other = conformance::make_data(longer);
  const auto planned = plan(test, data).value();
  EXPECT_EQ(implementation().forward(*planned, other.forward()).message(),
            "q is bfloat16 [6, 4, 8]: must be bfloat16 [5, 4, 8]");
}

TEST_P(Refusals, PlansOfAnotherProblem) {
  Case test = packed();
  const Table ids = Table::integers("document", {0, 0, 1, 1, 1});
  test.problem.mask = mask::document(ids);
  const Data data = conformance::make_data(test);
  const auto planned = Attention(test.problem, implementation(), Device::cpu()).plan(data.batch).value();
  struct Change {
    std::function<void(Problem&)> change;
    std::string sentence;
  };
  const Change changes[] = {
      {[](Problem& p) { p.query_heads = 8; }, "query_heads is 4 in the plan and 8 here"},
      {[](Problem& p) { p.kv_heads = 1; }, "kv_heads is 2 in the plan and 1 here"},
      {[](Problem& p) { p.head_dim = 16; }, "head_dim is 8 in the plan and 16 here"},
      {[](Problem& p) { p.value_head_dim = 4; }, "value_head_dim is 8 in the plan and 4 here"},
      {[](Problem& p) { p.dtype = DType::float16; }, "dtype is bfloat16 in the plan and float16 here"},
      {[](Problem& p) { p.scale = 0.5f; }, "scale is 0.35355338 in the plan and 0.5 here"},
      {[](Problem& p) { p.sinks = true; }, "sinks is false in the plan and true here"},
      {[](Problem& p) { p.first_query_head = 4; }, "first_query_head is 0 in the plan and 4 here"},
      {[](Problem& p) { p.mask = mask::causal(); }, "its mask is"},
      {[](Problem& p) {
         p.mask = mask::document(Table::integers("document", {0, 1, 1, 1, 1}));
       },
       "with other tables"},
      {[](Problem& p) { p.score = score::softcap(3); }, "its score is"},
  };
  for (const Change& change : changes) {
    Problem other = test.problem;
    change.change(other);
    const Attention attention(other, implementation(), Device::cpu());
    EXPECT_THAT(attention.forward(*planned, data.forward()).message(),
                HasSubstr("the plan was made for another problem: "));
    EXPECT_THAT(attention.forward(*planned, data.forward()).message(), HasSubstr(change.sentence));
    EXPECT_THAT(attention.backward(*planned, data.backward()).message(), HasSubstr(change.sentence));
  }
  Problem equal = test.problem;
  equal.mask = mask::document(Table::integers("document", {0, 0, 1, 1, 1}));
  const Attention attention(equal, implementation(), Device::cpu());
  EXPECT_TRUE(attention.forward(*planned, data.forward()).is_ok()) << "an equal problem made elsewhere";
}

TEST_P(Refusals, ATableOfTheBatchMayDifferFromTheProblems) {
  Case test = packed();
  test.problem.mask = mask::document(Table::integers("document", {0}));
  test.tables = {Table::integers("document", {0, 0, 1, 1, 1})};
  const Data data = conformance::make_data(test);
  const Attention attention(test.problem, implementation(), Device::cpu());
  const auto planned = attention.plan(data.batch).value();
  EXPECT_TRUE(attention.forward(*planned, data.forward()).is_ok());
}

TEST(Views, InterleavedRowsAreToldApart) {
  // q, k and v as column ranges of one [rows, 24] matrix, and a gradient laid out the same way beside it.
  const Tensor matrix = Tensor::zeros(DType::float32, {4, 24});
  const auto columns = [&](std::int64_t begin, std::int64_t count) {
    TensorView view =
        TensorView::contiguous(matrix.as<float>().data() + begin, DType::float32, {4, 1, count});
    view.stride[0] = 24;
    return view;
  };
  const TensorView a = columns(0, 8), b = columns(8, 8), c = columns(16, 8), overlapping = columns(4, 8);
  const auto written = [](std::string_view name, const TensorView& view) {
    return NamedView{name, &view, Access::write, DType::float32, {4, 1, 8}};
  };
  const NamedView apart[] = {written("a", a), written("c", c), written("b", b)};
  for (const NamedView& view : apart) EXPECT_TRUE(check_view(view).is_ok());
  EXPECT_TRUE(check_disjoint(apart).is_ok());
  const NamedView together[] = {written("a", a), written("overlapping", overlapping)};
  EXPECT_EQ(check_disjoint(together).message(), "a is written, so it may not share memory with overlapping");
  const NamedView backwards[] = {written("overlapping", overlapping), written("a", a)};
  EXPECT_FALSE(check_disjoint(backwards).is_ok());
}

// Index times stride beyond 2^31: a pool whose last page lies more than 2^31 elements from its first, in
// memory that is reserved but, apart from two pages, never touched.
TEST_P(Refusals, StridesBeyond32BitsAreExact) {
  Case test = packed();
  test.sequences = {{2, 4, 1}};
  test.page_size = 4;
  const Data small = conformance::run(implementation(), test, Background::zeros, Device::cpu()).value();
  Data data = conformance::make_data(test, Background::zeros);
  const std::int64_t far = (std::int64_t{1} << 31) + 64;
  const std::int64_t page = 4 * 2 * 8;
  std::vector<std::unique_ptr<std::uint16_t, decltype(&std::free)>> memory;
  for (conformance::Stored* stored : {&data.k, &data.v}) {
    memory.emplace_back(static_cast<std::uint16_t*>(std::malloc(static_cast<std::size_t>(far + page) * 2)),
                        &std::free);
    ASSERT_NE(memory.back().get(), nullptr);
    const auto used = data.batch.block_table[0];
    std::memcpy(memory.back().get() + far,
                static_cast<std::uint16_t*>(stored->view.data) + used * stored->view.stride[0], page * 2);
    stored->view.data = memory.back().get();
    stored->view.shape[0] = 2;
    stored->view.stride[0] = far;
  }
  data.batch.block_table[0] = 1;
  const auto planned = plan(test, data).value();
  ASSERT_TRUE(implementation().forward(*planned, data.forward()).is_ok());
  ASSERT_TRUE(implementation().backward(*planned, data.backward()).is_ok());
  EXPECT_TRUE(conformance::same_bits(data.out, small.out));
  EXPECT_TRUE(conformance::same_bits(data.grad_k, small.grad_k));
}

}  // namespace
}  // namespace chorale
