// `flash_attention_2` on the CPU: tiled online softmax in the order of docs/numerics.md.
#pragma once

#include "chorale/implementation.h"

namespace chorale {

const Implementation& cpu_attention();

}  // namespace chorale
