#pragma once
// JSON that keeps the order in which keys are set. Precompiled for the whole program.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace attend::app {

using Json = nlohmann::ordered_json;

// To standard output; invalid UTF-8 becomes U+FFFD, numbers that are not finite become null.
inline void print_json(const Json& value) {
  fmt::print("{}\n", value.dump(2, ' ', false, nlohmann::detail::error_handler_t::replace));
}

}  // namespace attend::app
