// Whether a sanitizer watches: what it watches is several times slower and keeps freed memory for a while.
#pragma once

namespace chorale {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

}  // namespace chorale
