#pragma once
// The vocabulary of a GGUF file: texts, kinds, scores and the tokens with a role, all copied out of the file.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "attend/lm/gguf.h"
#include "lm/token_table.h"

namespace attend {

// A token can be several of these: an end token that the file calls user-defined becomes a control token too.
enum TokenKind : uint8_t {
  kNormalToken = 1,
  kUnknownToken = 2,
  kControlToken = 4,
  kUserToken = 8,
  kUnusedToken = 16,
  kByteToken = 32,
};

struct Vocabulary {
  TokenTable tokens;
  std::vector<uint8_t> kinds;  // TokenKind bits
  std::vector<float> scores;   // empty if the file has none
  int32_t bos = -1, eos = -1, unknown = -1;
  bool adds_bos = false, adds_eos = false, adds_space = false;
  std::vector<int32_t> ends;  // ascending: the tokens that end a generation
  std::string chat_template;

  int32_t size() const { return tokens.size(); }
  std::string_view text(int32_t id) const { return tokens.at(id); }
  bool is(int32_t id, unsigned kind) const { return (kinds[static_cast<size_t>(id)] & kind) != 0; }
};

struct VocabularyDefaults {
  int32_t bos = -1, eos = -1, unknown = -1;  // used if the file names none
  bool adds_bos = false, adds_space = false;
};

// Throws Error(kFile) for contradictory data: arrays of other lengths, ids outside the vocabulary, a token twice.
Vocabulary read_vocabulary(const Gguf& file, const VocabularyDefaults& defaults);

}  // namespace attend
