#pragma once
// Small vocabularies of each kind, as a GGUF file holds them.
#include <string>
#include <string_view>
#include <vector>

#include "support/gguf_writer.h"

namespace attend::test {

struct SmallToken {
  std::string text;
  int32_t kind;  // GGUF's: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
  float score = 0;
};

inline void write_tokens(GgufWriter& w, const std::vector<SmallToken>& tokens, bool scores) {
  std::vector<std::string> texts;
  std::vector<int32_t> kinds;
  std::vector<float> values;
  for (const SmallToken& token : tokens) {
    texts.push_back(token.text);
    kinds.push_back(token.kind);
    values.push_back(token.score);
  }
  w.texts("tokenizer.ggml.tokens", texts);
  w.integers("tokenizer.ggml.token_type", kinds);
  if (scores) w.reals("tokenizer.ggml.scores", values);
}

// The character that stands for a byte in byte-level vocabularies.
inline std::string byte_character(int byte) {
  int code = byte, moved = 0;
  for (int b = 0; b <= byte; ++b) {
    const bool itself = (b > 32 && b < 127) || (b > 160 && b != 173);
    if (!itself) ++moved;
    if (b == byte && !itself) code = 255 + moved;
  }
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

// Tokens 0 to 2 are control tokens, 3 to 258 the bytes 0 to 255, then come the results of the merges, in their order.
inline void write_small_bpe(GgufWriter& w, std::string_view pre_tokenizer = "smollm",
                            const std::string& first_token = "<|endoftext|>") {
  std::vector<SmallToken> tokens = {{first_token, 3}, {"<|im_start|>", 3}, {"<|im_end|>", 3}};
  for (int byte = 0; byte < 256; ++byte) tokens.push_back({byte_character(byte), 1});
  const std::string space = byte_character(' ');
  const std::vector<std::string> merges = {"t h",    "th e", space + " the",      "l l", "e ll", "h ell",
                                           "hell o", "o o",  space + " " + space, "' s"};
  for (const std::string& merge : merges) {
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    tokens.push_back({joined, 1});
  }
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", pre_tokenizer);
  write_tokens(w, tokens, false);
  w.texts("tokenizer.ggml.merges", merges);
  w.u32("tokenizer.ggml.bos_token_id", 1);
  w.u32("tokenizer.ggml.eos_token_id", 2);
  w.flag("tokenizer.ggml.add_bos_token", false);
}

// Tokens 0 to 2 are unknown, begin and end, 3 to 258 the bytes 0 to 255, then user-defined and normal tokens.
inline std::vector<SmallToken> small_spm_tokens() {
  std::vector<SmallToken> tokens = {{"<unk>", 2}, {"<bos>", 3}, {"<eos>", 3}};
  const char* digits = "0123456789ABCDEF";
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back({std::string("<0x") + digits[byte >> 4] + digits[byte & 15] + ">", 6});
  }
  for (const char* text : {"\n\n", "\n\n\n", "  ", "   ", "<b>", "</b>"}) tokens.push_back({text, 4});
  const std::string mark = "\xe2\x96\x81";
  float score = -1;
  for (const std::string& text : {mark + "the", std::string("the"), mark + "t", std::string("he"), std::string("ell"),
                                  std::string("hello"), std::string("hell"), std::string("ll"), std::string("oo")}) {
    tokens.push_back({text, 1, score--});
  }
  tokens.push_back({mark, 1, -100});
  for (const char c : {'t', 'h', 'e', 'l', 'o', 'a', '.'}) tokens.push_back({std::string(1, c), 1, score-- - 100});
  tokens.push_back({"\xc3\xa9", 1, -200});
  return tokens;
}

inline void write_small_spm(GgufWriter& w, bool adds_space = false) {
  w.text("tokenizer.ggml.model", "llama");
  write_tokens(w, small_spm_tokens(), true);
  w.u32("tokenizer.ggml.bos_token_id", 1);
  w.u32("tokenizer.ggml.eos_token_id", 2);
  w.u32("tokenizer.ggml.unknown_token_id", 0);
  w.flag("tokenizer.ggml.add_bos_token", true);
  w.flag("tokenizer.ggml.add_space_prefix", adds_space);
}

}  // namespace attend::test
