// Byte-level byte-pair encoding (Sennrich et al. 2015, arXiv:1508.07909; the byte alphabet is that of GPT-2): every
// byte of a word is written as one printable character, then the pair of neighbours with the lowest rank in the list of
// merges is joined, the leftmost of equals, until no pair is in the list.
#include <fmt/format.h>

#include <array>
#include <unordered_map>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"
#include "lm/gguf_parser.h"
#include "lm/pre_tokenizer.h"
#include "lm/tokenizers.h"

namespace attend {
namespace {

// Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards in ascending order.
bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct ByteAlphabet {
  ByteAlphabet() {
    char32_t next = 0x100;
    byte_of.fill(-1);
    for (unsigned byte = 0; byte < 256; ++byte) {
      const char32_t code = stands_for_itself(byte) ? byte : next++;
      append_utf8(text[byte], code);
      byte_of[code] = static_cast<int16_t>(byte);
    }
  }
  std::array<std::string, 256> text;
  std::array<int16_t, 0x200> byte_of;  // by code; -1: stands for no byte
};

const ByteAlphabet& byte_alphabet() {
  static const ByteAlphabet alphabet;
  return alphabet;
}

PreTokenizer pre_tokenizer_of(const Gguf& file) {
  const std::string_view name = file.text("tokenizer.ggml.pre", "");
  if (name == "smollm") return PreTokenizer::kSmollm;
  for (std::string_view alias : {"gpt2", "gpt-2", "phi-2", "olmo", "mpt", "jais", "trillion"}) {
    if (name == alias) return PreTokenizer::kGpt2;
  }
  throw Error(ErrorKind::kUnsupported, "tokenizer", "tokenizer.ggml.pre", printable(name),
              "is not supported; supported: smollm, gpt2");
}

// Pairs of symbols that merge, by open addressing.
class MergeTable {
 public:
  struct Merge {
    uint64_t pair = kEmpty;
    int32_t rank = 0, result = 0;
  };

  explicit MergeTable(size_t count) {
    size_t capacity = 16;
    while (capacity < count * 2) capacity *= 2;
    slots_.resize(capacity);
  }

  // The first of equal pairs counts.
  void add(int32_t left, int32_t right, int32_t rank, int32_t result) {
    Merge& slot = slots_[place(pair_of(left, right))];
    if (slot.pair == kEmpty) slot = {pair_of(left, right), rank, result};
  }

  const Merge* find(int32_t left, int32_t right) const {
    const Merge& slot = slots_[place(pair_of(left, right))];
    return slot.pair == kEmpty ? nullptr : &slot;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  static uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  }

  size_t place(uint64_t pair) const {
    uint64_t hash = pair * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 32;
    size_t i = hash & (slots_.size() - 1);
    while (slots_[i].pair != pair && slots_[i].pair != kEmpty) i = (i + 1) & (slots_.size() - 1);
    return i;
  }

  std::vector<Merge> slots_;
};

// What merging one word needs, kept between words.
struct Work {
  struct Symbol {
    int32_t id, previous, next;  // id -1: merged into its left neighbour
  };
  struct Candidate {
    int32_t rank, left, right, left_id, right_id, result;
    bool operator<(const Candidate& other) const {  // the top of a heap is its greatest
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

class BpeTokenizer final : public VocabularyTokenizer {
 public:
  explicit BpeTokenizer(const Gguf& file)
      : VocabularyTokenizer(file, {}), pre_(pre_tokenizer_of(file)), merges_(read_merges(file)) {
    for (size_t byte = 0; byte < 256; ++byte) bytes_[byte] = intern(byte_alphabet().text[byte]);
  }

 private:
  // Symbols are the vocabulary's ids and, above them, texts that occur in merges alone.
  int32_t intern(std::string_view text) {
    const int32_t id = vocabulary_.tokens.find(text);
    if (id >= 0) return id;
    const auto [found, fresh] = extra_ids_.try_emplace(std::string(text), size_ + static_cast<int32_t>(extra_.size()));
    if (fresh) extra_.push_back(found->first);
    return found->second;
  }

  MergeTable read_merges(const Gguf& file) {
    constexpr std::string_view kKey = "tokenizer.ggml.merges";
    const std::vector<std::string_view> texts = file.texts(kKey);
    if (texts.size() > size_t{1} << 24) fail_gguf(file.name(), fmt::format("has {} merges, too many", texts.size()));
    MergeTable table(texts.size());
    std::string joined;
    for (size_t rank = 0; rank < texts.size(); ++rank) {
      const std::string_view text = texts[rank];
      const size_t space = text.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == text.size()) {
        fail_gguf(file.name(),
                  fmt::format("has a merge '{}' that is no pair (number {} of {})", printable(text, 60), rank, kKey));
      }
      const std::string_view left = text.substr(0, space), right = text.substr(space + 1);
      joined.assign(left).append(right);
      // One after another: each may number a new symbol.
      const int32_t left_id = intern(left), right_id = intern(right), result = intern(joined);
      table.add(left_id, right_id, static_cast<int32_t>(rank), result);
    }
    return table;
  }

  void encode_text(std::string_view text, bool, std::vector<int32_t>& out) const override {
    std::string normalized;
    if (!is_valid_utf8(text)) text = normalized = normalize_for_bpe(text);
    std::vector<size_t> ends;
    split_words(text, pre_, ends);
    Work work;
    size_t begin = 0;
    for (size_t end : ends) {
      encode_word(text.substr(begin, end - begin), work, out);
      begin = end;
    }
  }

  void add_candidate(int32_t left, int32_t right, Work& work) const {
    if (left < 0 || right < 0) return;
    const int32_t left_id = work.symbols[static_cast<size_t>(left)].id;
    const int32_t right_id = work.symbols[static_cast<size_t>(right)].id;
    const MergeTable::Merge* merge = merges_.find(left_id, right_id);
    if (!merge) return;
    work.heap.push_back({merge->rank, left, right, left_id, right_id, merge->result});
    std::push_heap(work.heap.begin(), work.heap.end());
  }

  void encode_word(std::string_view word, Work& work, std::vector<int32_t>& out) const {
    std::vector<Work::Symbol>& symbols = work.symbols;
    const auto count = static_cast<int32_t>(word.size());
    symbols.clear();
    for (int32_t i = 0; i < count; ++i) {
      const int32_t id = bytes_[static_cast<unsigned char>(word[static_cast<size_t>(i)])];
      symbols.push_back({id, i - 1, i + 1 < count ? i + 1 : -1});
    }
    work.heap.clear();
    for (int32_t i = 1; i < count; ++i) add_candidate(i - 1, i, work);
    while (!work.heap.empty()) {
      std::pop_heap(work.heap.begin(), work.heap.end());
      const Work::Candidate best = work.heap.back();
      work.heap.pop_back();
      Work::Symbol& left = symbols[static_cast<size_t>(best.left)];
      Work::Symbol& right = symbols[static_cast<size_t>(best.right)];
      if (left.id != best.left_id || right.id != best.right_id || left.next != best.right) continue;
      left.id = best.result;
      left.next = right.next;
      right.id = -1;
      if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = best.left;
      add_candidate(left.previous, best.left, work);
      add_candidate(best.left, left.next, work);
    }
    for (const Work::Symbol& symbol : symbols) {
      if (symbol.id >= 0) append_symbol(symbol.id, out);
    }
  }

  // A symbol outside the vocabulary is spelled in single characters as far as the vocabulary has them; the rest is
  // lost (as in llama.cpp).
  void append_symbol(int32_t id, std::vector<int32_t>& out) const {
    if (id < size_) return out.push_back(id);
    for (const char& c : extra_[static_cast<size_t>(id - size_)]) {
      const int32_t single = vocabulary_.tokens.find({&c, 1});
      if (single >= 0) out.push_back(single);
    }
  }

  std::string unescape(std::string_view text) const override {
    std::string out;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = utf8_at(text, at);
      const int byte = c.valid && c.code < 0x200 ? byte_alphabet().byte_of[c.code] : -1;
      if (byte >= 0) {
        out.push_back(static_cast<char>(byte));
      } else {
        out.append(text.substr(at, static_cast<size_t>(c.bytes)));
      }
      at += static_cast<size_t>(c.bytes);
    }
    return out;
  }

  PreTokenizer pre_;
  std::unordered_map<std::string, int32_t> extra_ids_;
  std::vector<std::string> extra_;
  MergeTable merges_;
  std::array<int32_t, 256> bytes_{};
};

}  // namespace

std::unique_ptr<Tokenizer> make_bpe_tokenizer(const Gguf& file) {
  return std::make_unique<BpeTokenizer>(file);
}

}  // namespace attend
