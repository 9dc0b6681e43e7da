// The limits of this machine, measured: what the product instructions and the memory give with nothing else
// to do.
#pragma once

#include <cstdint>

namespace chorale::bench {

// At least so many operations of the instruction that products of bfloat16 (or float32) problems use here,
// shared among `threads` threads, operands in registers.
void multiply(bool bfloat16, double operations, int threads);
// The best of five: operations a second.
double peak_flops(bool bfloat16, int threads);
// The loop of AMX's, for a simd::DotScope of that level: four products of whole tiles on registers a step.
// Returns the operations.
double amx_products(std::int64_t steps);
// Reads so many bytes of memory that no cache holds, each call others than the one before. One at a time.
void read_memory(std::int64_t bytes, int threads);
// The best of five: bytes a second.
double peak_bandwidth(int threads);
// Reads each page of keys and of values once, in the table's order.
void read_pages(const float* keys, const float* values, std::int64_t page_floats,
                const std::int32_t* block_table, std::int64_t pages, int threads);

}  // namespace chorale::bench
