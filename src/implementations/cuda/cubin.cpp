#include "implementations/cuda/cubin.h"

#include <elf.h>

#include <charconv>
#include <cstring>

namespace chorale::cuda {
namespace {

// The number that stands before `words`, as in "168 registers".
int number_before(std::string_view text, std::string_view words) {
  const std::size_t end = text.find(words);
  if (end == std::string_view::npos || end == 0) return 0;
  std::size_t last = end;
  while (last > 0 && text[last - 1] == ' ') --last;
  std::size_t first = last;
  while (first > 0 && text[first - 1] >= '0' && text[first - 1] <= '9') --first;
  int value = 0;
  std::from_chars(text.data() + first, text.data() + last, value);
  return value;
}

// A T at an offset, if it lies in the file.
template <class T>
std::optional<T> read_at(std::string_view file, std::uint64_t offset) {
  if (offset > file.size() || file.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}
std::string_view string_at(std::string_view file, std::uint64_t offset) {
  if (offset >= file.size()) return {};
  const std::string_view rest = file.substr(offset);
  return rest.substr(0, rest.find('\0'));
}

class Elf {
 public:
  explicit Elf(std::string_view file) : file_(file) {
    const auto header = read_at<Elf64_Ehdr>(file, 0);
    if (header && std::memcmp(header->e_ident, ELFMAG, SELFMAG) == 0) header_ = *header;
  }
  std::optional<Elf64_Shdr> section(std::uint64_t index) const {
    if (index >= header_.e_shnum) return std::nullopt;
    return read_at<Elf64_Shdr>(file_, header_.e_shoff + index * sizeof(Elf64_Shdr));
  }
  std::optional<Elf64_Sym> symbol(std::string_view name) const {
    for (std::uint64_t s = 0; s < header_.e_shnum; ++s) {
      const auto table = section(s);
      if (!table || table->sh_type != SHT_SYMTAB) continue;
      const auto names = section(table->sh_link);
      if (!names) continue;
      for (std::uint64_t at = 0; at + sizeof(Elf64_Sym) <= table->sh_size; at += sizeof(Elf64_Sym)) {
        const auto symbol = read_at<Elf64_Sym>(file_, table->sh_offset + at);
        if (symbol && string_at(file_, names->sh_offset + symbol->st_name) == name) return symbol;
      }
    }
    return std::nullopt;
  }

 private:
  std::string_view file_;
  Elf64_Ehdr header_{};
};

}  // namespace

// ptxas info    : Compiling entry function 'chorale_forward' for 'sm_90a'
// ptxas info    : Function properties for chorale_forward
//     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
// ptxas info    : Used 168 registers, used 1 barriers, 16 bytes smem
std::optional<Resources> read_resources(std::string_view log, std::string_view entry) {
  const std::string heading = "entry function '" + std::string(entry) + "'";
  const std::size_t start = log.find(heading);
  if (start == std::string_view::npos) return std::nullopt;
  std::string_view report = log.substr(start + heading.size());
  report = report.substr(0, report.find("entry function '"));
  const std::size_t used = report.find("Used ");
  if (used == std::string_view::npos) return std::nullopt;
  // Functions that are not inlined are reported too; the entry's own properties come first.
  Resources resources;
  resources.stack_bytes = number_before(report, "bytes stack frame");
  resources.spill_stores = number_before(report, "bytes spill stores");
  resources.spill_loads = number_before(report, "bytes spill loads");
  resources.registers = number_before(report.substr(used), "registers");
  resources.shared_bytes = number_before(report.substr(used, report.find('\n', used) - used), "bytes smem");
  return resources;
}

std::optional<int> read_constant(std::string_view cubin, std::string_view name) {
  const Elf elf(cubin);
  const auto symbol = elf.symbol(name);
  if (!symbol || symbol->st_size != sizeof(int)) return std::nullopt;
  const auto section = elf.section(symbol->st_shndx);
  if (!section) return std::nullopt;
  if (section->sh_type == SHT_NOBITS) return 0;
  return read_at<int>(cubin, section->sh_offset + symbol->st_value);
}

}  // namespace chorale::cuda
