// Implementation: one way to compute attention, and the registry of all of them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/batch.h"
#include "chorale/problem.h"
#include "chorale/status.h"
#include "chorale/tensor.h"

namespace chorale {

// What runs: the processor, of which `threads` may be used (that changes no bit), or one GPU.
struct Device {
  enum class Kind { cpu, cuda } kind = Kind::cpu;
  int threads = 0;  // 0: CHORALE_NUM_THREADS, else all cores
  int ordinal = 0;  // of the GPU, as the driver counts them
  static Device cpu(int threads = 0) { return {Kind::cpu, threads, 0}; }
  static Device cuda(int ordinal = 0) { return {Kind::cuda, 0, ordinal}; }
  static Result<Device> parse(std::string_view text);  // "cpu", "cuda", "cuda:1"
  std::string describe() const;  // "cpu (AMD EPYC, AVX2 FMA, 2 threads)", "cuda:0 (NVIDIA H200, ...)"
};

// What a role does with a layer. Trainers run forward and backward, a generator prefill and decode.
enum class Phase { forward, backward, prefill, decode };
std::string_view name(Phase phase);

// The order of arithmetic as named parts, in a fixed sequence: ("isa", "fp32-fma"), ("T", "64"), ... Equal
// fingerprints mean equal bits for equal inputs. The problem's own fields are not part of it.
struct Fingerprint {
  struct Part {
    std::string name, value;
    bool operator==(const Part&) const = default;
  };
  std::vector<Part> parts;
  bool operator==(const Fingerprint&) const = default;
  std::string to_string() const;  // "cpu/fp32-fma/T64/C1024/..."
  // "" if equal, else what differs: "tile is 64 here and 128 there".
  std::string difference(const Fingerprint& other, std::string_view here = "here",
                         std::string_view there = "there") const;
};

// One call's data. On a GPU all of it is device memory: TensorView::data is a device pointer, which the host
// never follows. Shapes with T = total query rows, S = total key rows:
struct ForwardTensors {
  TensorView q{};      // [T, query_heads, head_dim]
  TensorView k{};      // packed: [S, kv_heads, head_dim]; paged: [pages, page_size, kv_heads, head_dim]
  TensorView v{};      // the same with value_head_dim
  TensorView out{};    // [T, query_heads, value_head_dim], written; last dimension contiguous; may not alias
                       // the inputs
  TensorView lse{};    // [T, query_heads] float32, written; leave empty if not wanted
  TensorView sinks{};  // [query_heads] float32; given exactly if Problem::sinks
  TensorView k_scale{},
      v_scale{};  // [kv_heads] float32, finite and above 0; given exactly if Problem::has_kv_scales()
  void* stream =
      nullptr;  // a GPU's: the caller's CUstream, in whose order the work is done; null: the default one
};
struct BackwardTensors {
  TensorView q{}, k{}, v{}, out{}, lse{}, sinks{};  // as forward had and wrote them; lse is required
  TensorView grad_out{};                            // [T, query_heads, value_head_dim]
  TensorView grad_q{};                              // [T, query_heads, head_dim], written
  TensorView grad_k{};              // [S, kv_heads, head_dim], written: packed by sequence in either layout
  TensorView grad_v{};              // [S, kv_heads, value_head_dim], written
  TensorView grad_sinks{};          // [query_heads] float32, written; given exactly if Problem::sinks
  TensorView k_scale{}, v_scale{};  // as forward had them
};

// One step's work list, built once and used by every layer. Immutable; may be used by several threads and, on
// a GPU, in several streams at once.
class Plan {
 public:
  virtual ~Plan() = default;
  const Problem& problem() const { return problem_; }  // with this batch's tables bound
  const Batch& batch() const { return batch_; }
  std::string_view implementation() const { return implementation_; }

 protected:
  Plan(std::string_view implementation, Problem problem, Batch batch)
      : implementation_(implementation), problem_(std::move(problem)), batch_(std::move(batch)) {}
  void replace(Problem problem, Batch batch) {
    problem_ = std::move(problem);
    batch_ = std::move(batch);
  }

 private:
  std::string_view implementation_;
  Problem problem_;
  Batch batch_;
};

// Stateless; all functions may be called from several threads at once. forward and backward return when the
// outputs are written; on a GPU, when the work is in the caller's stream. On failure outputs are untouched.
class Implementation {
 public:
  virtual ~Implementation() = default;
  virtual std::string_view name() const = 0;
  // ok, or Code::unsupported with the reason: "head_dim 300: must be at most 256".
  virtual Status supports(const Problem& problem, const Device& device, Phase phase) const = 0;
  virtual Fingerprint fingerprint(const Problem& problem, const Device& device) const = 0;
  // Validates the batch against the problem (tables included) and cuts it into work.
  virtual Result<std::shared_ptr<const Plan>> plan(const Problem& problem, const Batch& batch,
                                                   const Device& device) const = 0;
  // Fails if the tensors do not fit the plan's batch: wrong shape or type, a page number outside the pool, a
  // plan of another implementation.
  virtual Status forward(const Plan& plan, const ForwardTensors& tensors) const = 0;
  virtual Status backward(const Plan& plan, const BackwardTensors& tensors) const = 0;
};

// A name that a user may write, and what can serve it on any machine, best first. `reason` says why the list
// is empty.
struct ImplementationName {
  std::string_view name;  // "flash_attention_3", ..., not "auto"
  std::vector<const Implementation*> servants;
  std::string_view reason;
  bool rollout_only = false;  // "flashinfer": the paged plan-and-run path
};
std::span<const ImplementationName>
implementation_names();  // in the order in which `auto` tries them, then the rest
const ImplementationName* find_implementation_name(std::string_view name);

}  // namespace chorale
