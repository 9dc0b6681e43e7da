// RunFolder: the output folder of a run and what lies where in it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "chorale/status.h"
#include "trainer/atomic_folder.h"

namespace chorale {

//     model/                 the trained model, once the run is done
//     report.html            beside it
//     history.json           the same numbers for programs
//     checkpoint-000120/     while it is not done: where to go on, after 120 steps
class RunFolder {
 public:
  // Makes the folder if it is not there, checks that it can be written to, and holds it: a second process
  // that opens it is refused until this object is gone.
  static Result<RunFolder> open(const std::string& path);
  RunFolder(RunFolder&&) noexcept;
  RunFolder& operator=(RunFolder&&) = delete;
  ~RunFolder();

  const std::string& path() const { return path_; }
  std::string model() const { return path_ + "/model"; }
  std::string report() const { return path_ + "/report.html"; }
  std::string history() const { return path_ + "/history.json"; }

  // The newest checkpoint's path, if there is any.
  std::optional<std::string> checkpoint() const;
  // Where to write the checkpoint of a number of steps; there is none until it is committed.
  Result<AtomicFolder> start_checkpoint(std::int64_t steps) const;
  // Removes all checkpoints except the newest `keep`.
  Status prune_checkpoints(int keep) const;

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
  int lock_ = -1;
};

}  // namespace chorale
