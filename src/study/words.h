#pragma once
// English words that tasks draw from.
#include <string_view>
#include <vector>

namespace attend {

const std::vector<std::string_view>& adjectives();
const std::vector<std::string_view>& nouns();
const std::vector<std::string_view>& verbs();

}  // namespace attend
