// parallel_for: the only place where threads are made.
#pragma once

#include <cstdint>
#include <functional>

namespace chorale {

// CHORALE_NUM_THREADS, else the number of cores this process may use.
int default_threads();

// Calls body(index, worker) once for each index of [0, count), on at most `threads` threads (0:
// default_threads()), handing out indices in ascending order as threads become free. worker is in [0,
// threads). Returns when all calls have; the first exception is rethrown then. Calls from inside a body run
// on the calling thread alone. May be called from several threads at once.
void parallel_for(std::int64_t count, int threads,
                  const std::function<void(std::int64_t index, int worker)>& body);

}  // namespace chorale
