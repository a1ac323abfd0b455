#pragma once
// Text to token ids and back, from what a GGUF file holds alone.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/lm/gguf.h"

namespace attend {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text` (any bytes), with the model's own BOS rule unless `bos` is false. Special tokens written in the text
  // become their ids only if `special`. Cost about linear in the text.
  virtual std::vector<int32_t> encode(std::string_view text, bool bos = true, bool special = false) const = 0;

  // Bytes of one token; control tokens are empty unless `special`. Throws Error(kArgument) for an id outside the
  // vocabulary.
  virtual std::string piece(int32_t id, bool special) const = 0;

  // Bytes of a sequence: what the encoder added (a leading BOS or space) is left out unless `special`.
  virtual std::string decode(std::span<const int32_t> ids, bool special) const = 0;

  int32_t size() const { return size_; }
  int32_t bos() const { return bos_; }  // -1 if the model has none
  bool adds_bos() const { return adds_bos_; }
  bool is_end(int32_t id) const;                                       // ends a generation
  const std::string& chat_template() const { return chat_template_; }  // empty if none

 protected:
  int32_t size_ = 0, bos_ = -1;
  bool adds_bos_ = false;
  std::vector<int32_t> ends_;
  std::string chat_template_;
};

// Throws Error(kFile) for contradictory vocabulary data, Error(kUnsupported) naming an unknown tokenizer.
std::unique_ptr<Tokenizer> make_tokenizer(const Gguf& file);

// Emits whole UTF-8 characters of a stream of token bytes; holds back an unfinished one.
class Utf8Stream {
 public:
  std::string push(std::string_view bytes);
  std::string finish();  // what was held back, as it is

 private:
  std::string held_;
};

// Invalid sequences replaced by U+FFFD.
std::string to_valid_utf8(std::string_view bytes);

}  // namespace attend
