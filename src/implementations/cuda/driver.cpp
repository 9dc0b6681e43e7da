#include "implementations/cuda/driver.h"

#include <fmt/format.h>

#include "implementations/cuda/shared_library.h"

namespace chorale::cuda {
namespace {

constexpr int out_of_memory = 2;

Result<Driver> open_driver() {
  const std::string names[] = {"libcuda.so.1"};
  CHORALE_ASSIGN_OR_RETURN(const SharedLibrary library, SharedLibrary::open("the NVIDIA driver", names));
  Driver d{};
  Status status;
  const auto find = [&](const char* name, auto*& function) {
    if (status.is_ok()) status = library.find(name, function);
  };
  find("cuGetErrorName", d.error_name);
  find("cuGetErrorString", d.error_string);
  find("cuInit", d.init);
  find("cuDriverGetVersion", d.version);
  find("cuDeviceGetCount", d.device_count);
  find("cuDeviceGet", d.device);
  find("cuDeviceGetName", d.device_name);
  find("cuDeviceGetAttribute", d.device_attribute);
  find("cuDeviceTotalMem_v2", d.device_memory);
  find("cuDevicePrimaryCtxRetain", d.primary_context);
  find("cuCtxPushCurrent_v2", d.push_context);
  find("cuCtxPopCurrent_v2", d.pop_context);
  find("cuModuleLoadData", d.load_module);
  find("cuModuleGetFunction", d.function);
  find("cuFuncSetAttribute", d.set_function_attribute);
  find("cuLaunchKernelEx", d.launch);
  find("cuMemGetInfo_v2", d.free_memory);
  find("cuMemAlloc_v2", d.allocate);
  find("cuMemFree_v2", d.free);
  find("cuMemHostAlloc", d.allocate_host);
  find("cuMemFreeHost", d.free_host);
  find("cuMemcpyHtoDAsync_v2", d.copy_to_device);
  find("cuMemcpyDtoHAsync_v2", d.copy_to_host);
  find("cuMemcpyDtoDAsync_v2", d.copy_on_device);
  find("cuMemsetD8Async", d.fill_bytes);
  find("cuStreamCreate", d.create_stream);
  find("cuStreamDestroy_v2", d.destroy_stream);
  find("cuStreamGetId", d.stream_id);
  find("cuStreamGetCaptureInfo_v2", d.stream_capture);
  find("cuThreadExchangeStreamCaptureMode", d.exchange_capture_mode);
  find("cuStreamWaitEvent", d.stream_wait_event);
  find("cuStreamSynchronize", d.synchronize_stream);
  find("cuEventCreate", d.create_event);
  find("cuEventDestroy_v2", d.destroy_event);
  find("cuEventRecord", d.record_event);
  find("cuEventQuery", d.query_event);
  find("cuEventSynchronize", d.synchronize_event);
  find("cuEventElapsedTime", d.event_milliseconds);
  find("cuStreamBeginCapture_v2", d.begin_capture);
  find("cuStreamEndCapture", d.end_capture);
  find("cuGraphInstantiateWithFlags", d.instantiate_graph);
  find("cuGraphLaunch", d.launch_graph);
  find("cuGraphDestroy", d.destroy_graph);
  find("cuGraphExecDestroy", d.destroy_graph_exec);
  find("cuTensorMapEncodeTiled", d.encode_tensor_map);
  CHORALE_RETURN_IF_ERROR(status);
  // Nothing is null: each was found. NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage)
  CHORALE_RETURN_IF_ERROR(d.check(d.init(0), "starting the NVIDIA driver"));
  return d;
}

}  // namespace

Status Driver::check(int code, std::string_view what) const {
  if (code == 0) return Status::ok();
  const char *name = "unknown", *words = "no description";
  error_name(code, &name);
  error_string(code, &words);
  return Status(code == out_of_memory ? Code::resource_exhausted : Code::internal,
                fmt::format("{}: {} ({})", what, words, name));
}

Result<const Driver*> driver() {
  static const Result<Driver> opened = open_driver();
  if (!opened) return opened.status();
  return opened.operator->();
}

}  // namespace chorale::cuda
