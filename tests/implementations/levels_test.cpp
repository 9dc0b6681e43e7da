// Every level of src/simd: a name, a fingerprint, and bits that belong to the fingerprint. The program runs
// again at each lower level that the processor has.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "base/float.h"
#include "chorale/attention.h"
#include "simd/levels.h"

namespace chorale {
namespace {

Problem small_problem(DType dtype) {
  return {.query_heads = 4, .kv_heads = 2, .head_dim = 40, .dtype = dtype, .mask = mask::causal()};
}
std::string fingerprint(DType dtype) {
  return Attention::create(small_problem(dtype), "flash_attention_2").value().fingerprint().to_string();
}

constexpr std::string_view float_chains = "cpu-tiled/fp32-fma/T64/C1024/exp2-difference/pfp32/16-lane-tree";

// Values in [-1, 1) that no mathematical library takes part in.
Tensor values(DType dtype, std::int64_t rows, std::int64_t heads, std::uint64_t seed) {
  Tensor tensor = Tensor::zeros(dtype, {rows, heads, 40});
  for (std::int64_t i = 0; i < tensor.elements(); ++i) {
    const std::uint64_t mixed = (static_cast<std::uint64_t>(i) + seed) * 0x9e3779b97f4a7c15;
    store_element(tensor.view().data, dtype, i, static_cast<float>(mixed >> 40) * 0x1p-23f - 1);
  }
  return tensor;
}

std::uint64_t hash_of(const Tensor& tensor, std::uint64_t hash) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.view().data);
  for (std::size_t i = 0; i < static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype()); ++i)
    hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

// Of out, LSE and the gradients of two sequences, one of them longer than a chunk.
std::uint64_t bits_of_attention(DType dtype) {
  const Attention attention = Attention::create(small_problem(dtype), "flash_attention_2", Device::cpu(2),
                                                {Phase::forward, Phase::backward})
                                  .value();
  constexpr std::int64_t rows = 1100;
  const auto plan = attention.plan(Batch::packed({0, 30, rows})).value();
  const Tensor q = values(dtype, rows, 4, 1), k = values(dtype, rows, 2, 2000),
               v = values(dtype, rows, 2, 70), grad_out = values(dtype, rows, 4, 555);
  Tensor out = values(dtype, rows, 4, 0), grad_q = out.clone(), grad_k = k.clone(), grad_v = v.clone(),
         lse = Tensor::zeros(DType::float32, {rows, 4});
  EXPECT_TRUE(attention.forward(*plan, {.q = q, .k = k, .v = v, .out = out, .lse = lse}).is_ok());
  EXPECT_TRUE(attention
                  .backward(*plan, {.q = q,
                                    .k = k,
                                    .v = v,
                                    .out = out,
                                    .lse = lse,
                                    .grad_out = grad_out,
                                    .grad_q = grad_q,
                                    .grad_k = grad_k,
                                    .grad_v = grad_v})
                  .is_ok());
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const Tensor* tensor : {&out, &lse, &grad_q, &grad_k, &grad_v}) hash = hash_of(*tensor, hash);
  return hash;
}

TEST(Levels, EachHasItsFingerprint) {
  const std::map<std::string, std::string_view> of_bfloat16 = {
      {"avx2", float_chains},
      {"avx512", float_chains},
      {"avx512_bf16", "cpu-tiled/vdpbf16/T64/C1024/exp2-difference/pbf16/16-lane-tree"},
      {"amx", "cpu-tiled/tdpbf16/T32/C1024/exp2-raised-above-256/pbf16/2-lane"}};
  EXPECT_EQ(fingerprint(DType::bfloat16), of_bfloat16.at(simd::running_level()));
  EXPECT_EQ(fingerprint(DType::float32), float_chains);
  EXPECT_EQ(fingerprint(DType::float16), float_chains);
}

// Equal fingerprints, equal bits: on every processor, of every build. Who changes an order of arithmetic
// changes the fingerprint, docs/numerics.md and a number here.
TEST(Levels, AFingerprintsBitsStayWhatTheyWere) {
  const std::map<DType, std::uint64_t> bits_of_chains = {{DType::float32, 6927962669644104171u},
                                                         {DType::float16, 1628907931199618231u},
                                                         {DType::bfloat16, 14560444443103732737u}};
  for (const auto& [dtype, bits] : bits_of_chains) {
    if (fingerprint(dtype) == float_chains)
      EXPECT_EQ(bits_of_attention(dtype), bits) << name(dtype);
    else
      EXPECT_NE(bits_of_attention(dtype), bits) << name(dtype) << ": another fingerprint, for the same bits";
  }
}

TEST(Levels, TheForcedOneRunsOrIsAnError) {
  const std::string running = simd::running_level();
  for (const std::string level : {"avx2", "avx512", "avx512_bf16", "amx"}) {
    ::setenv("CHORALE_SIMD", level.c_str(), 1);  // too late to change what runs
    const Status forced = simd::check_forced_level();
    if (level == running)
      EXPECT_TRUE(forced.is_ok()) << forced.message();
    else
      EXPECT_EQ(forced.message(), "CHORALE_SIMD is '" + level + "': this processor has " +
                                      simd::processor_level() + " at most");
  }
  ::setenv("CHORALE_SIMD", running.c_str(), 1);
}

}  // namespace
}  // namespace chorale
