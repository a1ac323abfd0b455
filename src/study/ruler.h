#pragma once
// The texts of RULER's tasks (Hsieh et al. 2024, arXiv:2404.06654, section 3 and appendix B; wording as in
// NVIDIA/RULER, scripts/data/synthetic, model template "base"), put together from what was drawn for them.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace attend::ruler {

inline constexpr std::string_view kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

// "One of the special magic numbers for KEY is: VALUE."; `kind` is numbers or uuids.
std::string needle(std::string_view kind, std::string_view key, std::string_view value);

// A line with its needles, each before the line of its place in `lines`; places ascend.
struct Insertion {
  int64_t place;
  std::string text;
};
std::string lines_with(const std::vector<std::string>& lines, const std::vector<Insertion>& insertions);

// The same for sentences of an essay, joined by spaces.
std::string sentences_with(const std::vector<std::string>& sentences, const std::vector<Insertion>& insertions);

// The first `words` words of a text, from its beginning again where it is shorter, as sentences: one ends at a mark of
// . ! ? before a space. Throws Error(kArgument) for a text without words.
std::vector<std::string> essay_sentences(std::string_view text, int64_t words);

// The prompt up to the answer. One answer only is asked for in the singular.
std::string needle_prompt(std::string_view kind, const std::string& context, const std::vector<std::string>& queries,
                          bool one_answer);

// "VAR A = 12345", then "VAR B = VAR A " and so on.
std::vector<std::string> variable_chain(const std::vector<std::string>& names, std::string_view value);
std::string variable_prompt(const std::string& context, std::string_view value, size_t variables);

std::string numbered(const std::vector<std::string>& words);
std::string common_words_prompt(const std::string& context);
std::string frequent_words_prompt(const std::string& context);

// "a", "a, and b", "a, b, and c".
std::string listed(const std::vector<std::string>& items);
std::string joined(const std::vector<std::string>& items, std::string_view between);

}  // namespace attend::ruler
