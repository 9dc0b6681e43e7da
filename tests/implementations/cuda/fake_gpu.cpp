#include "implementations/cuda/fake_gpu.h"

#include <elf.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "implementations/cuda/driver.h"
#include "kernels/cache_params.h"

namespace chorale::testing {
namespace {

constexpr int ok = 0, invalid_value = 1, out_of_memory = 2, capture_unsupported = 900, block_count = 3,
              shared_bytes = 227 * 1024;

constexpr std::size_t memory_bytes = std::size_t{1} << 30;

std::recursive_mutex mutex;  // of everything here
FakeLaunch launch_function;
std::vector<std::string>& sources() {
  static auto& all = *new std::vector<std::string>;
  return all;
}

using Action = std::function<FakeLaunchEnd()>;
struct Step {
  Action action;
  std::function<bool()> may_begin = nullptr;  // null: always
};
struct FakeStream {
  unsigned long long id = 0;
  unsigned long long capture = 0;  // its number; 0: none
  std::vector<Action> captured = {};
  std::deque<Step> queue = {};  // not begun
  FakeLaunchEnd end = nullptr;  // of the launch that is under way
};
struct FakeEvent {
  int recorded = 0, done = 0;  // the last record counts
  bool is_done() const { return recorded == done; }
  std::chrono::steady_clock::time_point time;
};
struct FakeModule {
  std::string source;
};
struct FakeFunction {
  std::string entry, source;
};
// Modules and functions are the context's, which is never destroyed. Under `mutex`.
template <class T>
T& kept(T made) {
  static auto& all = *new std::deque<T>;
  return all.emplace_back(std::move(made));
}
FakeStream default_stream{.id = 1};
unsigned long long next_stream = 2, next_capture = 1;
std::vector<FakeStream*> streams{&default_stream};
std::map<cuda::DevicePointer, std::size_t> allocations;
thread_local int capture_mode = 0;  // global
thread_local int captures = 0;      // that the thread has begun

FakeStream& at(cuda::Stream stream) {
  return stream == nullptr ? default_stream : *reinterpret_cast<FakeStream*>(stream);
}
void step(FakeStream& stream) {
  if (const FakeLaunchEnd end = std::exchange(stream.end, nullptr)) end();
  if (stream.queue.empty()) return;
  const Step next = stream.queue.front();
  if (next.may_begin != nullptr && !next.may_begin()) return;
  stream.queue.pop_front();
  stream.end = next.action();
}
template <class F>
void step_until(F&& done) {
  while (!done())
    for (FakeStream* stream : streams) step(*stream);
}
void finish(const FakeStream& stream) {
  step_until([&] { return stream.queue.empty() && stream.end == nullptr; });
}
void finish() {
  for (const FakeStream* stream : streams) finish(*stream);
}
int act(cuda::Stream stream, Action action) {
  const std::lock_guard lock(mutex);
  if (at(stream).capture != 0)
    at(stream).captured.push_back(std::move(action));
  else
    at(stream).queue.push_back({std::move(action)});
  return ok;
}
template <class F>
int move_bytes(cuda::Stream stream, F&& move) {
  return act(stream, [=] { return move(), FakeLaunchEnd(); });
}
// What a thread that captures may do only after it has asked for it.
bool is_forbidden() { return captures > 0 && capture_mode != cuda::driver_constants::capture_relaxed; }

// An ELF file whose data are three numbers: how to launch the entry, and which source it was.
std::string make_cubin(const std::string& entry, int source) {
  const std::string names[] = {entry + "_threads", entry + "_smem", "source"};
  std::string strings(1, '\0');
  std::vector<Elf64_Sym> symbols(1);
  for (std::size_t i = 0; i < 3; ++i) {
    Elf64_Sym symbol{};
    symbol.st_name = static_cast<Elf64_Word>(strings.size());
    symbol.st_shndx = 1;
    symbol.st_value = 4 * i;
    symbol.st_size = 4;
    symbols.push_back(symbol);
    strings += names[i] + '\0';
  }
  const int data[] = {128, 1024, source};
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  Elf64_Shdr sections[4] = {};
  const std::size_t symbol_bytes = symbols.size() * sizeof(Elf64_Sym);
  sections[1].sh_type = SHT_PROGBITS;
  sections[1].sh_offset = sizeof header;
  sections[1].sh_size = sizeof data;
  sections[2].sh_type = SHT_SYMTAB;
  sections[2].sh_link = 3;
  sections[2].sh_offset = sections[1].sh_offset + sizeof data;
  sections[2].sh_size = symbol_bytes;
  sections[3].sh_type = SHT_STRTAB;
  sections[3].sh_offset = sections[2].sh_offset + symbol_bytes;
  sections[3].sh_size = strings.size();
  header.e_shnum = 4;
  header.e_shoff = sections[3].sh_offset + strings.size();
  std::string file(reinterpret_cast<const char*>(&header), sizeof header);
  file.append(reinterpret_cast<const char*>(data), sizeof data);
  file.append(reinterpret_cast<const char*>(symbols.data()), symbol_bytes);
  file += strings;
  file.append(reinterpret_cast<const char*>(sections), sizeof sections);
  return file;
}

struct FakeProgram {
  std::string source, cubin;
};

}  // namespace

void set_fake_launch(FakeLaunch launch) { launch_function = std::move(launch); }
const void* fake_memory_of(const void* address) {
  const auto at = reinterpret_cast<cuda::DevicePointer>(address);
  const std::lock_guard lock(mutex);
  const auto after = allocations.upper_bound(at);
  if (after == allocations.begin()) return nullptr;
  const auto [first, bytes] = *std::prev(after);
  return at < first + bytes ? reinterpret_cast<const void*>(first) : nullptr;
}

}  // namespace chorale::testing

using namespace chorale;
using namespace chorale::testing;

extern "C" {

int cuGetErrorName(int, const char** name) { return *name = "FAKE_ERROR", ok; }
int cuGetErrorString(int, const char** words) { return *words = "what the fake GPU does not take", ok; }
int cuInit(unsigned) { return ok; }
int cuDriverGetVersion(int* version) { return *version = 13000, ok; }
int cuDeviceGetCount(int* count) { return *count = 1, ok; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ok; }
int cuDeviceGetName(char* name, int size, int) {
  return std::strncpy(name, "Fake Hopper", static_cast<std::size_t>(size)), ok;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  using namespace cuda::driver_constants;
  *value = attribute == compute_major     ? 9
           : attribute == compute_minor   ? 0
           : attribute == multiprocessors ? block_count
                                          : shared_bytes;
  return ok;
}
int cuDeviceTotalMem_v2(std::size_t* bytes, int) { return *bytes = memory_bytes, ok; }
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = nullptr, ok; }
int cuCtxPushCurrent_v2(void*) { return ok; }
int cuCtxPopCurrent_v2(void** context) { return *context = nullptr, ok; }

int cuModuleLoadData(FakeModule** module, const char* image) {
  int source = 0;
  std::memcpy(&source, image + sizeof(Elf64_Ehdr) + 8, sizeof source);
  const std::lock_guard lock(mutex);
  return *module = &kept<FakeModule>({sources()[static_cast<std::size_t>(source)]}), ok;
}
int cuModuleGetFunction(FakeFunction** function, FakeModule* module, const char* name) {
  const std::lock_guard lock(mutex);
  return *function = &kept<FakeFunction>({name, module->source}), ok;
}
int cuFuncSetAttribute(void*, int, int value) { return value <= shared_bytes ? ok : invalid_value; }
int cuLaunchKernelEx(const cuda::LaunchConfig* config, FakeFunction* function, void** parameters, void**) {
  if (config->block[0] != 128 || config->shared_bytes != 1024) return invalid_value;
  // As the driver does, the argument is copied now.
  const std::size_t size = function->entry == "chorale_store"        ? sizeof(kernels::StoreParams)
                           : function->entry == "chorale_copy_pages" ? sizeof(kernels::CopyPagesParams)
                           : function->entry == "chorale_widen"      ? sizeof(kernels::WidenParams)
                                                                     : sizeof(kernels::ForwardParams);
  std::vector<std::byte> argument(size);
  std::memcpy(argument.data(), parameters[0], size);
  const int blocks = static_cast<int>(config->grid[0]);
  std::this_thread::sleep_for(std::chrono::microseconds(100));  // so that threads meet
  return act(config->stream,
             [=] { return launch_function(function->entry, function->source, blocks, argument.data()); });
}

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) { return *free = *total = memory_bytes, ok; }
int cuMemAlloc_v2(cuda::DevicePointer* address, std::size_t bytes) {
  if (is_forbidden()) return capture_unsupported;
  if (bytes > memory_bytes) return out_of_memory;
  void* memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(memory, 0xCD, bytes);
  const std::lock_guard lock(mutex);
  allocations[*address = reinterpret_cast<cuda::DevicePointer>(memory)] = bytes;
  return ok;
}
int cuMemFree_v2(cuda::DevicePointer address) {
  if (is_forbidden()) return capture_unsupported;
  const std::lock_guard lock(mutex);
  finish();
  std::memset(reinterpret_cast<void*>(address), 0xCD, allocations.at(address));
  allocations.erase(address);
  return std::free(reinterpret_cast<void*>(address)), ok;
}
int cuMemHostAlloc(void** memory, std::size_t bytes, unsigned) {
  if (is_forbidden()) return capture_unsupported;
  return *memory = std::malloc(bytes), ok;
}
int cuMemFreeHost(void* memory) {
  if (is_forbidden()) return capture_unsupported;
  return std::free(memory), ok;
}
int cuMemcpyHtoDAsync_v2(cuda::DevicePointer to, const void* from, std::size_t bytes, cuda::Stream stream) {
  return move_bytes(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, cuda::DevicePointer from, std::size_t bytes, cuda::Stream stream) {
  return move_bytes(stream, [=] { std::memcpy(to, reinterpret_cast<const void*>(from), bytes); });
}
int cuMemcpyDtoDAsync_v2(cuda::DevicePointer to, cuda::DevicePointer from, std::size_t bytes,
                         cuda::Stream stream) {
  return move_bytes(
      stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes); });
}
int cuMemsetD8Async(cuda::DevicePointer to, unsigned char value, std::size_t bytes, cuda::Stream stream) {
  return move_bytes(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
}

int cuStreamCreate(FakeStream** stream, unsigned) {
  const std::lock_guard lock(mutex);
  streams.push_back(*stream = new FakeStream{.id = next_stream++});
  return ok;
}
int cuStreamDestroy_v2(FakeStream* stream) {
  const std::lock_guard lock(mutex);
  finish(*stream);
  std::erase(streams, stream);
  return delete stream, ok;
}
int cuStreamGetId(cuda::Stream stream, unsigned long long* id) {
  const std::lock_guard lock(mutex);
  if (at(stream).capture != 0) return capture_unsupported;  // as the driver does (CUDA 13.0)
  return *id = at(stream).id, ok;
}
int cuStreamGetCaptureInfo_v2(cuda::Stream stream, int* status, unsigned long long* id, void*, void*, void*) {
  const std::lock_guard lock(mutex);
  *status = at(stream).capture != 0;
  if (id != nullptr && *status != 0) *id = at(stream).capture;
  return ok;
}
int cuThreadExchangeStreamCaptureMode(int* mode) { return std::swap(*mode, capture_mode), ok; }
int cuStreamWaitEvent(cuda::Stream stream, FakeEvent* event, unsigned) {
  const std::lock_guard lock(mutex);
  if (at(stream).capture != 0) return invalid_value;
  at(stream).queue.push_back(
      {[] { return nullptr; }, [=, number = event->recorded] { return event->done >= number; }});
  return ok;
}
int cuStreamSynchronize(cuda::Stream stream) {
  const std::lock_guard lock(mutex);
  if (at(stream).capture != 0) return invalid_value;
  return finish(at(stream)), ok;
}
int cuEventCreate(FakeEvent** event, unsigned) { return *event = new FakeEvent, ok; }
int cuEventDestroy_v2(FakeEvent* event) {
  const std::lock_guard lock(mutex);
  finish();  // the streams may still mark it
  return delete event, ok;
}
int cuEventRecord(FakeEvent* event, cuda::Stream stream) {
  const std::lock_guard lock(mutex);
  if (at(stream).capture != 0) return invalid_value;
  return move_bytes(stream, [=, number = ++event->recorded] {
    event->done = number;
    event->time = std::chrono::steady_clock::now();
  });
}
int cuEventQuery(FakeEvent* event) {
  const std::lock_guard lock(mutex);
  return is_forbidden()     ? capture_unsupported
         : event->is_done() ? ok
                            : cuda::driver_constants::error_not_ready;
}
int cuEventSynchronize(FakeEvent* event) {
  const std::lock_guard lock(mutex);
  if (is_forbidden()) return capture_unsupported;
  step_until([&] { return event->is_done(); });
  return ok;
}
int cuEventElapsedTime(float* milliseconds, const FakeEvent* start, const FakeEvent* end) {
  return *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count(), ok;
}
int cuStreamBeginCapture_v2(cuda::Stream stream, int) {
  const std::lock_guard lock(mutex);
  if (capture_mode != 0) return invalid_value;  // somebody has not put it back
  ++captures;
  return at(stream).capture = next_capture++, ok;
}
int cuStreamEndCapture(cuda::Stream stream, std::vector<Action>** graph) {
  const std::lock_guard lock(mutex);
  --captures;
  at(stream).capture = 0;
  return *graph = new std::vector<Action>(std::exchange(at(stream).captured, {})), ok;
}
int cuGraphInstantiateWithFlags(std::vector<Action>** replay, std::vector<Action>* graph,
                                unsigned long long) {
  return *replay = new std::vector<Action>(*graph), ok;
}
int cuGraphLaunch(std::vector<Action>* replay, cuda::Stream stream) {
  const std::lock_guard lock(mutex);
  for (const Action& action : *replay) at(stream).queue.push_back({action});
  return ok;
}
int cuGraphDestroy(std::vector<Action>* graph) { return delete graph, ok; }
int cuGraphExecDestroy(std::vector<Action>* replay) { return delete replay, ok; }

// The rules of the driver's documentation.
int cuTensorMapEncodeTiled(void* map, int type, std::uint32_t rank, void* address, const std::uint64_t* sizes,
                           const std::uint64_t* strides, const std::uint32_t* box, const std::uint32_t* steps,
                           int, int swizzle, int, int) {
  FakeTensorMap fake{static_cast<const std::byte*>(address), {}, {}, {}, rank,
                     static_cast<std::uint32_t>(type)};
  const std::uint64_t element = type == cuda::driver_constants::tensor_uint8 ? 1 : 2;
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(map) % 64 == 0 && reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
  bool right = rank >= 3 && rank <= 5 && aligned && swizzle == 3 && box[0] * element <= 128;
  fake.strides[0] = element;
  for (std::uint32_t i = 0; i < rank && right; ++i) {
    fake.sizes[i] = sizes[i];
    fake.box[i] = box[i];
    if (i > 0) fake.strides[i] = strides[i - 1];
    right = sizes[i] > 0 && sizes[i] <= std::uint64_t{1} << 32 && box[i] > 0 && box[i] <= 256 &&
            steps[i] == 1 &&
            (i == 0 ||
             (strides[i - 1] % 16 == 0 && strides[i - 1] > 0 && strides[i - 1] < std::uint64_t{1} << 40));
  }
  static_assert(sizeof fake <= 128);
  std::memcpy(map, &fake, sizeof fake);
  return right ? ok : invalid_value;
}

int nvrtcVersion(int* major, int* minor) { return *major = 0, *minor = 1, ok; }
const char* nvrtcGetErrorString(int) { return "FAKE_ERROR"; }
int nvrtcCreateProgram(FakeProgram** program, const char* source, const char*, int, const char* const*,
                       const char* const*) {
  return *program = new FakeProgram{source, ""}, ok;
}
int nvrtcDestroyProgram(FakeProgram** program) { return delete *program, ok; }
int nvrtcCompileProgram(FakeProgram* program, int, const char* const*) {
  // The last line includes the kernel: "#include "forward.cu"".
  const std::size_t end = program->source.rfind(".cu"), begin = program->source.rfind('"', end) + 1;
  const std::lock_guard lock(mutex);
  sources().push_back(program->source);
  program->cubin = make_cubin("chorale_" + program->source.substr(begin, end - begin),
                              static_cast<int>(sources().size()) - 1);
  return ok;
}
int nvrtcGetProgramLogSize(FakeProgram*, std::size_t* size) { return *size = 1, ok; }
int nvrtcGetProgramLog(FakeProgram*, char* log) { return *log = 0, ok; }
int nvrtcGetCUBINSize(FakeProgram* program, std::size_t* size) { return *size = program->cubin.size(), ok; }
int nvrtcGetCUBIN(FakeProgram* program, char* cubin) { return std::ranges::copy(program->cubin, cubin), ok; }

}  // extern "C"
