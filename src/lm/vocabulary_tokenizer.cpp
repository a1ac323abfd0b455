#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "attend/tensor/error.h"
#include "lm/gguf_parser.h"
#include "lm/tokenizers.h"

namespace attend {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;  // so that what indexes a text fits 32 bits

// Phi-3's special tokens take the white space that follows them; GGUF has no word for it but the model's name.
bool eats_space(const Gguf& file) {
  std::string name(file.text("general.name", ""));
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos;
}

}  // namespace

VocabularyTokenizer::VocabularyTokenizer(const Gguf& file, const VocabularyDefaults& defaults)
    : vocabulary_(read_vocabulary(file, defaults)), special_(vocabulary_, eats_space(file)) {
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    if (vocabulary_.is(id, kByteToken) && byte_of(vocabulary_.text(id)) < 0) {
      fail_gguf(file.name(), fmt::format("has a byte token '{}', not of the form <0x0A>", vocabulary_.text(id)));
    }
  }
  size_ = vocabulary_.size();
  bos_ = vocabulary_.bos;
  adds_bos_ = vocabulary_.adds_bos;
  ends_ = vocabulary_.ends;
  chat_template_ = vocabulary_.chat_template;
}

std::vector<int32_t> VocabularyTokenizer::encode(std::string_view text, bool bos, bool special) const {
  if (text.size() > kMaxTextBytes) {
    throw Error(ErrorKind::kArgument, "tokenizer", "text", fmt::format("{} bytes", text.size()),
                fmt::format("must be at most {}", kMaxTextBytes));
  }
  std::vector<int32_t> out;
  if (bos && vocabulary_.adds_bos) out.push_back(vocabulary_.bos);
  bool first = true;
  for (const TextPart& part : special_.cut(text, special)) {
    if (part.token >= 0) {
      out.push_back(part.token);
    } else {
      encode_text(part.text, first, out);
    }
    first = part.token >= 0;
  }
  if (bos && vocabulary_.adds_eos) out.push_back(vocabulary_.eos);
  return out;
}

void VocabularyTokenizer::append_piece(int32_t id, bool special, std::string& out) const {
  if (id < 0 || id >= vocabulary_.size()) {
    throw Error(ErrorKind::kArgument, "tokenizer", "id", fmt::format("{}", id),
                fmt::format("is outside the vocabulary of {} tokens", vocabulary_.size()));
  }
  const std::string_view text = vocabulary_.text(id);
  const bool hidden = vocabulary_.is(id, kControlToken | kUnknownToken);
  if (hidden && !special) return;
  if (hidden || vocabulary_.is(id, kUserToken)) {
    out.append(text);
  } else if (vocabulary_.is(id, kNormalToken)) {
    out.append(unescape(text));
  } else if (vocabulary_.is(id, kByteToken)) {
    out.push_back(static_cast<char>(byte_of(text)));
  }
}

std::string VocabularyTokenizer::piece(int32_t id, bool special) const {
  std::string out;
  append_piece(id, special, out);
  return out;
}

std::string VocabularyTokenizer::decode(std::span<const int32_t> ids, bool special) const {
  if (!special) {
    if (vocabulary_.adds_bos && !ids.empty() && ids.front() == vocabulary_.bos) ids = ids.subspan(1);
    if (vocabulary_.adds_eos && !ids.empty() && ids.back() == vocabulary_.eos) ids = ids.first(ids.size() - 1);
  }
  std::string out;
  for (size_t i = 0; i < ids.size(); ++i) {
    append_piece(ids[i], special, out);
    // The space that the encoder set before the text.
    if (i == 0 && !special && vocabulary_.adds_space && vocabulary_.is(ids[0], kNormalToken) && out.starts_with(' ')) {
      out.erase(0, 1);
    }
  }
  return out;
}

int byte_of(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  int value = 0;
  for (char c : text.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

}  // namespace attend
