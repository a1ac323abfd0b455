// SentencePiece's byte-pair encoding (Kudo and Richardson 2018, arXiv:1808.06226) with byte fallback: spaces are
// written as U+2581, the text is cut into characters, then the pair of neighbours whose joined text is the token with
// the highest score is joined, the leftmost of equals, until no pair is a token. What is no token then becomes bytes.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "lm/gguf_parser.h"
#include "lm/tokenizers.h"

namespace attend {
namespace {

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

// A character's bytes by its lead byte alone, so that any bytes can be cut up.
size_t length_by_lead(char c) {
  const auto lead = static_cast<unsigned char>(c);
  return lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;
}

class SpmTokenizer final : public VocabularyTokenizer {
 public:
  explicit SpmTokenizer(const Gguf& file)
      : VocabularyTokenizer(file, {.bos = 1, .eos = 2, .unknown = 0, .adds_bos = true, .adds_space = true}) {
    if (vocabulary_.scores.empty()) fail_gguf(file.name(), "lacks the key tokenizer.ggml.scores");
    for (unsigned byte = 0; byte < 256; ++byte) {
      int32_t id = vocabulary_.tokens.find(fmt::format("<0x{:02X}>", byte));
      const char c = static_cast<char>(byte);
      if (id < 0) id = vocabulary_.tokens.find({&c, 1});
      bytes_[byte] = id < 0 ? vocabulary_.unknown : id;
    }
    for (int32_t id = 0; id < size_; ++id) longest_ = std::max(longest_, vocabulary_.text(id).size());
  }

 private:
  struct Symbol {
    size_t begin, bytes;  // bytes 0: merged into its left neighbour
    int64_t previous, next;
  };
  struct Candidate {
    float score;
    int64_t left, right;
    size_t bytes;
    bool operator<(const Candidate& other) const {  // the top of a heap is its greatest
      return score != other.score ? score < other.score : left > other.left;
    }
  };
  struct Work {
    std::string text;
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  void add_candidate(int64_t left, int64_t right, Work& work) const {
    if (left < 0 || right < 0) return;
    const Symbol &a = work.symbols[static_cast<size_t>(left)], &b = work.symbols[static_cast<size_t>(right)];
    const size_t bytes = a.bytes + b.bytes;
    if (bytes > longest_) return;
    const int32_t id = vocabulary_.tokens.find({work.text.data() + a.begin, bytes});
    if (id < 0) return;
    work.heap.push_back({vocabulary_.scores[static_cast<size_t>(id)], left, right, bytes});
    std::push_heap(work.heap.begin(), work.heap.end());
  }

  void encode_text(std::string_view text, bool first, std::vector<int32_t>& out) const override {
    Work work;
    work.text.reserve(text.size() + text.size() / 2);
    if (first && vocabulary_.adds_space) work.text.append(kSpaceMark);
    for (char c : text) {
      if (c == ' ') {
        work.text.append(kSpaceMark);
      } else {
        work.text.push_back(c);
      }
    }
    cut_characters(work);
    merge(work);
    for (const Symbol& symbol : work.symbols) {
      if (symbol.bytes > 0) append_symbol({work.text.data() + symbol.begin, symbol.bytes}, out);
    }
  }

  static void cut_characters(Work& work) {
    for (size_t at = 0; at < work.text.size();) {
      const size_t bytes = std::min(length_by_lead(work.text[at]), work.text.size() - at);
      const auto index = static_cast<int64_t>(work.symbols.size());
      work.symbols.push_back({at, bytes, index - 1, index + 1});
      at += bytes;
    }
    if (!work.symbols.empty()) work.symbols.back().next = -1;
  }

  void merge(Work& work) const {
    std::vector<Symbol>& symbols = work.symbols;
    for (size_t i = 1; i < symbols.size(); ++i) {
      add_candidate(static_cast<int64_t>(i) - 1, static_cast<int64_t>(i), work);
    }
    while (!work.heap.empty()) {
      std::pop_heap(work.heap.begin(), work.heap.end());
      const Candidate best = work.heap.back();
      work.heap.pop_back();
      Symbol& left = symbols[static_cast<size_t>(best.left)];
      Symbol& right = symbols[static_cast<size_t>(best.right)];
      if (left.bytes == 0 || right.bytes == 0 || left.bytes + right.bytes != best.bytes) continue;
      left.bytes += right.bytes;
      right.bytes = 0;
      left.next = right.next;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
      add_candidate(left.previous, best.left, work);
      add_candidate(best.left, left.next, work);
    }
  }

  void append_symbol(std::string_view text, std::vector<int32_t>& out) const {
    const int32_t id = vocabulary_.tokens.find(text);
    if (id >= 0) return out.push_back(id);
    for (char c : text) {
      const int32_t byte = bytes_[static_cast<unsigned char>(c)];
      if (byte >= 0) out.push_back(byte);
    }
  }

  std::string unescape(std::string_view text) const override {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const bool mark = text.substr(at).starts_with(kSpaceMark);
      out.push_back(mark ? ' ' : text[at]);
      at += mark ? kSpaceMark.size() : 1;
    }
    return out;
  }

  std::array<int32_t, 256> bytes_{};  // -1: the vocabulary has nothing for this byte
  size_t longest_ = 0;
};

}  // namespace

std::unique_ptr<Tokenizer> make_spm_tokenizer(const Gguf& file) {
  return std::make_unique<SpmTokenizer>(file);
}

}  // namespace attend
