// parallel_for: the only place where threads are made.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace chorale {

// CHORALE_NUM_THREADS, else the number of cores this process may use.
int default_threads();

// Calls body(index, worker) once for each index of [0, count), on at most `threads` threads (0:
// default_threads()), handing out indices in ascending order as threads become free. worker is in [0,
// threads). Returns when all calls have; the first exception is rethrown then. Calls from inside a body run
// on the calling thread alone. May be called from several threads at once.
void parallel_for(std::int64_t count, int threads,
                  const std::function<void(std::int64_t index, int worker)>& body);

// What each worker of a parallel_for has for itself, made by the worker that first asks.
template <class T>
class PerWorker {
 public:
  explicit PerWorker(int threads) : all_(static_cast<std::size_t>(threads)) {}
  // `worker`'s, which one thread has at a time; made of `arguments` if it is not there yet.
  template <class... Arguments>
  T& at(int worker, Arguments&&... arguments) {
    std::optional<T>& mine = all_[static_cast<std::size_t>(worker)];
    if (!mine) mine.emplace(std::forward<Arguments>(arguments)...);
    return *mine;
  }

 private:
  std::vector<std::optional<T>> all_;
};

}  // namespace chorale
