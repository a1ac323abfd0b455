#include "attend/lm/tokenizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "attend/tensor/text.h"
#include "support/expect_error.h"
#include "support/small_vocabulary.h"

namespace attend {
namespace {

using test::as_bytes;
using test::GgufWriter;
using test::SmallToken;
using Ids = std::vector<int32_t>;

std::unique_ptr<Tokenizer> tokenizer_of(const GgufWriter& w) {
  const std::string bytes = w.bytes();  // gone when the tokenizer is used
  return make_tokenizer(Gguf::parse(as_bytes(bytes), "sample"));
}

std::unique_ptr<Tokenizer> bpe(std::string_view pre = "smollm") {
  GgufWriter w;
  test::write_small_bpe(w, pre);
  return tokenizer_of(w);
}

std::unique_ptr<Tokenizer> spm(bool adds_space = false) {
  GgufWriter w;
  test::write_small_spm(w, adds_space);
  return tokenizer_of(w);
}

// The tokens of a text, each by its bytes, joined by '|': what a person reads off the merges.
std::string cut(const Tokenizer& tokenizer, std::string_view text, bool bos = false, bool special = false) {
  std::string out;
  for (int32_t id : tokenizer.encode(text, bos, special)) out += (out.empty() ? "" : "|") + tokenizer.piece(id, true);
  return out;
}

TEST(BpeTokenizer, MergesByRankWithinWords) {
  const auto t = bpe();
  EXPECT_EQ(cut(*t, "the hello"), "the| |hello");
  EXPECT_EQ(cut(*t, "hello the"), "hello| the");
  EXPECT_EQ(cut(*t, "hell"), "hell");
  EXPECT_EQ(cut(*t, "ooo"), "oo|o");  // the leftmost of equals
  EXPECT_EQ(cut(*t, "thh"), "th|h");
  EXPECT_EQ(cut(*t, "it's"), "i|t|'s");
  EXPECT_EQ(cut(*t, "     x"), "  |  | |x");  // four spaces, then one that goes with x
  EXPECT_EQ(cut(*t, "x     "), "x|  |  | ");
  EXPECT_EQ(t->encode("", true, true), Ids{});
}

TEST(BpeTokenizer, SmollmTakesNumbersOneByOneGpt2Together) {
  // A merge of two spaces shows where words begin: " 1" is one word for gpt2, so it takes a space from the run.
  EXPECT_EQ(cut(*bpe("smollm"), "  12"), "  |1|2");
  EXPECT_EQ(cut(*bpe("gpt2"), "  12"), " | |1|2");
  EXPECT_EQ(cut(*bpe("gpt-2"), "  12"), " | |1|2");
}

TEST(BpeTokenizer, SpecialTokens) {
  const auto t = bpe();
  EXPECT_EQ(t->encode("<|im_start|>the<|im_end|>", true, true), (Ids{1, 260, 2}));
  EXPECT_EQ(t->encode("<|im_start|>", true, false).size(), 12u);
  EXPECT_EQ(t->encode("<|im_start<|im_end|>", false, true).back(), 2);
  EXPECT_EQ(t->decode(Ids{1, 260, 2}, false), "the");
  EXPECT_EQ(t->decode(Ids{1, 260, 2}, true), "<|im_start|>the<|im_end|>");
  EXPECT_TRUE(t->is_end(0) && t->is_end(2));
  EXPECT_FALSE(t->is_end(1) || t->is_end(260) || t->is_end(-1));
  EXPECT_EQ(t->bos(), 1);
  EXPECT_FALSE(t->adds_bos());
}

TEST(BpeTokenizer, InvalidBytesAsLlamaCppReadsThem) {
  const auto t = bpe();
  const auto text_of = [&](std::string_view text) { return t->decode(t->encode(text), false); };
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(text_of("a\xff"
                    "b"),
            "a" + mark + "b");
  EXPECT_EQ(text_of("\xe4\xbd"), mark + mark);
  EXPECT_EQ(text_of("\xc0\xaf"), "/");
  EXPECT_EQ(text_of("\xed\xa0\x80"), "\xed\xa0\x80");
  EXPECT_EQ(text_of("\xf4\x90\x80\x80"), mark + mark + mark + mark);
}

TEST(SpmTokenizer, MergesByScore) {
  const auto t = spm();
  EXPECT_EQ(cut(*t, "the hello"), "the| |hello");
  EXPECT_EQ(cut(*t, "hello the"), "hello| the");
  EXPECT_EQ(cut(*t, "ooo"), "oo|o");
  EXPECT_EQ(cut(*t, "\xc3\xa9"), "\xc3\xa9");
  EXPECT_EQ(t->encode("", true), Ids{1});
  EXPECT_EQ(t->encode("", false), Ids{});
  // No token: bytes, which follow the three special tokens.
  EXPECT_EQ(t->encode("\xc3\xa8\xff", false), (Ids{3 + 0xc3, 3 + 0xa8, 3 + 0xff}));
}

TEST(SpmTokenizer, UserDefinedTokensAlwaysMatchLongestFirst) {
  const auto t = spm();
  EXPECT_EQ(cut(*t, "a<b>the</b>\n\n\n\n\na"), "a|<b>|the|</b>|\n\n\n|\n\n|a");
  EXPECT_EQ(cut(*t, "a     the"), "a|   |  |the");
  EXPECT_EQ(cut(*t, "<bos>").find("<bos>"), std::string::npos);
  EXPECT_EQ(t->encode("<bos><b>", true, true), (Ids{1, 1, 263}));
}

TEST(SpmTokenizer, SpaceBeforeTheText) {
  const auto t = spm(true);
  EXPECT_EQ(cut(*t, "the", true), "<bos>| the");
  EXPECT_EQ(t->decode(t->encode("the"), false), "the");
  EXPECT_EQ(t->decode(t->encode("the"), true), "<bos> the");
  EXPECT_EQ(t->decode(t->encode(" the"), false), " the");
  EXPECT_EQ(t->encode("", true), Ids{1});
}

TEST(SpmTokenizer, SpaceMarkIsASpace) {
  EXPECT_EQ(spm()->decode(spm()->encode("\xe2\x96\x81the"), false), " the");
}

TEST(Tokenizer, IdsOutsideTheVocabulary) {
  const auto t = spm();
  for (int32_t id : {-1, t->size(), INT32_MAX, INT32_MIN}) {
    test::expect_error(ErrorKind::kArgument, "is outside the vocabulary", [&] { t->piece(id, true); });
    test::expect_error(ErrorKind::kArgument, "is outside the vocabulary", [&] { t->decode(Ids{1, id}, false); });
    EXPECT_FALSE(t->is_end(id));
  }
}

// Valid text comes back, whatever it is made of.
TEST(Tokenizer, RoundTrip) {
  const uint32_t seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 random(seed);
  const std::vector<std::string> parts = {"the",
                                          " ",
                                          "  ",
                                          "\n",
                                          "\t",
                                          "hello",
                                          "'s",
                                          "'re",
                                          "1",
                                          "23",
                                          "\xc3\xa9",
                                          "\xc2\xa0",
                                          "\xe3\x80\x80",
                                          "\xe4\xbd\xa0",
                                          "\xf0\x9f\x98\x80",
                                          "<|im_end|>",
                                          "<b>",
                                          "</b>",
                                          "<bos>",
                                          "\xd9\xa3",
                                          "\xe2\x85\xa7",
                                          ".",
                                          "!?",
                                          "\r",
                                          "\x01"};
  const auto smollm = bpe(), gpt2 = bpe("gpt2"), plain = spm(), spaced = spm(true);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (size_t n = random() % 12; n > 0; --n) text += parts[random() % parts.size()];
    SCOPED_TRACE(printable(text));
    for (const auto* t : {&smollm, &gpt2, &plain}) {
      for (bool special : {false, true}) EXPECT_EQ((*t)->decode((*t)->encode(text, false, special), true), text);
    }
    // A user-defined token is followed by a space of the encoder's own here.
    if (text.find('<') == std::string::npos && text.find("  ") == std::string::npos &&
        text.find("\n\n") == std::string::npos) {
      EXPECT_EQ(spaced->decode(spaced->encode(text), false), text);
    }
  }
}

// Long runs without a word boundary are where a quadratic merge would show: this would not end.
TEST(Tokenizer, LongWordsAndRuns) {
  for (const auto& t : {bpe(), bpe("gpt2"), spm()}) {
    for (const char* unit : {"a", " ", "\n", "hello", "\xff", "<b>", "'", "9"}) {
      std::string text;
      while (text.size() < 200'000) text += unit;
      const Ids ids = t->encode(text, false, true);
      EXPECT_GT(ids.size(), 10'000u);
      if (is_valid_utf8(text)) {
        EXPECT_EQ(t->decode(ids, true), text);
      }
    }
  }
}

void refused(ErrorKind kind, std::string_view part, const GgufWriter& w) {
  test::expect_error(kind, part, [&] { tokenizer_of(w); });
}

TEST(TokenizerHostile, UnknownKinds) {
  GgufWriter w;
  refused(ErrorKind::kFile, "lacks the key tokenizer.ggml.model", w);
  w.text("tokenizer.ggml.model", "be\x1brt");
  refused(ErrorKind::kUnsupported, "= be\\x1brt, is not supported; supported: gpt2 (byte-level BPE), llama", w);
  w = {};
  test::write_small_bpe(w, "qwen2");
  refused(ErrorKind::kUnsupported, "tokenizer.ggml.pre = qwen2, is not supported; supported: smollm, gpt2", w);
}

// A SentencePiece file with the tokens given and one key more.
GgufWriter spm_with(const std::vector<SmallToken>& tokens, auto add) {
  GgufWriter w;
  w.text("tokenizer.ggml.model", "llama");
  test::write_tokens(w, tokens, true);
  add(w);
  return w;
}

TEST(TokenizerHostile, ContradictoryVocabularies) {
  const auto tokens = test::small_spm_tokens();
  const auto nothing = [](GgufWriter&) {};
  EXPECT_NO_THROW(tokenizer_of(spm_with(tokens, nothing)));
  refused(ErrorKind::kFile, "has an empty vocabulary", spm_with({}, nothing));
  auto twice = tokens;
  twice.push_back({"the", 1});
  refused(ErrorKind::kFile, "has the token 'the' twice", spm_with(twice, nothing));
  auto byte = tokens;
  byte[5].text = "<0x2>";
  refused(ErrorKind::kFile, "has a byte token '<0x2>'", spm_with(byte, nothing));
  auto score = tokens;
  score[5].score = NAN;
  refused(ErrorKind::kFile, "not a number", spm_with(score, nothing));
  refused(ErrorKind::kFile, "bos_token_id is 100000, not within 0 to",
          spm_with(tokens, [](GgufWriter& w) { w.u32("tokenizer.ggml.bos_token_id", 100000); }));
  refused(ErrorKind::kFile, "eos_token_id is -1, not within",
          spm_with(tokens, [](GgufWriter& w) { w.i64("tokenizer.ggml.eos_token_id", -1); }));
  refused(ErrorKind::kFile, "is of type u32, not bool",
          spm_with(tokens, [](GgufWriter& w) { w.u32("tokenizer.ggml.add_bos_token", 1); }));

  GgufWriter w;
  w.text("tokenizer.ggml.model", "llama");
  w.texts("tokenizer.ggml.tokens", {"a", "b"});
  refused(ErrorKind::kFile, "lacks the key tokenizer.ggml.scores", w);
  w.reals("tokenizer.ggml.scores", {1});
  refused(ErrorKind::kFile, "has 1 entries in tokenizer.ggml.scores for 2 tokens", w);
  w = {};
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", "gpt2");
  w.texts("tokenizer.ggml.tokens", {"a", "b"});
  w.integers("tokenizer.ggml.token_type", {1, 1, 1});
  refused(ErrorKind::kFile, "has 3 entries in tokenizer.ggml.token_type for 2 tokens", w);
  w = {};
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", "gpt2");
  w.texts("tokenizer.ggml.tokens", {"a", "b"});
  refused(ErrorKind::kFile, "lacks the key tokenizer.ggml.merges", w);
  w.flag("tokenizer.ggml.add_bos_token", true);
  refused(ErrorKind::kFile, "wants a BOS token added and names none", w);
  for (const char* merge : {"", " ", "ab", "a ", " a"}) {
    w = {};
    w.text("tokenizer.ggml.model", "gpt2");
    w.text("tokenizer.ggml.pre", "gpt2");
    w.texts("tokenizer.ggml.tokens", {"a", "b"});
    w.texts("tokenizer.ggml.merges", {merge});
    refused(ErrorKind::kFile, "that is no pair (number 0", w);
  }
}

TEST(TokenizerHostile, PoorVocabulariesLoseWhatTheyLack) {
  GgufWriter w;
  w.text("tokenizer.ggml.model", "gpt2");
  w.text("tokenizer.ggml.pre", "gpt2");
  w.texts("tokenizer.ggml.tokens", {"a", "b", ""});
  w.texts("tokenizer.ggml.merges", {"a b", "x y"});  // "ab" is no token: it is spelled
  const auto t = tokenizer_of(w);
  EXPECT_EQ(t->encode("abxy\xc3\xa9"), (Ids{0, 1}));
  EXPECT_EQ(t->piece(2, true), "");
}

TEST(Utf8Stream, HoldsBackWhatIsUnfinished) {
  const std::string text = "a\xc3\xa9\xe4\xbd\xa0\xf0\x9f\x98\x80z";
  Utf8Stream stream;
  std::string out;
  for (char c : text) {
    const std::string part = stream.push({&c, 1});
    EXPECT_TRUE(is_valid_utf8(part));
    out += part;
  }
  EXPECT_EQ(out, text);
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push("\xf0\x9f\x98"), "");
  EXPECT_EQ(stream.finish(), "\xf0\x9f\x98");
  EXPECT_EQ(stream.finish(), "");
  // What no byte can mend is not held back.
  for (std::string_view broken : {"\xff", "\xc0", "\xf5\x80", "\xe0\x80", "\x80\x80\x80\x80", "\xed\xa0"}) {
    EXPECT_EQ(stream.push(broken), broken);
  }
  EXPECT_EQ(stream.push("\xe4"), "");
  EXPECT_EQ(stream.push("a"),
            "\xe4"
            "a");
}

TEST(ToValidUtf8, ReplacesByMaximalSubparts) {
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(to_valid_utf8(""), "");
  EXPECT_EQ(to_valid_utf8("a\xc3\xa9"), "a\xc3\xa9");
  // The example of the Unicode standard, table 3-8.
  EXPECT_EQ(to_valid_utf8("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41"),
            mark + mark + mark + mark + mark + mark + mark + mark + "A");
  EXPECT_EQ(to_valid_utf8("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41"), mark + mark + mark + mark + "A");
}

}  // namespace
}  // namespace attend
