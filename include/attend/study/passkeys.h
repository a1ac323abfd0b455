#pragma once
// Texts that can only be answered from far back: passkeys hidden in a haystack and asked for at its end.
//
// Source   Xiao et al. 2024, arXiv:2410.10819, section 2.2: ten passkeys of 32 words of the spelling alphabet at drawn
//          depths of a book, then a question and its answer for each.
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "attend/lm/tokenizer.h"

namespace attend {

struct PasskeyOptions {
  int64_t passkeys = 10;  // 1 to 20
  int64_t words = 32;     // of a passkey
  double shallowest = 0.05, deepest = 0.95;
};

struct PasskeyText {
  std::vector<int32_t> ids;
  int64_t asked = 0;  // tokens at the end that are questions and answers
};

class PasskeyTexts {
 public:
  // `haystack` begins again where it is shorter than a text needs. Throws Error(kArgument) for options out of range and
  // a haystack without tokens.
  PasskeyTexts(const Tokenizer& tokenizer, std::string_view haystack, const PasskeyOptions& options);

  // Tokens of the shortest text: passkeys and questions with as many tokens of haystack as there are passkeys.
  int64_t shortest() const { return shortest_; }

  // A text of about `length` tokens, at most that; the same for the same seed on every machine. Throws Error(kArgument)
  // for less than shortest().
  PasskeyText draw(int64_t length, uint64_t seed) const;

 private:
  std::vector<int32_t> encode(std::string_view text) const { return tokenizer_.encode(text, false); }

  const Tokenizer& tokenizer_;
  PasskeyOptions options_;
  std::vector<int32_t> haystack_, begin_, end_, gap_;
  int64_t shortest_ = 0;
};

}  // namespace attend
