#include "lm/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "attend/tensor/text.h"
#include "lm/gguf_parser.h"

namespace attend {
namespace {

constexpr std::string_view kTokens = "tokenizer.ggml.tokens", kKinds = "tokenizer.ggml.token_type",
                           kScores = "tokenizer.ggml.scores";
constexpr size_t kMaxTokens = size_t{1} << 24;

// GGUF does not say which tokens end a generation beyond eos, so they are known by their texts (llama.cpp keeps the
// same lists). A token found so is a control token, whatever the file calls it.
constexpr std::string_view kEndTexts[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\xef\xbd\x9c"
    "end\xe2\x96\x81of\xe2\x96\x81sentence\xef\xbd\x9c>",
    "[e~[",
};

// Tokens of fill-in-the-middle prompts; padding, repository and file separators end a generation, too.
struct Role {
  std::string_view key;
  bool ends;
  std::vector<std::string_view> texts;
};

const std::vector<Role>& roles() {
  static const std::vector<Role> list = {
      {"tokenizer.ggml.eot_token_id", true, {}},
      {"tokenizer.ggml.eom_token_id", true, {}},
      {"tokenizer.ggml.fim_pre_token_id",
       false,
       {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "\xe2\x96\x81<PRE>", "<|code_prefix|>", "<|prefix|>",
        "<\xef\xbd\x9c"
        "fim\xe2\x96\x81"
        "begin\xef\xbd\x9c>"}},
      {"tokenizer.ggml.fim_suf_token_id",
       false,
       {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "\xe2\x96\x81<SUF>", "<|code_suffix|>", "<|suffix|>",
        "<\xef\xbd\x9c"
        "fim\xe2\x96\x81hole\xef\xbd\x9c>"}},
      {"tokenizer.ggml.fim_mid_token_id",
       false,
       {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "\xe2\x96\x81<MID>", "<|code_middle|>", "<|middle|>",
        "<\xef\xbd\x9c"
        "fim\xe2\x96\x81"
        "end\xef\xbd\x9c>"}},
      {"tokenizer.ggml.fim_pad_token_id", true, {"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
      {"tokenizer.ggml.fim_rep_token_id",
       true,
       {"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}},
      {"tokenizer.ggml.fim_sep_token_id", true, {"<|file_sep|>"}},
  };
  return list;
}

uint8_t kind_of(int32_t number) {
  switch (number) {
    case 1:
      return kNormalToken;
    case 2:
      return kUnknownToken;
    case 3:
      return kControlToken;
    case 4:
      return kUserToken;
    case 5:
      return kUnusedToken;
    case 6:
      return kByteToken;
    default:
      return 0;
  }
}

class Reader {
 public:
  Reader(const Gguf& file, const VocabularyDefaults& defaults) : file_(file), defaults_(defaults) {}

  Vocabulary read() {
    read_tokens();
    read_kinds();
    read_scores();
    vocabulary_.bos = special_id("tokenizer.ggml.bos_token_id", defaults_.bos);
    vocabulary_.eos = special_id("tokenizer.ggml.eos_token_id", defaults_.eos);
    vocabulary_.unknown = special_id("tokenizer.ggml.unknown_token_id", defaults_.unknown);
    vocabulary_.adds_bos = file_.flag("tokenizer.ggml.add_bos_token", defaults_.adds_bos);
    vocabulary_.adds_eos = file_.flag("tokenizer.ggml.add_eos_token", false);
    vocabulary_.adds_space = file_.flag("tokenizer.ggml.add_space_prefix", defaults_.adds_space);
    if (vocabulary_.adds_bos && vocabulary_.bos < 0) fail("wants a BOS token added and names none");
    if (vocabulary_.adds_eos && vocabulary_.eos < 0) fail("wants an EOS token added and names none");
    vocabulary_.chat_template = file_.text("tokenizer.chat_template", "");
    find_ends();
    return std::move(vocabulary_);
  }

 private:
  [[noreturn]] void fail(std::string_view rule) const { fail_gguf(file_.name(), rule); }

  void read_tokens() {
    const std::vector<std::string_view> texts = file_.texts(kTokens);
    if (texts.empty()) fail("has an empty vocabulary");
    if (texts.size() > kMaxTokens) fail(fmt::format("has {} tokens, more than {}", texts.size(), kMaxTokens));
    size_t bytes = 0;
    for (std::string_view text : texts) bytes += text.size();
    TokenTable& tokens = vocabulary_.tokens;
    tokens.reserve(texts.size(), bytes);
    for (std::string_view text : texts) {
      if (text.empty()) {
        tokens.add_hidden(text);
      } else if (!tokens.add(text)) {
        fail(fmt::format("has the token '{}' twice (number {})", printable(text, 60), tokens.size() - 1));
      }
    }
    const char* end = texts.back().data() + texts.back().size();
    file_.release(
        {reinterpret_cast<const std::byte*>(texts.front().data()), static_cast<size_t>(end - texts.front().data())});
  }

  void check_count(std::string_view key, size_t count) const {
    if (count != static_cast<size_t>(vocabulary_.size())) {
      fail(fmt::format("has {} entries in {} for {} tokens", count, key, vocabulary_.size()));
    }
  }

  void read_kinds() {
    if (!file_.has(kKinds)) {
      vocabulary_.kinds.assign(static_cast<size_t>(vocabulary_.size()), kNormalToken);
      return;
    }
    const std::vector<int32_t> numbers = file_.integers(kKinds);
    check_count(kKinds, numbers.size());
    vocabulary_.kinds.resize(numbers.size());
    std::transform(numbers.begin(), numbers.end(), vocabulary_.kinds.begin(), kind_of);
  }

  void read_scores() {
    if (!file_.has(kScores)) return;
    vocabulary_.scores = file_.reals(kScores);
    check_count(kScores, vocabulary_.scores.size());
    for (float score : vocabulary_.scores) {
      if (std::isnan(score)) fail(fmt::format("has a score in {} that is not a number", kScores));
    }
  }

  int32_t special_id(std::string_view key, int32_t fallback) const {
    if (fallback >= vocabulary_.size()) fallback = -1;
    return static_cast<int32_t>(file_.integer(key, 0, vocabulary_.size() - 1, fallback));
  }

  void mark_control(int32_t id) { vocabulary_.kinds[static_cast<size_t>(id)] |= kControlToken; }

  void find_ends() {
    std::vector<int32_t>& ends = vocabulary_.ends;
    if (vocabulary_.eos >= 0) ends.push_back(vocabulary_.eos);
    for (const Role& role : roles()) {
      int32_t id = special_id(role.key, -1);
      for (auto text = role.texts.begin(); id < 0 && text != role.texts.end(); ++text) {
        id = vocabulary_.tokens.find(*text);
        if (id >= 0) mark_control(id);
      }
      if (id >= 0 && role.ends) ends.push_back(id);
    }
    for (std::string_view text : kEndTexts) {
      const int32_t id = vocabulary_.tokens.find(text);
      if (id < 0) continue;
      mark_control(id);
      ends.push_back(id);
    }
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  }

  const Gguf& file_;
  const VocabularyDefaults& defaults_;
  Vocabulary vocabulary_;
};

}  // namespace

Vocabulary read_vocabulary(const Gguf& file, const VocabularyDefaults& defaults) {
  return Reader(file, defaults).read();
}

}  // namespace attend
