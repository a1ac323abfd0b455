#pragma once
// UTF-8 one character at a time, and foreign text made fit for a message.
#include <cstddef>
#include <string>
#include <string_view>

namespace attend {

struct Utf8Char {
  char32_t code;  // U+FFFD if not valid
  int bytes;      // >= 1; of an invalid sequence, its longest start that a character could have (Unicode 15, 3.9)
  bool valid;
};

// The character at `at` < text.size(). Overlong forms, surrogates and codes beyond U+10FFFF are invalid.
Utf8Char utf8_at(std::string_view text, size_t at);

void append_utf8(std::string& out, char32_t code);

bool is_valid_utf8(std::string_view text);

// `text` for one line of a message: control characters and invalid bytes become \xNN, what is longer than `limit`
// bytes is cut and ends in "...".
std::string printable(std::string_view text, size_t limit = 200);

}  // namespace attend
