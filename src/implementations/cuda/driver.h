// The CUDA driver, opened when it is first asked for. Its types and constants are declared here, so that
// building needs no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chorale/status.h"

namespace chorale::cuda {

using DevicePointer = std::uint64_t;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using Stream = struct CUstream_st*;
using Event = struct CUevent_st*;
using Graph = struct CUgraph_st*;
using GraphExec = struct CUgraphExec_st*;

struct LaunchAttribute {  // CUlaunchAttribute
  int id;
  char pad[4];
  union {
    char bytes[64];
    int programmatic_stream_serialization;
    unsigned cluster[3];
  } value;
};
struct LaunchConfig {  // CUlaunchConfig
  unsigned grid[3], block[3];
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

// Values of the driver's enumerations.
namespace driver_constants {
inline constexpr int multiprocessors = 16, compute_major = 75, compute_minor = 76,
                     shared_bytes_of_a_block = 97;
inline constexpr int function_max_dynamic_shared = 8;
inline constexpr int event_disable_timing = 2;
inline constexpr int attribute_cluster = 4, attribute_programmatic_serialization = 6;
inline constexpr int tensor_uint8 = 0, tensor_float16 = 6, tensor_bfloat16 = 9;
inline constexpr int tensor_swizzle_128 = 3, tensor_promotion_l2_128 = 2;
inline constexpr int error_not_ready = 600;
inline constexpr int capture_none = 0, capture_active = 1;  // of a stream
inline constexpr int capture_thread_local = 1, capture_relaxed = 2;
inline constexpr int stream_non_blocking = 1;
}  // namespace driver_constants

struct Driver {
  int (*error_name)(int, const char**);
  int (*error_string)(int, const char**);
  int (*init)(unsigned);
  int (*version)(int*);
  int (*device_count)(int*);
  int (*device)(int* device, int ordinal);
  int (*device_name)(char*, int size, int device);
  int (*device_attribute)(int* value, int attribute, int device);
  int (*device_memory)(std::size_t*, int device);
  int (*primary_context)(Context*, int device);
  int (*push_context)(Context);
  int (*pop_context)(Context*);
  int (*load_module)(Module*, const void* image);
  int (*function)(Function*, Module, const char* name);
  int (*set_function_attribute)(Function, int attribute, int value);
  int (*launch)(const LaunchConfig*, Function, void** parameters, void** extra);
  int (*free_memory)(std::size_t* free, std::size_t* total);
  int (*allocate)(DevicePointer*, std::size_t bytes);
  int (*free)(DevicePointer);
  int (*allocate_host)(void**, std::size_t bytes, unsigned flags);
  int (*free_host)(void*);
  int (*copy_to_device)(DevicePointer, const void*, std::size_t, Stream);
  int (*copy_to_host)(void*, DevicePointer, std::size_t, Stream);
  int (*copy_on_device)(DevicePointer to, DevicePointer from, std::size_t, Stream);
  int (*fill_bytes)(DevicePointer, unsigned char, std::size_t, Stream);
  int (*create_stream)(Stream*, unsigned flags);
  int (*destroy_stream)(Stream);
  int (*stream_id)(Stream, unsigned long long*);
  int (*stream_capture)(Stream, int* status, unsigned long long* id, Graph*, const void* dependencies,
                        std::size_t* dependency_count);  // all but the status may be null
  int (*exchange_capture_mode)(int*);
  int (*stream_wait_event)(Stream, Event, unsigned flags);
  int (*synchronize_stream)(Stream);
  int (*create_event)(Event*, unsigned flags);
  int (*destroy_event)(Event);
  int (*record_event)(Event, Stream);
  int (*query_event)(Event);
  int (*synchronize_event)(Event);
  int (*event_milliseconds)(float*, Event, Event);
  int (*begin_capture)(Stream, int mode);
  int (*end_capture)(Stream, Graph*);
  int (*instantiate_graph)(GraphExec*, Graph, unsigned long long flags);
  int (*launch_graph)(GraphExec, Stream);
  int (*destroy_graph)(Graph);
  int (*destroy_graph_exec)(GraphExec);
  int (*encode_tensor_map)(void* map, int type, std::uint32_t rank, void* address, const std::uint64_t* sizes,
                           const std::uint64_t* strides, const std::uint32_t* box, const std::uint32_t* steps,
                           int interleave, int swizzle, int promotion, int fill);

  // ok, or the driver's own name and words for the code.
  Status check(int code, std::string_view what) const;
};

// Opens and initialises the driver once a process; the failure says why there is none.
Result<const Driver*> driver();

}  // namespace chorale::cuda
