#include "chorale/batch.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>

#include "kv/page_size.h"

namespace chorale {
namespace {

constexpr std::int64_t max_length = std::numeric_limits<std::int32_t>::max();

// Cumulative offsets: from 0, never descending. Empty stands for {0}.
Status check_offsets(std::string_view name, std::span<const std::int32_t> offsets) {
  if (offsets.empty()) return Status::ok();
  if (offsets[0] != 0)
    return Status::invalid_argument(fmt::format("{}[0] is {}: must be 0", name, offsets[0]));
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1])
      return Status::invalid_argument(fmt::format("{}[{}] is {}: must be at least {}, the entry before it",
                                                  name, i, offsets[i], offsets[i - 1]));
  }
  return Status::ok();
}

std::size_t intervals(std::span<const std::int32_t> offsets) {
  return offsets.empty() ? 0 : offsets.size() - 1;
}

Status check_count(std::string_view name, std::size_t count, std::string_view unit, std::size_t sequences) {
  if (count == sequences) return Status::ok();
  return Status::invalid_argument(fmt::format(
      "{} has {} {}: must be {}, one for each sequence of cu_seqlens_q", name, count, unit, sequences));
}

// A sequence's tokens must fit the pages of its row.
Status check_room(std::size_t sequence, std::int64_t kv_len, std::int64_t pages, int page_size) {
  if (kv_len < 0)
    return Status::invalid_argument(fmt::format("kv_lens[{}] is {}: must not be negative", sequence, kv_len));
  if (kv_len > pages * page_size)
    return Status::out_of_range(
        fmt::format("kv_lens[{}] is {}: its block table of {} pages of {} tokens holds {}", sequence, kv_len,
                    pages, page_size, pages * page_size));
  return Status::ok();
}

// Row-major [rows, longest row]. Places without a page hold -1, which no pool has.
void set_block_table(Batch& batch, std::span<const std::span<const std::int32_t>> rows) {
  batch.block_table_stride = 0;
  for (const auto& row : rows)
    batch.block_table_stride = std::max<std::int64_t>(batch.block_table_stride, std::ssize(row));
  batch.block_table.assign(rows.size() * static_cast<std::size_t>(batch.block_table_stride), -1);
  for (std::size_t i = 0; i < rows.size(); ++i)
    std::ranges::copy(rows[i],
                      batch.block_table.begin() + static_cast<std::int64_t>(i) * batch.block_table_stride);
}

Status validate_packed(const Batch& batch) {
  if (!batch.kv_lens.empty() || !batch.block_table.empty() || batch.block_table_stride != 0)
    return Status::invalid_argument(
        "page_size is 0 (packed keys), but kv_lens or a block table is given: set page_size");
  CHORALE_RETURN_IF_ERROR(
      check_count("cu_seqlens_k", intervals(batch.cu_seqlens_k), "sequences", intervals(batch.cu_seqlens_q)));
  return check_offsets("cu_seqlens_k", batch.cu_seqlens_k);
}

Status validate_paged(const Batch& batch) {
  CHORALE_RETURN_IF_ERROR(check_page_size(batch.page_size));
  if (!batch.cu_seqlens_k.empty())
    return Status::invalid_argument(
        fmt::format("cu_seqlens_k has {} entries: must be empty for paged keys, whose lengths are kv_lens",
                    batch.cu_seqlens_k.size()));
  const std::size_t sequences = intervals(batch.cu_seqlens_q);
  CHORALE_RETURN_IF_ERROR(check_count("kv_lens", batch.kv_lens.size(), "entries", sequences));
  // Division, so that no stride can overflow.
  const auto entries = static_cast<std::int64_t>(batch.block_table.size());
  const auto rows = static_cast<std::int64_t>(sequences);
  const std::int64_t stride = batch.block_table_stride;
  if (stride < 0 || (rows == 0 ? entries != 0 : entries % rows != 0 || entries / rows != stride))
    return Status::invalid_argument(
        fmt::format("block_table has {} entries: must be {} sequences of block_table_stride = {} pages",
                    entries, rows, stride));
  const std::int64_t most = stride * batch.page_size;
  for (std::size_t i = 0; i < sequences; ++i)
    if (const std::int64_t length = batch.kv_lens[i]; length < 0 || length > most)
      return check_room(i, length, stride, batch.page_size);
  return Status::ok();
}

}  // namespace

Batch Batch::packed(std::vector<std::int32_t> cu_seqlens) {
  Batch batch;
  batch.cu_seqlens_k = cu_seqlens;
  batch.cu_seqlens_q = std::move(cu_seqlens);
  return batch;
}

Batch Batch::packed(std::vector<std::int32_t> cu_seqlens_q, std::vector<std::int32_t> cu_seqlens_k) {
  Batch batch;
  batch.cu_seqlens_q = std::move(cu_seqlens_q);
  batch.cu_seqlens_k = std::move(cu_seqlens_k);
  return batch;
}

Result<Batch> Batch::paged(std::vector<std::int32_t> cu_seqlens_q, std::vector<std::int32_t> kv_lens,
                           int page_size, std::span<const std::vector<std::int32_t>> block_tables) {
  CHORALE_RETURN_IF_ERROR(check_page_size(page_size));
  const std::size_t sequences = intervals(cu_seqlens_q);
  CHORALE_RETURN_IF_ERROR(check_count("kv_lens", kv_lens.size(), "entries", sequences));
  CHORALE_RETURN_IF_ERROR(check_count("block_tables", block_tables.size(), "rows", sequences));
  // Each row by its own length, before padding makes them equal.
  for (std::size_t i = 0; i < sequences; ++i)
    CHORALE_RETURN_IF_ERROR(check_room(i, kv_lens[i], std::ssize(block_tables[i]), page_size));

  Batch batch;
  batch.cu_seqlens_q = std::move(cu_seqlens_q);
  batch.kv_lens = std::move(kv_lens);
  batch.page_size = page_size;
  set_block_table(batch,
                  std::vector<std::span<const std::int32_t>>(block_tables.begin(), block_tables.end()));
  CHORALE_RETURN_IF_ERROR(batch.validate());
  return batch;
}

Result<Batch> Batch::paged_from_indptr(std::vector<std::int32_t> qo_indptr,
                                       std::span<const std::int32_t> kv_indptr,
                                       std::span<const std::int32_t> kv_indices,
                                       std::span<const std::int32_t> kv_last_page_len, int page_size) {
  CHORALE_RETURN_IF_ERROR(check_page_size(page_size));
  CHORALE_RETURN_IF_ERROR(check_offsets("qo_indptr", qo_indptr));
  CHORALE_RETURN_IF_ERROR(check_offsets("kv_indptr", kv_indptr));
  const std::size_t sequences = intervals(qo_indptr);
  CHORALE_RETURN_IF_ERROR(check_count("kv_indptr", intervals(kv_indptr), "sequences", sequences));
  CHORALE_RETURN_IF_ERROR(check_count("kv_last_page_len", kv_last_page_len.size(), "entries", sequences));
  if (sequences > 0 && kv_indptr.back() > std::ssize(kv_indices))
    return Status::out_of_range(fmt::format("kv_indptr[{}] is {}: kv_indices has {} entries", sequences,
                                            kv_indptr.back(), kv_indices.size()));
  Batch batch;
  batch.page_size = page_size;
  std::vector<std::span<const std::int32_t>> rows;
  for (std::size_t i = 0; i < sequences; ++i) {
    rows.push_back(kv_indices.subspan(static_cast<std::size_t>(kv_indptr[i]),
                                      static_cast<std::size_t>(kv_indptr[i + 1] - kv_indptr[i])));
    const std::int64_t pages = std::ssize(rows.back());
    const std::int32_t last = kv_last_page_len[i];
    if (pages == 0 && last != 0)
      return Status::invalid_argument(
          fmt::format("kv_last_page_len[{}] is {}: must be 0 for a sequence without pages", i, last));
    if (pages > 0 && (last < 1 || last > page_size))
      return Status::invalid_argument(
          fmt::format("kv_last_page_len[{}] is {}: must be from 1 to page_size = {}", i, last, page_size));
    const std::int64_t kv_len = pages == 0 ? 0 : (pages - 1) * page_size + last;
    if (kv_len > max_length)
      return Status::out_of_range(
          fmt::format("sequence {} has {} tokens: must be at most {}", i, kv_len, max_length));
    batch.kv_lens.push_back(static_cast<std::int32_t>(kv_len));
  }
  batch.cu_seqlens_q = std::move(qo_indptr);
  set_block_table(batch, rows);
  CHORALE_RETURN_IF_ERROR(batch.validate());
  return batch;
}

std::int64_t Batch::total_k() const {
  std::int64_t total = 0;
  for (int i = 0; i < sequences(); ++i) total += kv_len(i);
  return total;
}

Status Batch::validate() const {
  CHORALE_RETURN_IF_ERROR(check_offsets("cu_seqlens_q", cu_seqlens_q));
  return is_paged() ? validate_paged(*this) : validate_packed(*this);
}

}  // namespace chorale
