#pragma once
// Lists of token ids in JSON, from a person or another program.
#include <cstdint>
#include <string_view>
#include <vector>

namespace attend {

// `[1, 2, 3]`, or an object whose key "tokens" holds such a list (other keys are passed over). `name` is for messages.
// Throws Error(kFile) for anything else, numbers that are no integer within 0 to 2^31 - 1 included. Linear.
std::vector<int32_t> parse_ids(std::string_view json, std::string_view name);

}  // namespace attend
