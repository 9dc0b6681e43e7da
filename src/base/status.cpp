#include "chorale/status.h"

namespace chorale {

std::string_view name(Code code) {
  switch (code) {
    case Code::ok:
      return "ok";
    case Code::invalid_argument:
      return "invalid argument";
    case Code::out_of_range:
      return "out of range";
    case Code::unsupported:
      return "unsupported";
    case Code::not_found:
      return "not found";
    case Code::resource_exhausted:
      return "resource exhausted";
    case Code::io_error:
      return "input/output error";
    case Code::corrupt_data:
      return "corrupt data";
    case Code::parity_violation:
      return "parity violation";
    case Code::interrupted:
      return "interrupted";
    case Code::internal:
      return "internal error";
  }
  return "unknown";
}

}  // namespace chorale
