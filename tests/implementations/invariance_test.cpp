// The promises of docs/numerics.md, bit by bit: a token's output does not depend on what else is computed, on
// how its keys are stored, or on how the work is cut up. Every promise has a control: something that must
// change bits does.
#include <fmt/format.h>

#include <bit>
#include <map>
#include <numeric>
#include <tuple>

#include "base/float.h"
#include "implementations/conformance/cases.h"
#include "implementations/conformance/check.h"
#include "implementations/conformance/rows.h"
#include "implementations/servants.h"

namespace chorale {
namespace {

using conformance::Background;
using conformance::Case;
using conformance::collect;
using conformance::Data;
using conformance::differences;
using conformance::RowBits;
using conformance::Rows;
using conformance::Sequence;

struct Results {
  Rows forward;  // out, then lse
  Rows grad_q;
  Rows grad_keys;  // grad_k, then grad_v
  RowBits grad_sinks;
};

struct Feature {
  std::string_view name;
  Mask mask;
  Score score;
  bool sinks;
};
std::vector<Feature> features() {
  return {{"causal", mask::causal(), {}, false},
          {"everything", mask::causal() && mask::window(300),
           score::alibi(score::alibi_slopes(4)).then(score::softcap(20)), true}};
}

class Invariance : public EveryImplementation {
 protected:
  // Whole sequences, from one token to more than a chunk of the implementation.
  static Case whole(const Implementation& of, const Feature& feature, DType dtype) {
    const auto edges = conformance::Edges::of(of.fingerprint({}, Device::cpu()));
    return {.feature = std::string(feature.name),
            .problem = {.query_heads = 4,
                        .kv_heads = 2,
                        .head_dim = 12,
                        .value_head_dim = 20,
                        .dtype = dtype,
                        .mask = feature.mask,
                        .score = feature.score,
                        .sinks = feature.sinks},
            .sequences = {{1, 1, 10},
                          {17, 17, 11},
                          {64, 64, 12},
                          {130, 130, 13},
                          {edges.chunk + 16, edges.chunk + 16, 14}}};
  }
  // Only forward: a cut sequence's gradients are another quantity.
  Rows forward(const Case& test, int threads = 1) const {
    const Data data = conformance::make_data(test, Background::poison);
    const auto plan = implementation().plan(test.problem, data.batch, Device::cpu(threads)).value();
    const Status status = implementation().forward(*plan, data.forward());
    EXPECT_TRUE(status.is_ok()) << status.message();
    return conformance::forward_rows(test, data);
  }
  Results both(const Case& test, int threads = 1) const { return both(implementation(), test, threads); }
  static Results both(const Implementation& implementation, const Case& test, int threads = 1) {
    const Data data =
        conformance::run(implementation, test, Background::poison, Device::cpu(threads)).value();
    Results results{.forward = conformance::forward_rows(test, data),
                    .grad_q = collect(test, &Sequence::queries, {&data.grad_q}),
                    .grad_keys = collect(test, &Sequence::keys, {&data.grad_k, &data.grad_v}),
                    .grad_sinks = {}};
    for (int head = 0; test.problem.sinks && head < test.problem.query_heads; ++head) {
      results.grad_sinks.push_back(
          std::bit_cast<std::uint32_t>(load_element(data.grad_sinks.view.data, DType::float32, head)));
    }
    return results;
  }
  static void expect_same(const Results& all, const Results& some, const std::string& when) {
    EXPECT_EQ(differences(all.forward, some.forward), 0u) << "forward, " << when;
    EXPECT_EQ(differences(all.grad_q, some.grad_q), 0u) << "grad_q, " << when;
    EXPECT_EQ(differences(all.grad_keys, some.grad_keys), 0u) << "grad_k and grad_v, " << when;
  }
  template <class Body>
  void for_each_problem(Body&& body) const {
    for (const Feature& feature : features()) {
      for (const DType dtype : {DType::float32, DType::bfloat16}) {
        SCOPED_TRACE(fmt::format("{}, {}", feature.name, name(dtype)));
        body(whole(implementation(), feature, dtype));
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Implementations, Invariance, ::testing::ValuesIn(servants()), servant_name);

TEST_P(Invariance, RunsAndThreads) {
  for_each_problem([&](const Case& test) {
    const Results reference = both(test);
    for (const int threads : {1, 2, 3, 7}) {
      const Results again = both(test, threads);
      expect_same(reference, again, fmt::format("{} threads", threads));
      EXPECT_EQ(reference.grad_sinks, again.grad_sinks) << threads << " threads";
    }
  });
}

TEST_P(Invariance, AloneOrInAnyBatch) {
  for_each_problem([&](const Case& test) {
    const Results reference = both(test);
    for (const Sequence& s : test.sequences) {
      Case alone = test;
      alone.sequences = {s};
      expect_same(reference, both(alone), fmt::format("sequence of {} alone", s.keys));
    }
    Case reversed = test;
    std::reverse(reversed.sequences.begin(), reversed.sequences.end());
    reversed.sequences.insert(reversed.sequences.begin() + 1,
                              {{0, 0, 90}, {5, 200, 91}, {0, 70, 92}, {3, 1, 93}});
    Results mixed = both(reversed);
    for (Rows* rows : {&mixed.forward, &mixed.grad_q, &mixed.grad_keys}) {
      std::erase_if(*rows, [](const auto& row) { return std::get<0>(row.first) >= 90; });
    }
    expect_same(reference, mixed, "in another order among others");
  });
}

// Outputs of which together are more than a second-level cache holds may be stored in another way.
TEST_P(Invariance, AmongManyOutputs) {
  Case test{.feature = "many outputs",
            .problem = {.query_heads = 64,
                        .kv_heads = 2,
                        .head_dim = 64,
                        .dtype = DType::bfloat16,
                        .mask = mask::causal() && mask::window(20)},
            .sequences = {{300, 300, 1}, {260, 260, 2}}};
  const Rows reference = forward(test);
  for (const Sequence& s : test.sequences) {
    Case alone = test;
    alone.sequences = {s};
    EXPECT_EQ(differences(reference, forward(alone)), 0u) << "sequence of " << s.keys << " alone";
  }
}

TEST_P(Invariance, PackedOrPagedInAnyOrder) {
  for_each_problem([&](const Case& test) {
    const Results reference = both(test);
    for (const int page_size : {1, 16, 256}) {
      for (const std::uint64_t order : {1u, 2u}) {
        Case paged = test;
        paged.page_size = page_size;
        paged.page_order = order;
        const Results results = both(paged);
        expect_same(reference, results, fmt::format("pages of {} in order {}", page_size, order));
        EXPECT_EQ(reference.grad_sinks, results.grad_sinks);
      }
    }
  });
}

TEST_P(Invariance, HoweverItsMemoryIsLaidOut) {
  for_each_problem([&](const Case& test) {
    const Results reference = both(test);
    using conformance::Arrangement;
    for (const Arrangement arrangement : {Arrangement::heads_first, Arrangement::padded,
                                          Arrangement::columns_first, Arrangement::misaligned}) {
      Case other = test;
      other.inputs = arrangement;
      if (arrangement != Arrangement::columns_first) other.outputs = arrangement;
      expect_same(reference, both(other), "another layout");
    }
  });
}

// Every sequence cut into chunks of queries, each of which sees the keys up to its own end: a chunked
// prefill, and for chunks of one a token-by-token decode.
std::vector<Sequence> cut(const std::vector<Sequence>& whole, std::int32_t chunk) {
  std::vector<Sequence> parts;
  for (const Sequence& s : whole) {
    for (std::int32_t begin = 0; begin < s.keys; begin += chunk) {
      const std::int32_t end = std::min(begin + chunk, s.keys);
      parts.push_back({end - begin, end, s.content});
    }
  }
  return parts;
}

TEST_P(Invariance, PrefillWholeInChunksOrTokenByToken) {
  for_each_problem([&](const Case& test) {
    const Rows reference = forward(test);
    for (const std::int32_t chunk : {1, 3, 64, 100, 1000}) {
      if (chunk == 3 && test.problem.dtype != DType::float32) continue;  // many small pieces: once is enough
      Case pieces = test;
      pieces.sequences = cut(test.sequences, chunk);
      pieces.page_size = 16;
      pieces.shared_pages = false;
      // A decode of every position of the longest sequence needs a pool of its square: its last ones will do.
      const std::int32_t late = test.sequences.back().keys - 30;
      if (chunk < 64) {
        std::erase_if(pieces.sequences, [&](const Sequence& s) { return s.content == 14 && s.keys < late; });
      }
      EXPECT_EQ(differences(reference, forward(pieces, 2)), 0u) << "chunks of " << chunk;
    }
  });
}

// The controls: the comparison sees what changes a result's last bits.
TEST_P(Invariance, ControlAnotherScaleGivesOtherBits) {
  for_each_problem([&](Case test) {
    const Results reference = both(test);
    test.problem.scale = std::nextafter(test.problem.scale_or_default(), 1.0f);
    if (test.problem.dtype != DType::float32)
      test.problem.scale *= 1.01f;  // 16-bit results hide a single ulp
    const Results other = both(test);
    EXPECT_GT(differences(reference.forward, other.forward), reference.forward.size() / 2);
    EXPECT_GT(differences(reference.grad_q, other.grad_q), reference.grad_q.size() / 2);
    EXPECT_GT(differences(reference.grad_keys, other.grad_keys), reference.grad_keys.size() / 2);
  });
}

TEST(InvarianceControl, ImplementationsWithOtherFingerprintsGiveOtherBits) {
  struct Open : Invariance {
    using Invariance::both;
    using Invariance::whole;
    void TestBody() override {}
  };
  const auto all = servants();
  ASSERT_GE(all.size(), 2u);
  const Case test = Open::whole(*all[0], features()[0], DType::float32);
  const Results one = Open::both(*all[0], test), other = Open::both(*all[1], test);
  ASSERT_NE(all[0]->fingerprint(test.problem, Device::cpu()),
            all[1]->fingerprint(test.problem, Device::cpu()));
  EXPECT_GT(differences(one.forward, other.forward), one.forward.size() / 2);
  EXPECT_GT(differences(one.grad_q, other.grad_q), one.grad_q.size() / 2);
  EXPECT_GT(differences(one.grad_keys, other.grad_keys), one.grad_keys.size() / 2);
}

}  // namespace
}  // namespace chorale
