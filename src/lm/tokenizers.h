#pragma once
// The kinds of tokenizers, and what they share.
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "attend/lm/tokenizer.h"
#include "lm/special_tokens.h"
#include "lm/vocabulary.h"

namespace attend {

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const Gguf& file);
std::unique_ptr<Tokenizer> make_spm_tokenizer(const Gguf& file);

// Everything but the algorithm that turns plain text into tokens.
class VocabularyTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text, bool bos, bool special) const final;
  std::string piece(int32_t id, bool special) const final;
  std::string decode(std::span<const int32_t> ids, bool special) const final;

 protected:
  VocabularyTokenizer(const Gguf& file, const VocabularyDefaults& defaults);

  // Appends the tokens of a text without special tokens. `first`: nothing or a special token stands before it.
  virtual void encode_text(std::string_view text, bool first, std::vector<int32_t>& out) const = 0;
  // The bytes of a normal token's text.
  virtual std::string unescape(std::string_view text) const = 0;

  Vocabulary vocabulary_;

 private:
  void append_piece(int32_t id, bool special, std::string& out) const;

  SpecialTokens special_;
};

// The byte of a token "<0x0A>".
int byte_of(std::string_view text);  // -1 if it is none

}  // namespace attend
