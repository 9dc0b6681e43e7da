// Status and Result: how everything in Chorale fails.
//
// A failure is a value: a code for programs and one sentence for people, which names what was wrong, the
// value and the limit ("head_dim 300: must be at most 256"). Nothing in the library exits, aborts or falls
// back to something else without saying so. Both types are plain values, safe to copy and to move between
// threads.
#pragma once

#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace chorale {

enum class Code {
  ok,
  invalid_argument,    // the caller passed something that can never work
  out_of_range,        // an index or length outside what it indexes
  unsupported,         // a valid request that this implementation or machine cannot serve
  not_found,           // a file, key or name that does not exist
  resource_exhausted,  // pages, memory or disk ran out; can succeed later
  io_error,            // the operating system refused to read or write
  corrupt_data,        // a file whose content contradicts itself
  parity_violation,    // roles that must agree to the bit would not
  interrupted,         // stopped on request; what was saved can be resumed
  internal,            // a defect in Chorale
};
std::string_view name(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  static Status ok() { return {}; }
  static Status invalid_argument(std::string message) { return {Code::invalid_argument, std::move(message)}; }
  static Status out_of_range(std::string message) { return {Code::out_of_range, std::move(message)}; }
  static Status unsupported(std::string message) { return {Code::unsupported, std::move(message)}; }
  static Status not_found(std::string message) { return {Code::not_found, std::move(message)}; }
  static Status resource_exhausted(std::string message) {
    return {Code::resource_exhausted, std::move(message)};
  }
  static Status io_error(std::string message) { return {Code::io_error, std::move(message)}; }
  static Status corrupt_data(std::string message) { return {Code::corrupt_data, std::move(message)}; }
  static Status parity_violation(std::string message) { return {Code::parity_violation, std::move(message)}; }
  static Status interrupted(std::string message) { return {Code::interrupted, std::move(message)}; }
  static Status internal(std::string message) { return {Code::internal, std::move(message)}; }

  bool is_ok() const { return code_ == Code::ok; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same failure, told with where it happened: "grpo.yaml:12: head_dim 300: ...".
  Status with_context(std::string_view context) const {
    return is_ok() ? *this : Status(code_, std::string(context) + ": " + message_);
  }

 private:
  Code code_ = Code::ok;
  std::string message_;
};

// Thrown only by Result::value() on a failure that the caller chose not to look at.
class BadResult : public std::exception {
 public:
  explicit BadResult(Status status) : status_(std::move(status)) {}
  const char* what() const noexcept override { return status_.message().c_str(); }
  const Status& status() const { return status_; }

 private:
  Status status_;
};

// A T or the reason why there is none.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: implicit, so that `return value;` reads well
  Result(Status status)
      : status_(std::move(status)) {  // NOLINT: implicit, so that `return Status::...` does too
    if (status_.is_ok()) status_ = Status::internal("a Result was made from an ok Status without a value");
  }

  bool has_value() const { return value_.has_value(); }
  explicit operator bool() const { return has_value(); }
  const Status& status() const { return status_; }

  // The value; throws BadResult with the sentence when there is none.
  T& value() & { return check(), *value_; }
  const T& value() const& { return check(), *value_; }
  T value() && { return check(), std::move(*value_); }

  // Unchecked, for use after has_value().
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  void check() const {
    if (!value_) throw BadResult(status_);
  }
  std::optional<T> value_;
  Status status_;
};

}  // namespace chorale

// Leave the enclosing function with the failure, if there is one.
#define CHORALE_RETURN_IF_ERROR(expression)                                                                 \
  do {                                                                                                      \
    if (::chorale::Status chorale_status_ = (expression); !chorale_status_.is_ok()) return chorale_status_; \
  } while (false)

// CHORALE_ASSIGN_OR_RETURN(auto plan, attention.plan(batch));
#define CHORALE_ASSIGN_OR_RETURN(declaration, expression) \
  CHORALE_ASSIGN_OR_RETURN_(CHORALE_CONCAT_(chorale_result_, __LINE__), declaration, expression)
#define CHORALE_ASSIGN_OR_RETURN_(result, declaration, expression) \
  auto result = (expression);                                      \
  if (!result.has_value()) return result.status();                 \
  declaration = std::move(*result)
#define CHORALE_CONCAT_(a, b) CHORALE_CONCAT_2_(a, b)
#define CHORALE_CONCAT_2_(a, b) a##b
