#include "lm/special_tokens.h"

#include <algorithm>

namespace attend {
namespace {

size_t start_of(const char* at, size_t bytes) {
  const auto first = static_cast<unsigned char>(at[0]), second = static_cast<unsigned char>(at[bytes > 1 ? 1 : 0]);
  return static_cast<size_t>(first) << 8 | second;
}

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

}  // namespace

SpecialTokens::SpecialTokens(const Vocabulary& vocabulary, bool eats_space)
    : vocabulary_(vocabulary), eats_space_(eats_space) {
  std::vector<int32_t> special;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    if (vocabulary.is(id, kControlToken | kUserToken | kUnknownToken) && !vocabulary.text(id).empty()) {
      special.push_back(id);
    }
  }
  std::stable_sort(special.begin(), special.end(),
                   [&](int32_t a, int32_t b) { return vocabulary.text(a).size() > vocabulary.text(b).size(); });
  for (int32_t id : special) {
    const std::string_view text = vocabulary.text(id);
    if (lengths_.empty() || lengths_.back().bytes != text.size()) lengths_.emplace_back().bytes = text.size();
    Length& length = lengths_.back();
    length.has_user |= vocabulary.is(id, kUserToken) && !vocabulary.is(id, kControlToken | kUnknownToken);
    length.starts[start_of(text.data(), text.size())] = true;
    length.ends.set(static_cast<unsigned char>(text.back()));
  }
}

int32_t SpecialTokens::match(const Length& length, const char* at, bool special) const {
  if (!length.starts[start_of(at, length.bytes)]) return -1;
  if (!length.ends.test(static_cast<unsigned char>(at[length.bytes - 1]))) return -1;
  const int32_t id = vocabulary_.tokens.find({at, length.bytes});
  if (id < 0) return -1;
  const bool hidden = vocabulary_.is(id, kControlToken | kUnknownToken);
  return (hidden ? special : vocabulary_.is(id, kUserToken)) ? id : -1;
}

void SpecialTokens::cut_length(const Length& length, bool special, std::vector<TextPart>& parts) const {
  std::vector<TextPart> out;
  bool changed = false;
  for (const TextPart& part : parts) {
    std::string_view rest = part.text;
    for (size_t at = 0; part.token < 0 && at + length.bytes <= rest.size();) {
      const int32_t id = match(length, rest.data() + at, special);
      if (id < 0) {
        ++at;
        continue;
      }
      changed = true;
      if (at > 0) out.push_back({rest.substr(0, at), -1});
      out.push_back({{}, id});
      rest.remove_prefix(at + length.bytes);
      while (eats_space_ && !rest.empty() && is_space(rest.front())) rest.remove_prefix(1);
      at = 0;
    }
    if (part.token >= 0 || !rest.empty()) out.push_back({rest, part.token});
  }
  if (changed) parts = std::move(out);
}

std::vector<TextPart> SpecialTokens::cut(std::string_view text, bool special) const {
  std::vector<TextPart> parts;
  if (!text.empty()) parts.push_back({text, -1});
  for (const Length& length : lengths_) {
    if (special || length.has_user) cut_length(length, special, parts);
  }
  return parts;
}

}  // namespace attend
