#include "lm/pre_tokenizer.h"

#include <utf8proc.h>

#include "attend/tensor/text.h"

namespace attend {
namespace {

enum class Class { kLetter, kNumber, kSpace, kOther, kEnd };

struct Char {
  char32_t code;
  int bytes;  // 0 if no character begins here
};

Char lenient_char(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at);
  if (lead < 0x80) return {lead, 1};
  const int bytes = (lead & 0xe0) == 0xc0 ? 2 : (lead & 0xf0) == 0xe0 ? 3 : (lead & 0xf8) == 0xf0 ? 4 : 0;
  char32_t code = lead & (0x7fu >> bytes);
  for (int i = 1; i < bytes; ++i) {
    const unsigned next = byte(at + static_cast<size_t>(i));
    if ((next & 0xc0) != 0x80) return {0xfffd, 0};
    code = code << 6 | (next & 0x3f);
  }
  return code > 0x10ffff || bytes == 0 ? Char{0xfffd, 0} : Char{code, bytes};
}

bool is_space(char32_t c) {
  return c == 0x20 || (c >= 0x09 && c <= 0x0d) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

Class class_of(char32_t c) {
  if (is_space(c)) return Class::kSpace;
  if (c < 0x80) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return Class::kLetter;
    return c >= '0' && c <= '9' ? Class::kNumber : Class::kOther;
  }
  // Unicode 15.1 added this block (CJK extension I); utf8proc 2.8 knows 15.0.
  if (c >= 0x2ebf0 && c <= 0x2ee5d) return Class::kLetter;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return Class::kLetter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return Class::kNumber;
    default:
      return Class::kOther;
  }
}

// One character of a normalized text and its class; kEnd, without bytes, at the end.
struct Step {
  Class kind;
  size_t bytes;
};

Step step_at(std::string_view text, size_t at) {
  if (at >= text.size()) return {Class::kEnd, 0};
  const Char c = lenient_char(text, at);
  return {class_of(c.code), static_cast<size_t>(c.bytes ? c.bytes : 1)};
}

// Length of 's, 't, 're, 've, 'm, 'll or 'd at the beginning, or 0.
size_t contraction(std::string_view text) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const char next = text[1];
  if (next == 's' || next == 't' || next == 'm' || next == 'd') return 2;
  const std::string_view two = text.substr(1, 2);
  return two == "re" || two == "ve" || two == "ll" ? 3 : 0;
}

// Length of the first word of a non-empty text.
size_t first_word(std::string_view text) {
  if (const size_t length = contraction(text)) return length;
  size_t at = text[0] == ' ' ? 1 : 0;
  Step step = step_at(text, at);
  if (step.kind != Class::kSpace && step.kind != Class::kEnd) {
    const Class kind = step.kind;
    for (; step.kind == kind; step = step_at(text, at)) at += step.bytes;
    return at;
  }
  // White space: all of it at the text's end, else all but the last character, which may go with the next word.
  size_t last = 0;
  at = 0;
  for (step = step_at(text, 0); step.kind == Class::kSpace; step = step_at(text, at)) {
    last = at;
    at += step.bytes;
  }
  return step.kind == Class::kEnd || last == 0 ? at : last;
}

void split_gpt2(std::string_view text, size_t begin, size_t end, std::vector<size_t>& ends) {
  while (begin < end) {
    begin += first_word(text.substr(begin, end - begin));
    ends.push_back(begin);
  }
}

}  // namespace

std::string normalize_for_bpe(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Char c = lenient_char(text, at);
    append_utf8(out, c.code);
    at += static_cast<size_t>(c.bytes ? c.bytes : 1);
  }
  return out;
}

void split_words(std::string_view text, PreTokenizer kind, std::vector<size_t>& ends) {
  ends.clear();
  if (kind == PreTokenizer::kGpt2) return split_gpt2(text, 0, text.size(), ends);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Step step = step_at(text, at);
    at += step.bytes;
    if (step.kind != Class::kNumber) continue;
    split_gpt2(text, begin, at - step.bytes, ends);
    ends.push_back(at);
    begin = at;
  }
  split_gpt2(text, begin, text.size(), ends);
}

}  // namespace attend
