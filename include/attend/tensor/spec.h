#pragma once
// Spec strings: `name[:key=value,...]`, the one way to name a thing with its options, everywhere. Values may be quoted
// with double quotes, inside which \" and \\ are escapes. A policy is specs joined by `+`, a list of policies is joined
// by `;`.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace attend {

struct Spec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;  // in the order written, values unquoted

  bool operator==(const Spec&) const = default;

  const std::string* find(std::string_view key) const;
  void set(std::string_view key, std::string value);

  // Values of a spec that the registry has completed (see Registry::complete); throws Error(kSpec) if absent.
  int64_t integer(std::string_view key) const;
  double real(std::string_view key) const;
  bool flag(std::string_view key) const;
  const std::string& text(std::string_view key) const;
};

// Syntax only; names and values are checked by the registry. Throws Error(kSpec).
Spec parse_spec(std::string_view text);
std::vector<Spec> parse_specs(std::string_view text);            // "a:x=1 + b": specs of one policy
std::vector<std::string> split_policies(std::string_view text);  // "P; P; ...": trimmed, quotes respected
std::vector<std::string> split_readings(std::string_view text);  // "P | P ..": policies that read one text together

// The shortest text that parses back to the same spec.
std::string to_string(const Spec& spec);

// Numbers as specs and JSON write them. Throw Error(kSpec) naming `what`.
int64_t parse_integer(std::string_view text, std::string_view what);
double parse_real(std::string_view text, std::string_view what);

}  // namespace attend
