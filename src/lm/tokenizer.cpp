#include "attend/lm/tokenizer.h"

#include <utility>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "lm/tokenizers.h"

namespace attend {

bool Tokenizer::is_end(int32_t id) const {
  return std::binary_search(ends_.begin(), ends_.end(), id);
}

std::unique_ptr<Tokenizer> make_tokenizer(const Gguf& file) {
  const std::string_view model = file.text("tokenizer.ggml.model");
  if (model == "gpt2") return make_bpe_tokenizer(file);
  if (model == "llama") return make_spm_tokenizer(file);
  throw Error(ErrorKind::kUnsupported, "tokenizer", "tokenizer.ggml.model", printable(model),
              "is not supported; supported: gpt2 (byte-level BPE), llama (SentencePiece)");
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_.append(bytes);
  // Only the last character can be unfinished: one whose lead byte lies at most three bytes before the end, and whose
  // bytes so far are a proper start of a character.
  size_t whole = held_.size();
  for (size_t back = 1; back <= 3 && back <= held_.size(); ++back) {
    const size_t at = held_.size() - back;
    if ((static_cast<unsigned char>(held_[at]) & 0xc0) == 0x80) continue;
    const Utf8Char c = utf8_at(held_, at);
    const auto lead = static_cast<unsigned char>(held_[at]);
    if (lead >= 0xc2 && lead < 0xf5 && !c.valid && static_cast<size_t>(c.bytes) == back) whole = at;
    break;
  }
  std::string out = held_.substr(0, whole);
  held_.erase(0, whole);
  return out;
}

std::string Utf8Stream::finish() {
  return std::exchange(held_, {});
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Char c = utf8_at(bytes, at);
    append_utf8(out, c.code);
    at += static_cast<size_t>(c.bytes);
  }
  return out;
}

}  // namespace attend
