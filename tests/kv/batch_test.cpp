#include "chorale/batch.h"

#include <limits>
#include <optional>

#include "kv/fixture.h"

namespace chorale {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Ints = std::vector<std::int32_t>;

TEST(PackedBatch, KnowsLengths) {
  const Batch batch = Batch::packed({0, 3, 3, 7}, {0, 5, 6, 6});
  ASSERT_TRUE(batch.validate().is_ok());
  EXPECT_FALSE(batch.is_paged());
  EXPECT_EQ(batch.sequences(), 3);
  EXPECT_EQ(batch.total_q(), 7);
  EXPECT_EQ(batch.total_k(), 6);
  EXPECT_EQ(batch.q_len(1), 0);
  EXPECT_EQ(batch.kv_len(2), 0);
  const Batch same = Batch::packed({0, 2, 9});
  ASSERT_TRUE(same.validate().is_ok());
  EXPECT_EQ(same.kv_len(1), 7);
}

TEST(PackedBatch, MayHaveNoSequences) {
  for (const Batch& batch : {Batch{}, Batch::packed({0}), Batch::packed({}, {0})}) {
    EXPECT_TRUE(batch.validate().is_ok());
    EXPECT_EQ(batch.sequences(), 0);
    EXPECT_EQ(batch.total_q(), 0);
    EXPECT_EQ(batch.total_k(), 0);
  }
}

TEST(PackedBatch, RefusesBadOffsets) {
  expect_error(Batch::packed({1, 3}).validate(), Code::invalid_argument, "cu_seqlens_q[0] is 1: must be 0");
  expect_error(Batch::packed({0, 3, 2}).validate(), Code::invalid_argument,
               "cu_seqlens_q[2] is 2: must be at least 3");
  expect_error(Batch::packed({0, 3}, {0, -1}).validate(), Code::invalid_argument, "cu_seqlens_k[1] is -1");
  expect_error(Batch::packed({0, 3}, {0, 1, 2}).validate(), Code::invalid_argument,
               "cu_seqlens_k has 2 sequences: must be 1");
  // A sum that overflowed shows as a descent.
  expect_error(
      Batch::packed({0, std::numeric_limits<int>::max(), std::numeric_limits<int>::min()}).validate(),
      Code::invalid_argument, "cu_seqlens_q[2] is -2147483648");
}

TEST(PackedBatch, RefusesHalfPagedBatches) {
  Batch batch = Batch::packed({0, 3});
  batch.block_table = {1};
  expect_error(batch.validate(), Code::invalid_argument, "page_size is 0");
}

TEST(PagedBatch, PadsTheBlockTable) {
  const std::vector<Ints> tables{{7, 3}, {}, {5}};
  const auto batch = Batch::paged({0, 1, 1, 3}, {5, 0, 4}, 4, tables);
  ASSERT_TRUE(batch) << batch.status().message();
  EXPECT_TRUE(batch->is_paged());
  EXPECT_EQ(batch->block_table_stride, 2);
  EXPECT_THAT(batch->block_table, ElementsAre(7, 3, -1, -1, 5, -1));
  EXPECT_EQ(batch->total_k(), 9);
  EXPECT_EQ(batch->kv_len(0), 5);
}

TEST(PagedBatch, AcceptsEveryPageSizeAndNoOther) {
  for (int size = 1; size <= 256; size *= 2)
    EXPECT_TRUE(Batch::paged({0, 1}, {1}, size, std::vector<Ints>{{0}})) << size;
  for (const int size : {-16, 0, 3, 12, 257, 512, std::numeric_limits<int>::min()})
    expect_error(Batch::paged({0, 1}, {1}, size, std::vector<Ints>{{0}}).status(), Code::invalid_argument,
                 "page_size " + std::to_string(size) + ": must be a power of two from 1 to 256");
}

TEST(PagedBatch, RefusesLengthsBeyondTheTable) {
  EXPECT_TRUE(Batch::paged({0, 1}, {32}, 16, std::vector<Ints>{{4, 2}}));
  expect_error(Batch::paged({0, 1}, {33}, 16, std::vector<Ints>{{4, 2}}).status(), Code::out_of_range,
               "kv_lens[0] is 33: its block table of 2 pages of 16 tokens holds 32");
  // Another sequence's longer row lends nothing.
  expect_error(Batch::paged({0, 1, 2}, {40, 17}, 16, std::vector<Ints>{{4, 2, 9}, {1}}).status(),
               Code::out_of_range, "kv_lens[1] is 17: its block table of 1 pages");
  expect_error(Batch::paged({0, 1}, {-1}, 16, std::vector<Ints>{{4}}).status(), Code::invalid_argument,
               "kv_lens[0] is -1");
}

TEST(PagedBatch, RefusesCountsThatDiffer) {
  expect_error(Batch::paged({0, 1}, {1, 2}, 16, std::vector<Ints>{{4}}).status(), Code::invalid_argument,
               "kv_lens has 2 entries: must be 1");
  expect_error(Batch::paged({0, 1}, {1}, 16, std::vector<Ints>{{4}, {5}}).status(), Code::invalid_argument,
               "block_tables has 2 rows: must be 1");
  expect_error(Batch::paged({2, 3}, {1}, 16, std::vector<Ints>{{4}}).status(), Code::invalid_argument,
               "cu_seqlens_q[0] is 2");
}

TEST(PagedBatch, ValidatesWhatWasFilledByHand) {
  Batch batch = Batch::paged({0, 1, 2}, {5, 4}, 4, std::vector<Ints>{{7, 3}, {5}}).value();
  ASSERT_TRUE(batch.validate().is_ok());
  Batch broken = batch;
  broken.block_table_stride = std::numeric_limits<std::int64_t>::max();
  expect_error(broken.validate(), Code::invalid_argument, "block_table has 4 entries");
  broken = batch;
  broken.block_table.pop_back();
  expect_error(broken.validate(), Code::invalid_argument,
               "block_table has 3 entries: must be 2 sequences of block_table_stride = 2");
  broken = batch;
  broken.cu_seqlens_k = {0, 5, 9};
  expect_error(broken.validate(), Code::invalid_argument, "cu_seqlens_k has 3 entries: must be empty");
  broken = batch;
  broken.kv_lens[1] = 9;
  expect_error(broken.validate(), Code::out_of_range, "kv_lens[1] is 9");
}

TEST(IndptrBatch, EqualsThePagedForm) {
  const Ints indices{7, 3, 5, 9, 8};
  const Ints indptr{0, 2, 2, 5}, last{1, 0, 4};
  const auto batch = Batch::paged_from_indptr({0, 1, 1, 3}, indptr, indices, last, 4);
  ASSERT_TRUE(batch) << batch.status().message();
  EXPECT_THAT(batch->kv_lens, ElementsAre(5, 0, 12));
  EXPECT_THAT(batch->block_table, ElementsAre(7, 3, -1, -1, -1, -1, 5, 9, 8));
}

TEST(IndptrBatch, RefusesBadLastPages) {
  const Ints indices{7, 3}, indptr{0, 2};
  const auto with_last = [&](std::int32_t last) {
    return Batch::paged_from_indptr({0, 1}, indptr, indices, Ints{last}, 4).status();
  };
  EXPECT_TRUE(with_last(1).is_ok());
  EXPECT_TRUE(with_last(4).is_ok());
  for (const std::int32_t last : {0, 5, -1})
    expect_error(with_last(last), Code::invalid_argument,
                 "kv_last_page_len[0] is " + std::to_string(last) + ": must be from 1 to page_size = 4");
  expect_error(Batch::paged_from_indptr({0, 1}, Ints{0, 0}, indices, Ints{1}, 4).status(),
               Code::invalid_argument, "must be 0 for a sequence without pages");
}

TEST(IndptrBatch, RefusesBadIndptr) {
  const Ints indices{7, 3};
  expect_error(Batch::paged_from_indptr({0, 1}, Ints{0, 3}, indices, Ints{1}, 4).status(), Code::out_of_range,
               "kv_indptr[1] is 3: kv_indices has 2 entries");
  expect_error(Batch::paged_from_indptr({0, 1}, Ints{1, 2}, indices, Ints{1}, 4).status(),
               Code::invalid_argument, "kv_indptr[0] is 1");
  expect_error(Batch::paged_from_indptr({0, 1, 2}, Ints{0, 2, 1}, indices, Ints{1, 1}, 4).status(),
               Code::invalid_argument, "kv_indptr[2] is 1");
  expect_error(Batch::paged_from_indptr({0, 1}, Ints{0, 1}, indices, Ints{}, 4).status(),
               Code::invalid_argument, "kv_last_page_len has 0 entries");
  expect_error(Batch::paged_from_indptr({0, 1}, Ints{0, 1, 2}, indices, Ints{1}, 4).status(),
               Code::invalid_argument, "kv_indptr has 2 sequences");
}

TEST(IndptrBatch, RefusesLengthsBeyond32Bits) {
  const Ints indices(1 << 23, 0);
  const Ints indptr{0, 1 << 23};
  EXPECT_TRUE(Batch::paged_from_indptr({0, 1}, indptr, indices, Ints{255}, 256));
  expect_error(Batch::paged_from_indptr({0, 1}, indptr, indices, Ints{256}, 256).status(), Code::out_of_range,
               "sequence 0 has 2147483648 tokens");
}

}  // namespace
}  // namespace chorale
