// What the registry of chorale/implementation.h offers inside the library.
#pragma once

#include <span>

#include "chorale/implementation.h"

namespace chorale {

// The first servant of `name` that supports every phase; else Code::unsupported with each servant's reason,
// or why there is none.
Result<const Implementation*> first_supported(const ImplementationName& name, const Problem& problem,
                                              const Device& device, std::span<const Phase> phases);

}  // namespace chorale
