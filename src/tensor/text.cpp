#include "attend/tensor/text.h"

#include <fmt/format.h>

#include <iterator>

namespace attend {

Utf8Char utf8_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at);
  if (lead < 0x80) return {lead, 1, true};
  const int length = lead >= 0xc2 && lead < 0xe0 ? 2 : (lead & 0xf0) == 0xe0 ? 3 : lead >= 0xf0 && lead < 0xf5 ? 4 : 0;
  if (length == 0) return {0xfffd, 1, false};
  // The second byte's range rules out overlong forms, surrogates and codes beyond U+10FFFF.
  unsigned low = 0x80, high = 0xbf;
  if (lead == 0xe0) low = 0xa0;
  if (lead == 0xed) high = 0x9f;
  if (lead == 0xf0) low = 0x90;
  if (lead == 0xf4) high = 0x8f;
  char32_t code = lead & (0x7fu >> length);
  for (int i = 1; i < length; ++i) {
    const unsigned next = byte(at + static_cast<size_t>(i));
    if (next < low || next > high) return {0xfffd, i, false};
    code = code << 6 | (next & 0x3f);
    low = 0x80, high = 0xbf;
  }
  return {code, length, true};
}

void append_utf8(std::string& out, char32_t code) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) return put(code);
  if (code < 0x800) return put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
  if (code < 0x10000) return put(0xe0 | code >> 12), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f)), put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
}

bool is_valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const Utf8Char c = utf8_at(text, i);
    if (!c.valid) return false;
    i += static_cast<size_t>(c.bytes);
  }
  return true;
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= limit) return out + "...";
    const Utf8Char c = utf8_at(text, i);
    const auto bytes = static_cast<size_t>(c.bytes);
    // C0, DEL, C1, and what breaks lines or turns writing direction.
    const bool control = c.code < 0x20 || (c.code >= 0x7f && c.code < 0xa0) || (c.code >= 0x200e && c.code <= 0x200f) ||
                         (c.code >= 0x2028 && c.code <= 0x202e) || (c.code >= 0x2066 && c.code <= 0x2069);
    if (c.valid && !control) {
      out.append(text.substr(i, bytes));
    } else {
      for (size_t j = i; j < i + bytes; ++j) {
        fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(text[j]));
      }
    }
    i += bytes;
  }
  return out;
}

}  // namespace attend
