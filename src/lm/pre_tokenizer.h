#pragma once
// Cuts a text into the words within which byte-level BPE merges.
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

enum class PreTokenizer {
  kGpt2,    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kSmollm,  // the same between numbers, each number character (\p{N}) a word of its own
};

// `text` as byte-level BPE reads it: each byte that begins no character becomes U+FFFD. Characters are read leniently,
// as llama.cpp does: overlong forms become the shortest one, surrogates stay.
std::string normalize_for_bpe(std::string_view text);

// Ends of the words of a normalized text, ascending; the last one is the text's length. Linear.
void split_words(std::string_view text, PreTokenizer kind, std::vector<size_t>& ends);

}  // namespace attend
