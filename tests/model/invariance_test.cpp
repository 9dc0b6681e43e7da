// Rows have the same bits however they are computed: alone or packed, on any number of threads, in chunks
// over pages.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "base/float.h"
#include "chorale/kv_cache.h"
#include "model/fixture.h"
#include "model/model.h"

namespace chorale {
namespace {

using test::lively_parameters;
using test::Packed;
using test::random_tokens;
using test::same_bits;
using test::small_config;

// Every recorded output, by layer and operation, as the bytes of each row.
class Recording : public Observer {
 public:
  void record(int layer, std::string_view operation, const TensorView& output) override {
    auto& rows = rows_[{layer, std::string(operation)}];
    const std::int64_t count = output.shape[0];
    for (std::int64_t row = 0; row < count; ++row) {
      const TensorView one = output.slice(0, row, row + 1);
      std::vector<float> values;
      for (std::int64_t i = 0; i < (one.rank > 1 ? one.shape[1] : 1); ++i)
        for (std::int64_t j = 0; j < (one.rank > 2 ? one.shape[2] : 1); ++j)
          values.push_back(
              load_element(one.data, one.dtype, i * one.stride[1] + (one.rank > 2 ? j * one.stride[2] : 0)));
      rows.push_back(std::move(values));
    }
  }
  const auto& rows() const { return rows_; }

 private:
  std::map<std::pair<int, std::string>, std::vector<std::vector<float>>> rows_;
};

// Rows of `part` are rows [first, ...) of `whole`, in every operation.
void expect_rows(const Recording& part, const Recording& whole, std::size_t first) {
  ASSERT_EQ(part.rows().size(), whole.rows().size());
  for (const auto& [key, rows] : part.rows())
    for (std::size_t i = 0; i < rows.size(); ++i)
      ASSERT_TRUE(same_bits(rows[i], whole.rows().at(key).at(first + i)))
          << "layer " << key.first << " " << key.second << " row " << first + i;
}

// A generator's attention: keys and values go into pages first.
class PagedAttention : public LayerAttention {
 public:
  PagedAttention(const ModelConfig& config, int page_size,
                 const std::string& implementation = "flash_attention_2")
      : cache_(make_cache(config, page_size)),
        sequence_(cache_.add()),
        attention_(Attention::create(config.problem(), implementation, Device::cpu(),
                                     {Phase::prefill, Phase::decode})
                       .value()) {}

  // The next `tokens` of the sequence are about to be computed.
  void extend(int tokens) {
    slots_ = cache_.append(sequence_, tokens).value();
    plan_ = attention_.plan(cache_.batch(std::array{sequence_}, std::array{tokens}).value()).value();
  }
  Status forward(int layer, const TensorView& q, const TensorView& k, const TensorView& v,
                 const TensorView& out, const TensorView& lse) override {
    CHORALE_RETURN_IF_ERROR(cache_.store(layer, slots_, k, v));
    return attention_.forward(
        *plan_, {.q = q, .k = cache_.keys(layer), .v = cache_.values(layer), .out = out, .lse = lse});
  }

 private:
  static KvCache make_cache(const ModelConfig& config, int page_size) {
    KvCacheConfig cache;
    cache.layers = config.num_hidden_layers, cache.kv_heads = config.num_key_value_heads,
    cache.head_dim = config.head_dim;
    cache.dtype = config.compute_dtype, cache.page_size = page_size, cache.pages = 200;
    return KvCache::create(cache).value();
  }
  KvCache cache_;
  KvCache::SequenceId sequence_;
  Attention attention_;
  std::vector<std::int64_t> slots_;
  std::shared_ptr<const Plan> plan_;
};

class SameBits : public ::testing::TestWithParam<DType> {
 protected:
  SameBits()
      : config_(small_config(GetParam())),
        parameters_(lively_parameters(config_, 5)),
        sequence_(random_tokens(150, config_.vocab_size, 8)),
        other_(random_tokens(70, config_.vocab_size, 9)) {}

  Model model(int threads) const { return Model::create(config_, parameters_, threads).value(); }
  Recording run(const std::vector<std::vector<std::int32_t>>& sequences, int threads) const {
    const Packed packed(sequences);
    auto attention = packed.attention(config_, "flash_attention_2", threads);
    Recording recording;
    EXPECT_TRUE(model(threads).forward(packed.inputs(), attention, nullptr, &recording).has_value());
    return recording;
  }

  ModelConfig config_;
  ParameterSet parameters_;
  std::vector<std::int32_t> sequence_, other_;
};
INSTANTIATE_TEST_SUITE_P(Types, SameBits, ::testing::Values(DType::float32, DType::bfloat16),
                         [](const auto& instance) { return std::string(name(instance.param)); });

TEST_P(SameBits, AloneAndInAPack) {
  const Recording pack = run({other_, sequence_}, 2);
  expect_rows(run({sequence_}, 2), pack, other_.size());
  expect_rows(run({other_}, 2), pack, 0);
  // A control: another token must change the rows from there on.
  std::vector<std::int32_t> changed = sequence_;
  changed[40] = (changed[40] + 1) % config_.vocab_size;
  const Recording control = run({changed}, 2);
  const auto& logits = control.rows().at({config_.num_hidden_layers, "logits"});
  const auto& expected = pack.rows().at({config_.num_hidden_layers, "logits"});
  EXPECT_TRUE(same_bits(logits[39], expected[other_.size() + 39]));
  EXPECT_FALSE(same_bits(logits[40], expected[other_.size() + 40]));
  EXPECT_FALSE(same_bits(logits[149], expected[other_.size() + 149]));
}

TEST_P(SameBits, OneThreadAndMany) {
  const Recording one = run({other_, sequence_}, 1);
  expect_rows(run({other_, sequence_}, 2), one, 0);
  expect_rows(run({other_, sequence_}, 3), one, 0);
}

TEST_P(SameBits, PackedAndPaged) {
  const Recording packed = run({sequence_}, 2);
  for (const int page_size : {1, 16, 64}) {
    PagedAttention attention(config_, page_size);
    const Model generator = model(2);
    // Chunks of a prefill, then one token at a time.
    std::size_t start = 0;
    for (const int chunk : {1, 33, 64, 40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}) {
      Packed part({std::vector(sequence_.begin() + static_cast<std::ptrdiff_t>(start),
                               sequence_.begin() + static_cast<std::ptrdiff_t>(start) + chunk)});
      for (std::int32_t& position : part.positions) position += static_cast<std::int32_t>(start);
      attention.extend(chunk);
      Recording recording;
      ASSERT_TRUE(generator.forward(part.inputs(), attention, nullptr, &recording).has_value());
      expect_rows(recording, packed, start);
      start += static_cast<std::size_t>(chunk);
    }
    ASSERT_EQ(start, sequence_.size());
  }
}

TEST_P(SameBits, KeepingActivationsOrNot) {
  const Packed packed({sequence_, other_});
  auto attention = packed.attention(config_);
  Recording kept, dropped;
  std::shared_ptr<Activations> activations;
  const Tensor with = model(2).forward(packed.inputs(), attention, &activations, &kept).value();
  const Tensor without = model(2).forward(packed.inputs(), attention, nullptr, &dropped).value();
  expect_rows(kept, dropped, 0);
  EXPECT_TRUE(same_bits(with.as<float>(), without.as<float>()));
}

TEST_P(SameBits, ActivationsMemoryIsUsedAgain) {
  const Model trained = model(2);
  const auto gradients = [&](const std::vector<std::int32_t>& tokens,
                             std::shared_ptr<Activations>& activations) {
    const Packed packed({tokens});
    auto attention = packed.attention(config_);
    const Tensor logits = trained.forward(packed.inputs(), attention, &activations).value();
    ParameterSet sums = zero_parameters(config_);
    EXPECT_TRUE(trained.backward(*activations, logits, attention, sums).is_ok());
    return sums;
  };
  const auto expect_same = [](const ParameterSet& a, const ParameterSet& b) {
    for (std::size_t i = 0; i < a.size(); ++i)
      EXPECT_TRUE(same_bits(a[i].value.as<float>(), b[i].value.as<float>())) << a[i].name;
  };
  const std::vector<std::int32_t> others = random_tokens(150, config_.vocab_size, 10);
  std::shared_ptr<Activations> used, fresh, shorter;
  (void)gradients(others, used);
  const Activations* before = used.get();
  const ParameterSet expected = gradients(sequence_, fresh);
  expect_same(gradients(sequence_, used), expected);
  EXPECT_EQ(used.get(), before) << "as many rows: the same memory";
  (void)gradients(other_, used);
  EXPECT_NE(used.get(), before) << "fewer rows: other memory";

  // What somebody still looks at stays as it is.
  const std::shared_ptr<Activations> kept = fresh;
  (void)gradients(others, fresh);
  EXPECT_NE(fresh, kept);
  const Packed packed({sequence_});
  auto attention = packed.attention(config_);
  ParameterSet again = zero_parameters(config_);
  const Tensor logits = trained.forward(packed.inputs(), attention).value();
  EXPECT_TRUE(trained.backward(*kept, logits, attention, again).is_ok());
  expect_same(again, expected);
}

TEST_P(SameBits, GradientsOfAnyNumberOfThreads) {
  const Packed packed({other_, sequence_});
  const auto gradients = [&](int threads) {
    auto attention = packed.attention(config_, "flash_attention_2", threads);
    std::shared_ptr<Activations> activations;
    const Model trained = model(threads);
    const Tensor logits = trained.forward(packed.inputs(), attention, &activations).value();
    ParameterSet sums = zero_parameters(config_);
    EXPECT_TRUE(trained.backward(*activations, logits, attention, sums).is_ok());
    return sums;
  };
  const ParameterSet one = gradients(1), two = gradients(2);
  for (std::size_t i = 0; i < one.size(); ++i) {
    EXPECT_TRUE(same_bits(one[i].value.as<float>(), two[i].value.as<float>())) << one[i].name;
    EXPECT_THAT(one[i].value.as<float>(), ::testing::Contains(::testing::Ne(0.0f)))
        << one[i].name << " has no gradient";
  }
}

// Sums over rows go on from what the gradients hold: two packs one after the other are one pack of both. (Not
// so where the embedding is also the head, since its two sums are interleaved then. Products of bfloat16
// pairs take rows in steps of 32: the first pack is whole steps.)
TEST_P(SameBits, GradientsOfTwoPacksAndOfOne) {
  const Model trained = model(2);
  const std::vector<std::int32_t> first(other_.begin(), other_.begin() + 64);
  const auto add = [&](const std::vector<std::vector<std::int32_t>>& sequences, ParameterSet& sums) {
    const Packed packed(sequences);
    auto attention = packed.attention(config_);
    std::shared_ptr<Activations> activations;
    const Tensor logits = trained.forward(packed.inputs(), attention, &activations).value();
    EXPECT_TRUE(trained.backward(*activations, logits, attention, sums).is_ok());
  };
  ParameterSet together = zero_parameters(config_), apart = zero_parameters(config_);
  add({first, sequence_}, together);
  add({first}, apart), add({sequence_}, apart);
  for (std::size_t i = 0; i < together.size(); ++i)
    EXPECT_TRUE(same_bits(together[i].value.as<float>(), apart[i].value.as<float>())) << together[i].name;
}

}  // namespace
}  // namespace chorale
