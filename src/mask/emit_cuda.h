// Emission: a mask and a score as CUDA source, and their tables as the device reads them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mask/program.h"

namespace chorale {

// What the emitted code is right for. Positions of a sequence span less than 2^30 on a device, so that most
// programs need no more than 32-bit integers.
inline constexpr std::int64_t cuda_positions = std::int64_t{1} << 30, cuda_sequences = 1 << 20,
                              cuda_heads = 1 << 20;
inline constexpr std::size_t cuda_tables = 8;          // kernels/params.h's max_tables
inline constexpr std::size_t cuda_instructions = 512;  // of a program: kernels inline it many times

// ok, or which of these limits a mask or a score passes.
Status check_cuda_programs(const Program& mask, const Program& score);

// The functions that kernels/params.h names. The text depends on the instructions and the types
// of the tables, not on their values or sizes: a kernel serves every batch. Tables are numbered: the mask's,
// then the score's.
std::string emit_cuda(const Program& mask, const Program& score);

// What TableView::extremes points to for a table of integers: for each row a binary tree of (least, most),
// whose leaves are groups of 8 values and whose node n covers nodes 2n and 2n + 1. Node 0 is not used.
std::vector<std::int32_t> table_tree(const Table& table);
// How the device sees a table: one of rank 1 is one row.
inline std::int64_t device_rows(const Table& table) { return table.rank() == 1 ? 1 : table.rows(); }
inline std::int64_t device_columns(const Table& table) {
  return table.rank() == 1 ? table.rows() : table.columns();
}

}  // namespace chorale
