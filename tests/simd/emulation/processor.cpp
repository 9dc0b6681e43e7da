// A processor with AMX, whatever it is: for programs that are linked with emulated products.
#include "simd/dot_tiles.h"

namespace chorale::simd {

DotLevel processor_dot_level() { return DotLevel::amx; }

}  // namespace chorale::simd
