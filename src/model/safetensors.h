// safetensors files: 8 bytes of header length, a JSON header of names, types, shapes and offsets, and the
// tensors' bytes. (https://github.com/huggingface/safetensors)
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/files.h"
#include "chorale/status.h"
#include "model/model.h"

namespace chorale {

// A file whose header has been checked whole: every tensor's bytes lie inside the file, fit its shape, and
// the tensors cover the data without overlap or hole. Memory-mapped; cheap to copy.
class SafetensorsFile {
 public:
  struct Entry {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::size_t begin, end;  // bytes, from the start of the data
  };

  static Result<SafetensorsFile> open(const std::string& path);
  const std::string& path() const { return path_; }
  const std::map<std::string, Entry>& entries() const { return entries_; }
  // The tensor's elements as float32; `to` must have as many.
  void read(const Entry& entry, std::span<float> to) const;

 private:
  std::string path_;
  MappedFile file_;
  std::size_t data_ = 0;  // where the data starts
  std::map<std::string, Entry> entries_;
};

// Writes the tensors beside `path`, stored as `dtype`; commit() of the result puts the file in place.
Result<AtomicFile> stage_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                                     DType dtype);

}  // namespace chorale
