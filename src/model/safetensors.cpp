#include "model/safetensors.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "model/json.h"
#include "simd/simd.h"

namespace chorale {
namespace {

using nlohmann::json;
using Entry = SafetensorsFile::Entry;

constexpr std::size_t length_bytes = 8, largest_header = 100'000'000;
constexpr std::int64_t chunk = 4096;  // elements converted at a time, through an aligned buffer

struct StoredType {
  const char* name;
  DType dtype;
};
constexpr std::array stored_types{StoredType{"F32", DType::float32}, StoredType{"BF16", DType::bfloat16},
                                  StoredType{"F16", DType::float16}};

std::string printed(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() <= 60 ? text : text.substr(0, 57) + "...";
}

Result<std::size_t> header_length(std::span<const std::byte> bytes) {
  if (bytes.size() < length_bytes)
    return Status::corrupt_data(fmt::format("has {} bytes: a header needs at least 8", bytes.size()));
  std::uint64_t length = 0;
  for (std::size_t i = length_bytes; i-- > 0;)
    length = length << 8 | std::to_integer<std::uint64_t>(bytes[i]);
  const std::size_t limit = std::min(bytes.size() - length_bytes, largest_header);
  if (length > limit)
    return Status::corrupt_data(fmt::format("header length {}: must be at most {}", length, limit));
  return static_cast<std::size_t>(length);
}

Result<DType> read_dtype(const json& tensor) {
  const auto found = tensor.find("dtype");
  if (found == tensor.end()) return Status::corrupt_data("dtype is missing");
  for (const StoredType& stored : stored_types)
    if (*found == stored.name) return stored.dtype;
  return Status::unsupported(fmt::format("dtype {}: must be \"F32\", \"BF16\" or \"F16\"", printed(*found)));
}

Result<std::vector<std::int64_t>> read_integers(const json& tensor, const char* key) {
  const auto found = tensor.find(key);
  if (found == tensor.end()) return Status::corrupt_data(fmt::format("{} is missing", key));
  if (!found->is_array())
    return Status::corrupt_data(fmt::format("{} {}: must be an array", key, printed(*found)));
  std::vector<std::int64_t> values;
  for (const json& value : *found) {
    if (!value.is_number_integer() || value < 0 || value > std::numeric_limits<std::int64_t>::max())
      return Status::corrupt_data(
          fmt::format("{} {}: must hold integers from 0 to 2^63 - 1", key, printed(*found)));
    values.push_back(value.get<std::int64_t>());
  }
  return values;
}

Result<std::size_t> bytes_of(DType dtype, std::span<const std::int64_t> shape) {
  std::size_t bytes = size_of(dtype);
  for (const std::int64_t size : shape)
    if (__builtin_mul_overflow(bytes, static_cast<std::size_t>(size), &bytes))
      return Status::corrupt_data(
          fmt::format("shape [{}]: has more than 2^64 bytes", fmt::join(shape, ", ")));
  return bytes;
}

Result<Entry> read_entry(const json& tensor, std::size_t data_bytes) {
  if (!tensor.is_object()) return Status::corrupt_data(fmt::format("{}: must be an object", printed(tensor)));
  for (const auto& [key, value] : tensor.items())
    if (key != "dtype" && key != "shape" && key != "data_offsets")
      return Status::corrupt_data(fmt::format("unknown key '{}'", key));
  CHORALE_ASSIGN_OR_RETURN(const DType dtype, read_dtype(tensor));
  CHORALE_ASSIGN_OR_RETURN(std::vector<std::int64_t> shape, read_integers(tensor, "shape"));
  CHORALE_ASSIGN_OR_RETURN(const std::vector<std::int64_t> offsets, read_integers(tensor, "data_offsets"));
  CHORALE_ASSIGN_OR_RETURN(const std::size_t bytes, bytes_of(dtype, shape));
  const std::string place = fmt::format("data_offsets [{}]", fmt::join(offsets, ", "));
  if (offsets.size() != 2 || offsets[0] > offsets[1])
    return Status::corrupt_data(place + ": must be a begin and an end that is not below it");
  const auto begin = static_cast<std::size_t>(offsets[0]), end = static_cast<std::size_t>(offsets[1]);
  if (end > data_bytes)
    return Status::corrupt_data(fmt::format("{}: the file has {} bytes of data", place, data_bytes));
  if (end - begin != bytes)
    return Status::corrupt_data(fmt::format("{}: shape [{}] of {} needs {} bytes", place,
                                            fmt::join(shape, ", "), name(dtype), bytes));
  return Entry{dtype, std::move(shape), begin, end};
}

// The tensors must follow each other from the first byte of the data to the last.
Status check_cover(const std::map<std::string, Entry>& entries, std::size_t data_bytes) {
  std::vector<std::pair<const Entry*, const std::string*>> order;
  for (const auto& [tensor, entry] : entries) order.emplace_back(&entry, &tensor);
  std::sort(order.begin(), order.end(), [](const auto& x, const auto& y) {
    return std::pair(x.first->begin, x.first->end) < std::pair(y.first->begin, y.first->end);
  });
  std::size_t covered = 0;
  for (const auto& [entry, tensor] : order) {
    if (entry->begin < covered)
      return Status::corrupt_data(
          fmt::format("tensor '{}' begins at byte {} of the data, before its predecessor's end {}", *tensor,
                      entry->begin, covered));
    if (entry->begin > covered)
      return Status::corrupt_data(
          fmt::format("bytes {} to {} of the data, before tensor '{}', belong to no tensor", covered,
                      entry->begin, *tensor));
    covered = entry->end;
  }
  if (covered != data_bytes)
    return Status::corrupt_data(
        fmt::format("bytes {} to {} at the end of the data belong to no tensor", covered, data_bytes));
  return Status::ok();
}

Result<std::map<std::string, Entry>> read_entries(const json& header, std::size_t data_bytes) {
  if (!header.is_object()) return Status::corrupt_data("the header must be a JSON object");
  std::map<std::string, Entry> entries;
  for (const auto& [tensor, description] : header.items()) {
    if (tensor == "__metadata__") continue;
    Result<Entry> entry = read_entry(description, data_bytes);
    if (!entry) return entry.status().with_context(fmt::format("tensor '{}'", tensor));
    entries.emplace(tensor, std::move(*entry));
  }
  CHORALE_RETURN_IF_ERROR(check_cover(entries, data_bytes));
  return entries;
}

std::string make_header(std::span<const NamedTensor> tensors, DType dtype) {
  const auto stored = std::find_if(stored_types.begin(), stored_types.end(),
                                   [&](const StoredType& type) { return type.dtype == dtype; });
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};  // Transformers refuses files without it
  std::size_t offset = 0;
  for (const NamedTensor& tensor : tensors) {
    const TensorView& view = tensor.value.view();
    const std::size_t bytes = static_cast<std::size_t>(view.elements()) * size_of(dtype);
    header[tensor.name] = {{"dtype", stored->name},
                           {"shape", std::vector(view.shape.begin(), view.shape.begin() + view.rank)},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data is aligned
  return text;
}

Status write_converted(AtomicFile& file, const NamedTensor& tensor, DType dtype) {
  const std::span<const float> values = tensor.value.as<float>();
  alignas(64) std::array<float, chunk> converted;
  for (std::size_t first = 0; first < values.size(); first += chunk) {
    const std::span part = values.subspan(first, std::min<std::size_t>(chunk, values.size() - first));
    if (dtype == DType::float16)
      for (const float value : part)
        if (std::isfinite(value) && std::abs(value) >= 65520.0f)  // what rounds to infinity
          return Status::out_of_range(fmt::format("{} holds {}: float16 ends at 65504", tensor.name, value));
    simd::from_float(part.data(), dtype, converted.data(), std::ssize(part));
    CHORALE_RETURN_IF_ERROR(file.write(converted.data(), part.size() * size_of(dtype)));
  }
  return Status::ok();
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  result.path_ = path;
  CHORALE_ASSIGN_OR_RETURN(result.file_, MappedFile::open(path));
  const std::span<const std::byte> bytes = result.file_.bytes();
  const Result<std::size_t> length = header_length(bytes);
  if (!length) return length.status().with_context(path);
  result.data_ = length_bytes + *length;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + length_bytes, *length);
  CHORALE_ASSIGN_OR_RETURN(const json header, parse_json(text, path + " (header)"));
  auto entries = read_entries(header, bytes.size() - result.data_);
  if (!entries) return entries.status().with_context(path);
  result.entries_ = std::move(*entries);
  return result;
}

void SafetensorsFile::read(const Entry& entry, std::span<float> to) const {
  alignas(64) std::array<std::byte, chunk * sizeof(float)> aligned;  // the file's own bytes may lie anywhere
  const std::byte* from = file_.bytes().data() + data_ + entry.begin;
  for (std::size_t first = 0; first < to.size(); first += chunk) {
    const std::size_t count = std::min<std::size_t>(chunk, to.size() - first);
    std::memcpy(aligned.data(), from + first * size_of(entry.dtype), count * size_of(entry.dtype));
    simd::to_float(aligned.data(), entry.dtype, to.data() + first, static_cast<std::int64_t>(count));
  }
}

Result<AtomicFile> stage_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                                     DType dtype) {
  CHORALE_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  const std::string header = make_header(tensors, dtype);
  std::array<std::uint8_t, length_bytes> length;
  for (std::size_t i = 0; i < length_bytes; ++i)
    length[i] = static_cast<std::uint8_t>(std::uint64_t{header.size()} >> (8 * i));
  CHORALE_RETURN_IF_ERROR(file.write(length.data(), length.size()));
  CHORALE_RETURN_IF_ERROR(file.write(header.data(), header.size()));
  for (const NamedTensor& tensor : tensors) CHORALE_RETURN_IF_ERROR(write_converted(file, tensor, dtype));
  return file;
}

}  // namespace chorale
