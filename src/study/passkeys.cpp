#include "attend/study/passkeys.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <random>

#include "attend/tensor/error.h"

namespace attend {
namespace {

constexpr std::array<std::string_view, 26> kAlphabet = {
    "alpha",   "bravo", "charlie", "delta",  "echo",     "foxtrot", "golf",   "hotel",  "india",
    "juliett", "kilo",  "lima",    "mike",   "november", "oscar",   "papa",   "quebec", "romeo",
    "sierra",  "tango", "uniform", "victor", "whiskey",  "xray",    "yankee", "zulu"};
constexpr std::array<std::string_view, 20> kOrdinals = {
    "first",     "second",    "third",       "fourth",     "fifth",      "sixth",      "seventh",
    "eighth",    "ninth",     "tenth",       "eleventh",   "twelfth",    "thirteenth", "fourteenth",
    "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"};
constexpr int64_t kMostWords = 1024;

std::string needle(size_t index, const std::string& words) {
  return fmt::format("Remember these words, they are the {} passkey of the vault:{}", kOrdinals[index], words);
}
std::string question(size_t index) {
  return fmt::format("From what the book says, which words are the {} passkey of the vault?\nPasskey:",
                     kOrdinals[index]);
}

void append(std::vector<int32_t>& to, std::span<const int32_t> from) {
  to.insert(to.end(), from.begin(), from.end());
}

// Below `bound`; the same on every machine. The bias is below 2^-32.
uint64_t below(std::mt19937_64& random, uint64_t bound) {
  return (random() >> 32) * bound >> 32;
}

std::string draw_words(std::mt19937_64& random, int64_t count) {
  std::string words;
  for (int64_t i = 0; i < count; ++i) words.append(" ").append(kAlphabet[below(random, kAlphabet.size())]);
  return words;
}

}  // namespace

PasskeyTexts::PasskeyTexts(const Tokenizer& tokenizer, std::string_view haystack, const PasskeyOptions& options)
    : tokenizer_(tokenizer), options_(options) {
  auto require = [](bool holds, std::string_view argument, const std::string& got, std::string_view rule) {
    if (!holds) throw Error(ErrorKind::kArgument, "passkeys", argument, got, rule);
  };
  require(options.passkeys >= 1 && options.passkeys <= static_cast<int64_t>(kOrdinals.size()), "passkeys",
          std::to_string(options.passkeys), "must be 1 to 20");
  require(options.words >= 1 && options.words <= kMostWords, "words", std::to_string(options.words),
          "must be 1 to 1024");
  require(options.shallowest >= 0 && options.shallowest <= options.deepest && options.deepest <= 1, "depths",
          fmt::format("{}..{}", options.shallowest, options.deepest), "must lie in 0..1");
  haystack_ = encode(haystack);
  require(!haystack_.empty(), "haystack", "empty", "must hold at least one token");
  begin_ = tokenizer.encode("This is a long book: <book> ");
  end_ = encode(" </book>\n\n");
  gap_ = encode("\n\n");
  // The longest passkey is no longer than its longest word as often.
  int64_t longest = 0;
  for (std::string_view word : kAlphabet)
    longest = std::max(longest, static_cast<int64_t>(encode(fmt::format(" {}", word)).size()));
  shortest_ = static_cast<int64_t>(begin_.size() + end_.size());
  for (size_t i = 0; i < static_cast<size_t>(options.passkeys); ++i)
    shortest_ += static_cast<int64_t>(encode(needle(i, "")).size() + encode(question(i)).size() + 3 * gap_.size() + 1) +
                 2 * options.words * longest;
}

PasskeyText PasskeyTexts::draw(int64_t length, uint64_t seed) const {
  if (length < shortest_)
    throw Error(ErrorKind::kArgument, "passkeys", "length", std::to_string(length),
                fmt::format("must be at least {}: passkeys and questions take as much", shortest_));
  std::mt19937_64 random(seed);
  const size_t count = static_cast<size_t>(options_.passkeys);
  std::vector<std::vector<int32_t>> needles;
  std::vector<int32_t> asked;
  std::vector<double> depths;
  size_t needle_tokens = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string words = draw_words(random, options_.words);
    needles.push_back(gap_);
    append(needles.back(), encode(needle(i, words)));
    append(needles.back(), gap_);
    needle_tokens += needles.back().size();
    append(asked, encode(question(i) + words));
    append(asked, gap_);
    depths.push_back(options_.shallowest +
                     (options_.deepest - options_.shallowest) * static_cast<double>(random() >> 11) * 0x1p-53);
  }
  std::sort(depths.begin(), depths.end());
  // Texts of one length begin at different places of the haystack.
  const size_t hay = static_cast<size_t>(length) - begin_.size() - end_.size() - needle_tokens - asked.size();
  const size_t offset = below(random, haystack_.size());
  PasskeyText text;
  text.ids = begin_;
  size_t next = 0;
  for (size_t i = 0; i < hay; ++i) {
    for (; next < count && depths[next] * static_cast<double>(hay) <= static_cast<double>(i); ++next)
      append(text.ids, needles[next]);
    text.ids.push_back(haystack_[(offset + i) % haystack_.size()]);
  }
  for (; next < count; ++next) append(text.ids, needles[next]);
  append(text.ids, end_);
  append(text.ids, asked);
  text.asked = static_cast<int64_t>(asked.size());
  return text;
}

}  // namespace attend
