#include "base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "base/settings.h"

#if defined(__SANITIZE_THREAD__)
// libgomp is not instrumented, so ThreadSanitizer cannot see that a parallel region starts after what came
// before it and ends before what comes after. These two say so; the region itself is not instrumented, what
// it calls is.
extern "C" {
void __tsan_acquire(void* address);  // NOLINT(bugprone-reserved-identifier): the sanitizer's own names
void __tsan_release(void* address);  // NOLINT(bugprone-reserved-identifier)
}
static void happens_after_release(void* address) { __tsan_acquire(address); }
static void release(void* address) { __tsan_release(address); }
#define CHORALE_NO_TSAN __attribute__((no_sanitize("thread"), noinline))
#else
static void happens_after_release(void*) {}
static void release(void*) {}
#define CHORALE_NO_TSAN
#endif

namespace chorale {
namespace {

struct Work {
  const std::function<void(std::int64_t, int)>* body;
  std::int64_t count;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::atomic<bool> failed{false};
};

void run_worker(Work& work, int worker) {
  happens_after_release(&work);
  for (;;) {
    const std::int64_t index = work.next.fetch_add(1);
    if (index >= work.count || work.failed.load()) break;
    try {
      (*work.body)(index, worker);
    } catch (...) {
      if (!work.failed.exchange(true)) work.error = std::current_exception();
    }
  }
  release(&work.next);
}

CHORALE_NO_TSAN void run_team(Work& work, int threads) {
#pragma omp parallel num_threads(threads)
  run_worker(work, omp_get_thread_num());
}

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

}  // namespace

int default_threads() {
  const int asked = read_settings().threads;
  return asked > 0 ? asked : available_cores();
}

void parallel_for(std::int64_t count, int threads, const std::function<void(std::int64_t, int)>& body) {
  if (threads <= 0) threads = default_threads();
  if (threads <= 1 || count <= 1 || omp_in_parallel()) {
    for (std::int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
  // Always all threads, even for fewer indices: libgomp ends threads that a smaller team leaves over, and
  // making them again costs more than waking them.
  Work work{.body = &body, .count = count, .error = nullptr};
  release(&work);
  run_team(work, threads);
  happens_after_release(&work.next);
  if (work.error) std::rethrow_exception(work.error);
}

}  // namespace chorale
