#include "implementations/cuda/nvrtc.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/settings.h"
#include "implementations/cuda/shared_library.h"

namespace chorale::cuda {
namespace {

namespace fs = std::filesystem;
using Program = void*;  // nvrtcProgram
constexpr int success = 0;

constexpr const char* library_names[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

void add_folder(std::vector<std::string>& candidates, const fs::path& folder) {
  std::error_code ignored;
  for (const char* name : library_names)
    if (const fs::path path = folder / name; fs::exists(path, ignored)) candidates.push_back(path.string());
}

// What lies in `folder` and whose name begins like this, the last in the alphabet first.
std::vector<fs::path> entries_named(const fs::path& folder, std::string_view beginning) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator i(folder, error), end; !error && i != end; i.increment(error))
    if (i->path().filename().string().starts_with(beginning)) found.push_back(i->path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

// Where pip puts NVIDIA's packages.
void add_python(std::vector<std::string>& candidates, const fs::path& environment) {
  for (const fs::path& python : entries_named(environment / "lib", "python"))
    for (const fs::path& package : entries_named(python / "site-packages" / "nvidia", ""))
      add_folder(candidates, package / "lib");
}

std::vector<std::string> candidates() {
  const Settings settings = read_settings();
  if (settings.nvrtc) {
    std::error_code ignored;
    if (!fs::is_directory(*settings.nvrtc, ignored)) return {*settings.nvrtc};
    std::vector<std::string> given;
    add_folder(given, *settings.nvrtc);
    if (given.empty()) given.push_back(*settings.nvrtc + "/" + library_names[0]);
    return given;
  }
  std::vector<std::string> all(std::begin(library_names), std::end(library_names));
  if (settings.cuda_home) add_folder(all, fs::path(*settings.cuda_home) / "lib64");
  add_folder(all, "/usr/local/cuda/lib64");
  for (const fs::path& toolkit : entries_named("/usr/local", "cuda-")) add_folder(all, toolkit / "lib64");
  if (settings.virtual_env) add_python(all, *settings.virtual_env);
  // `make extras` puts it into .extras/venv of the checkout that the program was built in.
  std::error_code error;
  for (fs::path folder = fs::read_symlink("/proc/self/exe", error); !error && folder.has_relative_path();) {
    folder = folder.parent_path();
    add_python(all, folder / ".extras" / "venv");
  }
  return all;
}

// NVRTC opens a second library by its name alone, which the loader finds where it is loaded already.
void load_builtins(const fs::path& library) {
  for (const fs::path& builtins : entries_named(library.parent_path(), "libnvrtc-builtins.so."))
    ::dlopen(builtins.c_str(), RTLD_NOW | RTLD_GLOBAL);
}

}  // namespace

struct Nvrtc::Functions {
  SharedLibrary library;
  int (*version)(int* major, int* minor) = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*create)(Program*, const char* source, const char* name, int headers,
                const char* const* header_sources, const char* const* header_names) = nullptr;
  int (*destroy)(Program*) = nullptr;
  int (*compile)(Program, int options, const char* const*) = nullptr;
  int (*log_size)(Program, std::size_t*) = nullptr;
  int (*log)(Program, char*) = nullptr;
  int (*cubin_size)(Program, std::size_t*) = nullptr;
  int (*cubin)(Program, char*) = nullptr;

  Status find() {
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcVersion", version));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcGetErrorString", error_string));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcCreateProgram", create));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcDestroyProgram", destroy));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcCompileProgram", compile));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcGetProgramLogSize", log_size));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcGetProgramLog", log));
    CHORALE_RETURN_IF_ERROR(library.find("nvrtcGetCUBINSize", cubin_size));
    return library.find("nvrtcGetCUBIN", cubin);
  }
};

Result<Nvrtc> Nvrtc::open() {
  CHORALE_ASSIGN_OR_RETURN(SharedLibrary library,
                           SharedLibrary::open("NVRTC (CUDA's compiler)", candidates()));
  if (library.path().find('/') != std::string::npos) load_builtins(library.path());
  auto functions = std::make_unique<Functions>();
  functions->library = std::move(library);
  CHORALE_RETURN_IF_ERROR(functions->find());
  Nvrtc nvrtc;
  nvrtc.path_ = functions->library.path();
  functions->version(&nvrtc.major_, &nvrtc.minor_);
  nvrtc.functions_ = functions.release();  // for the process's life, as the library
  return nvrtc;
}

Result<const Nvrtc*> Nvrtc::get() {
  static const Result<Nvrtc> opened = open();
  if (!opened) return opened.status();
  return opened.operator->();
}

std::string Nvrtc::version() const { return fmt::format("{}.{}", major_, minor_); }

Result<Compilation> Nvrtc::compile(const std::string& name, const std::string& source,
                                   std::span<const KernelFile> headers,
                                   std::span<const std::string> options) const {
  const Functions& f = *functions_;
  std::vector<std::string> strings;  // of headers: name, text
  for (const KernelFile& header : headers) {
    strings.emplace_back(header.name);
    strings.emplace_back(header.text);
  }
  std::vector<const char*> names, texts, arguments;
  for (std::size_t i = 0; i < strings.size(); i += 2) {
    names.push_back(strings[i].c_str());
    texts.push_back(strings[i + 1].c_str());
  }
  for (const std::string& option : options) arguments.push_back(option.c_str());

  const auto start = std::chrono::steady_clock::now();
  Program program = nullptr;
  const auto failed = [&](int code, std::string_view what) {
    return Status::internal(fmt::format("{}: NVRTC {} {}: {}", name, version(), what, f.error_string(code)));
  };
  if (const int code = f.create(&program, source.c_str(), name.c_str(), static_cast<int>(names.size()),
                                texts.data(), names.data());
      code != success)
    return failed(code, "refused the source");
  const auto destroy = [&f](Program* p) { f.destroy(p); };
  const std::unique_ptr<Program, decltype(destroy)> owner(&program, destroy);

  const int code = f.compile(program, static_cast<int>(arguments.size()), arguments.data());
  Compilation result;
  std::size_t size = 0;
  if (f.log_size(program, &size) == success && size > 1) {
    result.log.resize(size);
    if (f.log(program, result.log.data()) != success) result.log.clear();
    result.log.resize(std::min(result.log.size(), size - 1));  // without its final zero
  }
  if (code != success) {
    const Status failure = failed(code, "could not compile it");
    return Status(failure.code(), failure.message() + "\n" + result.log);
  }
  if (const int got = f.cubin_size(program, &size); got != success) return failed(got, "has no cubin");
  result.cubin.resize(size);
  if (const int got = f.cubin(program, result.cubin.data()); got != success)
    return failed(got, "has no cubin");
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace chorale::cuda
