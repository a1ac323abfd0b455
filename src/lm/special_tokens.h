#pragma once
// Cuts a text at the special tokens written in it, before anything else is done to it.
//
// Longer tokens are matched first, over the whole text; tokens of one length from left to right. User-defined tokens
// always match, control and unknown tokens only if asked for.
#include <bitset>
#include <cstdint>
#include <string_view>
#include <vector>

#include "lm/vocabulary.h"

namespace attend {

struct TextPart {
  std::string_view text;  // empty for a token
  int32_t token = -1;
};

class SpecialTokens {
 public:
  // Refers to `vocabulary`, which must outlive it. `eats_space`: white space after a token belongs to it.
  SpecialTokens(const Vocabulary& vocabulary, bool eats_space);

  // Cost: the text's length times the number of different lengths of special tokens.
  std::vector<TextPart> cut(std::string_view text, bool special) const;

 private:
  // The special tokens of one length. The first two bytes and the last one rule out nearly every place.
  struct Length {
    size_t bytes = 0;
    bool has_user = false;
    std::vector<bool> starts = std::vector<bool>(1 << 16);  // by the first two bytes (of one byte: twice that)
    std::bitset<256> ends;
  };

  void cut_length(const Length& length, bool special, std::vector<TextPart>& parts) const;
  int32_t match(const Length& length, const char* at, bool special) const;

  const Vocabulary& vocabulary_;
  bool eats_space_;
  std::vector<Length> lengths_;  // descending
};

}  // namespace attend
