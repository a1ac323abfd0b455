#include "attend/lm/token_class.h"

#include <string_view>

namespace attend {

TokenClass class_of(int32_t id, const Tokenizer& tokenizer) {
  const std::string text = tokenizer.piece(id, false);
  if (id == tokenizer.bos() || tokenizer.is_end(id) || (text.empty() && !tokenizer.piece(id, true).empty()))
    return TokenClass::kSpecial;
  constexpr std::string_view kMarks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
  bool marks = false;
  for (const char c : text) {
    if (c == ' ') continue;
    if (kMarks.find(c) == std::string_view::npos) return TokenClass::kOther;
    marks = true;
  }
  return marks ? TokenClass::kPunctuation : TokenClass::kOther;
}

}  // namespace attend
