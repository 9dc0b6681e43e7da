// Device: what runs, in words.
#include <fmt/format.h>
#include <fmt/ranges.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <array>
#include <charconv>
#include <cstring>
#include <string>
#include <vector>

#include "base/threads.h"
#include "chorale/implementation.h"
#include "implementations/cuda/gpu.h"

namespace chorale {
namespace {

#if defined(__x86_64__)
std::string processor_name() {
  constexpr unsigned first_leaf = 0x80000002, last_leaf = 0x80000004;
  if (__get_cpuid_max(0x80000000, nullptr) < last_leaf) return "x86-64";
  std::array<unsigned, 12> words{};
  for (unsigned leaf = first_leaf; leaf <= last_leaf; ++leaf) {
    unsigned* word = &words[(leaf - first_leaf) * 4];
    __get_cpuid(leaf, word, word + 1, word + 2, word + 3);
  }
  std::array<char, sizeof words + 1> text{};
  std::memcpy(text.data(), words.data(), sizeof words);
  std::string name = text.data();
  const auto begin = name.find_first_not_of(' ');
  return begin == std::string::npos ? "x86-64" : name.substr(begin, name.find_last_not_of(' ') - begin + 1);
}

std::vector<std::string_view> features() {
  std::vector<std::string_view> found;
  if (__builtin_cpu_supports("avx2")) found.push_back("AVX2");
  if (__builtin_cpu_supports("fma")) found.push_back("FMA");
  if (__builtin_cpu_supports("avx512f")) found.push_back("AVX-512");
  return found;
}
#else
std::string processor_name() { return "not x86-64"; }
std::vector<std::string_view> features() { return {}; }
#endif

}  // namespace

Result<Device> Device::parse(std::string_view text) {
  if (text == "cpu") return cpu();
  if (text == "cuda") return cuda();
  constexpr std::string_view prefix = "cuda:";
  int ordinal = 0;
  if (text.starts_with(prefix)) {
    const auto [end, error] =
        std::from_chars(text.data() + prefix.size(), text.data() + text.size(), ordinal);
    if (error == std::errc() && end == text.data() + text.size() && ordinal >= 0) return cuda(ordinal);
  }
  return Status::invalid_argument(fmt::format("device '{}': must be cpu, cuda or cuda:N", text));
}

std::string Device::describe() const {
  if (kind == Kind::cuda) {
    const auto gpu = cuda::Gpu::get(ordinal);
    return gpu ? (*gpu.operator->())->describe()
               : fmt::format("cuda:{} ({})", ordinal, gpu.status().message());
  }
  std::vector<std::string> facts{processor_name()};
  if (const auto found = features(); !found.empty())
    facts.push_back(fmt::format("{}", fmt::join(found, " ")));
  const int count = threads > 0 ? threads : default_threads();
  facts.push_back(fmt::format("{} thread{}", count, count == 1 ? "" : "s"));
  return fmt::format("cpu ({})", fmt::join(facts, ", "));
}

std::string_view name(Phase phase) {
  switch (phase) {
    case Phase::forward:
      return "forward";
    case Phase::backward:
      return "backward";
    case Phase::prefill:
      return "prefill";
    case Phase::decode:
      return "decode";
  }
  return "unknown";
}

}  // namespace chorale
