// eager: plain attention in float64 with materialised scores, the oracle that everything else is compared
// with.
#pragma once

#include "chorale/implementation.h"

namespace chorale {

const Implementation& eager_attention();

}  // namespace chorale
