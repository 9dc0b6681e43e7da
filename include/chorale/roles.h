// Roles: configuration in, one Resolution per role, layer range and phase out, with every candidate's reason.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chorale/attention.h"
#include "chorale/implementation.h"
#include "chorale/problem.h"
#include "chorale/status.h"

namespace chorale {

class Config;  // src/roles/config.h

enum class Role { actor, rollout, ref, critic, reward_model };
inline constexpr std::array all_roles{Role::actor, Role::rollout, Role::ref, Role::critic,
                                      Role::reward_model};
std::string_view name(Role role);
// What each role runs: actor and critic forward and backward, rollout prefill and decode, ref and
// reward_model forward.
std::vector<Phase> phases(Role role);

enum class Parity { off, bitwise };

// One implementation that was considered.
struct Candidate {
  std::string name;  // as a user would write it
  bool supported = false;
  std::string reason;  // why not; or "chosen", or "not needed: flash_attention_2 was chosen"
};

struct Resolution {
  Role role;
  int first_layer = 0, last_layer = 0;  // inclusive
  Phase phase = Phase::forward;
  std::string requested;  // "auto" or a name
  std::string source;     // "grpo.yaml:7 (actor.attn_implementation)", "environment variable …", "default"
  std::string implementation;  // what runs
  Fingerprint fingerprint;
  std::vector<Candidate> candidates;
  Problem problem;
  Device device;
  const Implementation* chosen = nullptr;

  std::string explain() const;  // several lines: each candidate, taken or refused and why
  Result<Attention> build() const;
};

struct ParityReport {
  Parity requested = Parity::off;
  bool agree = false;
  std::string reason;  // which part of which fingerprint differs, in which layers; or why they agree
};

// What `chorale resolve` prints.
struct ResolvedRoles {
  std::map<Role, std::vector<Resolution>> roles;  // ascending in layers, then phase
  ParityReport parity;
  std::vector<std::string> warnings;  // deprecated keys, with the key to use instead
  std::string explain() const;
  std::string to_json() const;
  // ok, or parity_violation where parity is bitwise and actor and rollout differ.
  Status check() const;
};

// The attention part of a configuration. Immutable after load; safe to share.
class Roles {
 public:
  // Reads YAML (verl's shape or the short shape) from a file or text. `overrides` are "key=value" from the
  // command line and win over the file. The environment is consulted here, once. Errors name file, line and
  // key.
  static Result<Roles> load(const std::string& path, const std::vector<std::string>& overrides = {});
  static Result<Roles> parse(std::string_view yaml, std::string_view file_name = "<text>",
                             const std::vector<std::string>& overrides = {});
  // The roles of a file that somebody else reads too (a run configuration). The caller rejects the keys that
  // nobody asked for, once every reader has had its turn.
  static Result<Roles> from(const Config& config);
  // `auto` for every role, parity off, whatever the environment says.
  Roles();
  Roles(const Roles&);
  Roles(Roles&&) noexcept;
  Roles& operator=(const Roles&);
  Roles& operator=(Roles&&) noexcept;
  ~Roles();

  Parity parity() const;
  const std::vector<std::string>& warnings() const;
  // `rollout.kv_cache_dtype`: what the rollout keeps keys and values in, and every other role replays;
  // nothing for `auto`.
  std::optional<DType> kv_cache_dtype() const;
  // The problem and layer count that the configuration itself describes (its `model:` section), if it has
  // one; with kv_cache_dtype.
  Result<Problem> problem() const;
  int layers() const;

  // One phase of one layer. Fails where an explicit name cannot serve, or nothing can.
  Result<Resolution> resolve(Role role, const Problem& problem, const Device& device, int layer,
                             Phase phase) const;
  // The role's main phase (forward, or prefill for the rollout) of layer 0.
  Result<Resolution> resolve(Role role, const Problem& problem, const Device& device) const;
  // Everything, with layer ranges joined where they resolve alike, and parity. Fails as resolve does.
  Result<ResolvedRoles> resolve_all(const Problem& problem, const Device& device, int layers) const;
  // The same of the actor's forward and the rollout alone: what `chorale verify` compares.
  Result<ResolvedRoles> resolve_compared(const Problem& problem, const Device& device, int layers) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

}  // namespace chorale
