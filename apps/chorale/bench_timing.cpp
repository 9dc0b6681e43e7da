#include "bench_timing.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "implementations/cuda/staged_attention.h"

namespace chorale::app {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t least_samples = 5;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Timing summary(std::vector<double> samples) {
  std::ranges::sort(samples);
  const auto quantile = [&](double share) {
    return samples[static_cast<std::size_t>(share * static_cast<double>(samples.size() - 1))];
  };
  const double median = quantile(0.5);
  return {median, (quantile(0.75) - quantile(0.25)) / median};
}

Result<Timing> repeat(const std::function<Result<double>()>& sample, double seconds) {
  CHORALE_RETURN_IF_ERROR(sample().status());
  std::vector<double> samples;
  for (const auto start = Clock::now(); samples.size() < least_samples || seconds_since(start) < seconds;) {
    CHORALE_ASSIGN_OR_RETURN(const double taken, sample());
    samples.push_back(taken);
  }
  return summary(std::move(samples));
}

// A stream and two events, destroyed with this.
class Stopwatch {
 public:
  explicit Stopwatch(const cuda::Gpu& gpu) : gpu_(gpu), d_(gpu.driver()) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    const cuda::Gpu::Scope scope(gpu_);
    if (stream_ != nullptr) d_.destroy_stream(stream_);
    for (const cuda::Event event : {start_, end_})
      if (event != nullptr) d_.destroy_event(event);
  }

  Status prepare() {
    const cuda::Gpu::Scope scope(gpu_);
    CHORALE_RETURN_IF_ERROR(d_.check(d_.create_stream(&stream_, 1), "making a stream"));
    for (cuda::Event* event : {&start_, &end_})
      CHORALE_RETURN_IF_ERROR(d_.check(d_.create_event(event, 0), "making an event"));
    return Status::ok();
  }
  // Seconds of a step.
  Result<double> sample(const std::function<Status(cuda::Stream)>& step) const {
    constexpr int steps = 10;
    const cuda::Gpu::Scope scope(gpu_);
    CHORALE_RETURN_IF_ERROR(d_.check(d_.record_event(start_, stream_), "marking the start"));
    for (int i = 0; i < steps; ++i) CHORALE_RETURN_IF_ERROR(step(stream_));
    CHORALE_RETURN_IF_ERROR(d_.check(d_.record_event(end_, stream_), "marking the end"));
    CHORALE_RETURN_IF_ERROR(d_.check(d_.synchronize_event(end_), "running the kernel"));
    float milliseconds = 0;
    CHORALE_RETURN_IF_ERROR(d_.check(d_.event_milliseconds(&milliseconds, start_, end_), "reading the time"));
    return milliseconds * 1e-3 / steps;
  }

 private:
  const cuda::Gpu& gpu_;
  const cuda::Driver& d_;
  cuda::Stream stream_ = nullptr;
  cuda::Event start_ = nullptr, end_ = nullptr;
};

}  // namespace

Result<Timing> time_on_cpu(const std::function<Status()>& step, double seconds) {
  return repeat(
      [&]() -> Result<double> {
        const auto start = Clock::now();
        CHORALE_RETURN_IF_ERROR(step());
        return seconds_since(start);
      },
      seconds);
}

Result<Timing> time_on_gpu(const cuda::Gpu& gpu, const std::function<Status(cuda::Stream)>& step,
                           double seconds) {
  Stopwatch stopwatch(gpu);
  CHORALE_RETURN_IF_ERROR(stopwatch.prepare());
  return repeat([&] { return stopwatch.sample(step); }, seconds);
}

Result<double> copy_bandwidth(const cuda::Gpu& gpu, double seconds) {
  constexpr std::size_t bytes = std::size_t{256} << 20;  // more than a cache holds
  CHORALE_ASSIGN_OR_RETURN(const auto from, cuda::DeviceMemory::allocate(gpu, bytes));
  CHORALE_ASSIGN_OR_RETURN(const auto to, cuda::DeviceMemory::allocate(gpu, bytes));
  const cuda::Driver& d = gpu.driver();
  CHORALE_ASSIGN_OR_RETURN(const Timing copied,
                           time_on_gpu(
                               gpu,
                               [&](cuda::Stream stream) {
                                 return d.check(
                                     d.copy_on_device(to->address(), from->address(), bytes, stream),
                                     "copying on the GPU");
                               },
                               seconds));
  return 2.0 * static_cast<double>(bytes) / copied.seconds;
}

}  // namespace chorale::app
