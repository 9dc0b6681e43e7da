#include "implementations/cuda/gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "implementations/cuda/cubin.h"

namespace chorale::cuda {

Result<std::unique_ptr<Gpu>> Gpu::open(int ordinal) {
  CHORALE_ASSIGN_OR_RETURN(const Driver* d, cuda::driver());
  int count = 0;
  CHORALE_RETURN_IF_ERROR(d->check(d->device_count(&count), "counting the GPUs"));
  if (ordinal < 0 || ordinal >= count)
    return Status::not_found(
        fmt::format("cuda:{}: this machine has {} GPU{}", ordinal, count, count == 1 ? "" : "s"));
  std::unique_ptr<Gpu> gpu(new Gpu);
  gpu->driver_ = d;
  gpu->ordinal_ = ordinal;
  int device = 0;
  char name[256] = {};
  CHORALE_RETURN_IF_ERROR(d->check(d->device(&device, ordinal), "opening the GPU"));
  CHORALE_RETURN_IF_ERROR(d->check(d->device_name(name, sizeof name - 1, device), "reading the GPU's name"));
  gpu->name_ = name;
  for (const auto& [value, attribute] : {std::pair(&gpu->major_, driver_constants::compute_major),
                                         {&gpu->minor_, driver_constants::compute_minor},
                                         {&gpu->multiprocessors_, driver_constants::multiprocessors},
                                         {&gpu->shared_bytes_, driver_constants::shared_bytes_of_a_block}})
    CHORALE_RETURN_IF_ERROR(
        d->check(d->device_attribute(value, attribute, device), "reading the GPU's attributes"));
  CHORALE_RETURN_IF_ERROR(d->check(d->device_memory(&gpu->memory_, device), "reading the GPU's memory size"));
  CHORALE_RETURN_IF_ERROR(d->check(d->primary_context(&gpu->context_, device), "using the GPU"));
  return gpu;
}

Result<Gpu*> Gpu::get(int ordinal) {
  static std::mutex mutex;
  static auto& cards =
      *new std::map<int, std::unique_ptr<Gpu>>;  // never destroyed: the driver may be gone by then
  const std::lock_guard lock(mutex);
  if (const auto found = cards.find(ordinal); found != cards.end()) return found->second.get();
  CHORALE_ASSIGN_OR_RETURN(std::unique_ptr<Gpu> gpu, open(ordinal));
  return (cards[ordinal] = std::move(gpu)).get();
}

std::string Gpu::arch() const { return fmt::format("sm_{}{}{}", major_, minor_, major_ >= 9 ? "a" : ""); }

std::string Gpu::describe() const {
  return fmt::format("cuda:{} ({}, sm_{}{}, {} multiprocessors, {:.0f} GB)", ordinal_, name_, major_, minor_,
                     multiprocessors_, static_cast<double>(memory_) / 1e9);
}

Result<Kernel> Gpu::load(const KernelKey& key) const {
  CHORALE_ASSIGN_OR_RETURN(const CompiledKernel compiled,
                           compile_kernel(key, arch(), KernelCache(KernelCache::default_folder())));
  Kernel kernel{key, nullptr, {}, compiled.cache_note};
  CHORALE_ASSIGN_OR_RETURN(kernel.shape, launch_shape(key, compiled));
  if (kernel.shape.shared_bytes > shared_bytes_)
    return Status::unsupported(fmt::format("{}: needs {} bytes of shared memory: {} has {}", key.describe(),
                                           kernel.shape.shared_bytes, name_, shared_bytes_));
  const Scope scope(*this);
  Module module = nullptr;
  CHORALE_RETURN_IF_ERROR(driver_->check(driver_->load_module(&module, compiled.cubin.data()),
                                         fmt::format("loading {}", key.describe())));
  CHORALE_RETURN_IF_ERROR(driver_->check(driver_->function(&kernel.function, module, key.entry().c_str()),
                                         fmt::format("finding {}", key.entry())));
  CHORALE_RETURN_IF_ERROR(driver_->check(
      driver_->set_function_attribute(kernel.function, driver_constants::function_max_dynamic_shared,
                                      kernel.shape.shared_bytes),
      fmt::format("giving {} its shared memory", key.describe())));
  return kernel;
}

Result<const Kernel*> Gpu::kernel(const KernelKey& key) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(kernels_.begin(), kernels_.end(), [&](const auto& k) { return k->key == key; });
  if (found != kernels_.end()) return found->get();
  CHORALE_ASSIGN_OR_RETURN(Kernel kernel, load(key));
  kernels_.push_back(std::make_unique<Kernel>(std::move(kernel)));
  return kernels_.back().get();
}

Status Gpu::launch(const Kernel& kernel, int blocks, const void* parameters, Stream stream) const {
  LaunchAttribute attributes[2] = {};
  LaunchConfig config{{static_cast<unsigned>(blocks / kernel.shape.cluster * kernel.shape.cluster), 1, 1},
                      {static_cast<unsigned>(kernel.shape.threads), 1, 1},
                      static_cast<unsigned>(kernel.shape.shared_bytes),
                      stream,
                      attributes,
                      0};
  if (kernel.shape.overlaps) {
    LaunchAttribute& overlap = attributes[config.attribute_count++];
    overlap.id = driver_constants::attribute_programmatic_serialization;
    overlap.value.programmatic_stream_serialization = 1;
  }
  if (kernel.shape.cluster > 1) {
    LaunchAttribute& cluster = attributes[config.attribute_count++];
    cluster.id = driver_constants::attribute_cluster;
    cluster.value.cluster[0] = static_cast<unsigned>(kernel.shape.cluster);
    cluster.value.cluster[1] = cluster.value.cluster[2] = 1;
  }
  void* arguments[] = {const_cast<void*>(parameters)};
  return driver_->check(driver_->launch(&config, kernel.function, arguments, nullptr),
                        fmt::format("launching {}", kernel.key.describe()));
}

}  // namespace chorale::cuda
