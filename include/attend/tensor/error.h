#pragma once
// The one exception family of attend. Messages read "[op] argument = got, rule".
#include <stdexcept>
#include <string>
#include <string_view>

namespace attend {

enum class ErrorKind {
  kArgument,     // a value or shape that the called function does not take
  kSpec,         // a spec string or policy that names or combines things wrongly
  kFile,         // a file that is missing, unreadable, damaged or of the wrong kind
  kUnsupported,  // well formed, but outside what attend implements
  kMemory,       // an allocation or reservation failed
  kCancelled,    // stopped through Context::stop
};

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Error(ErrorKind kind, std::string_view op, std::string_view argument, std::string_view got, std::string_view rule)
      : Error(kind, compose(op, argument, got, rule)) {}

  ErrorKind kind() const { return kind_; }

 private:
  static std::string compose(std::string_view op, std::string_view argument, std::string_view got,
                             std::string_view rule) {
    std::string text = "[";
    text.append(op).append("] ").append(argument);
    if (!got.empty()) text.append(" = ").append(got);
    return text.append(", ").append(rule);
  }

  ErrorKind kind_;
};

}  // namespace attend
