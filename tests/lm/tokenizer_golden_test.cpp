// Every recorded tokenization of the two models. The recordings' `note` says how they were made.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "attend/lm/tokenizer.h"
#include "support/model_file.h"

namespace attend {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

struct Model {
  const char *name, *file;
};

std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

class TokenizerGolden : public testing::TestWithParam<Model> {
 protected:
  void SetUp() override {
    const std::filesystem::path path = test::model_file(GetParam().file);
    ASSERT_FALSE(path.empty());
    tokenizer_ = make_tokenizer(Gguf::open(path));
    std::ifstream in(std::string(ATTEND_TEST_DATA) + "/golden/" + GetParam().name + "/tokenization.json");
    golden_ = json::parse(in);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  json golden_;
};

TEST_P(TokenizerGolden, Vocabulary) {
  const json& facts = golden_.at("vocab");
  EXPECT_EQ(tokenizer_->size(), facts.at("n_tokens"));
  EXPECT_EQ(tokenizer_->bos(), facts.at("bos"));
  EXPECT_EQ(tokenizer_->adds_bos(), facts.at("add_bos"));
  Ids ends;
  for (int32_t id = 0; id < tokenizer_->size(); ++id) {
    if (tokenizer_->is_end(id)) ends.push_back(id);
  }
  EXPECT_EQ(ends, facts.at("eog").get<Ids>());
}

TEST_P(TokenizerGolden, Pieces) {
  const json& pieces = golden_.at("pieces_hex");
  ASSERT_FALSE(pieces.empty());
  for (const auto& [id, piece] : pieces.items()) {
    EXPECT_EQ(tokenizer_->piece(std::stoi(id), true), from_hex(piece.at("special"))) << id;
    EXPECT_EQ(tokenizer_->piece(std::stoi(id), false), from_hex(piece.at("nospecial"))) << id;
  }
}

TEST_P(TokenizerGolden, Cases) {
  const json& cases = golden_.at("cases");
  ASSERT_FALSE(cases.empty());
  for (const json& c : cases) {
    SCOPED_TRACE(c.at("hex").get<std::string>());
    const std::string text = from_hex(c.at("hex"));
    for (const bool special : {false, true}) {
      const std::string suffix = special ? "_special" : "_plain";
      const Ids wanted = c.at("ids" + suffix).get<Ids>();
      EXPECT_EQ(tokenizer_->encode(text, true, special), wanted);
      const json& bare = c.at("ids_nobos" + suffix);
      const bool skips_first = bare.is_string() && !wanted.empty();  // "ids[1:]"
      const Ids wanted_bare = bare.is_string() ? Ids(wanted.begin() + skips_first, wanted.end()) : bare.get<Ids>();
      EXPECT_EQ(tokenizer_->encode(text, false, special), wanted_bare);

      EXPECT_EQ(tokenizer_->decode(wanted, true), from_hex(c.at("detok_full_hex" + suffix)));
      EXPECT_EQ(tokenizer_->decode(wanted, false), from_hex(c.at("detok_hidden_hex" + suffix)));
    }
  }
}

// A stream of pieces ends up as the text, and each thing it emits is whole characters.
TEST_P(TokenizerGolden, Streams) {
  for (const json& c : golden_.at("cases")) {
    if (c.at("text").is_null()) continue;
    const Ids ids = c.at("ids_plain").get<Ids>();
    Utf8Stream stream;
    std::string out;
    for (int32_t id : ids) {
      const std::string part = stream.push(tokenizer_->piece(id, false));
      EXPECT_EQ(to_valid_utf8(part), part);
      out += part;
    }
    EXPECT_EQ(stream.finish(), "");
    EXPECT_EQ(out, from_hex(c.at("detok_hidden_hex_plain")));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TokenizerGolden,
                         testing::Values(Model{"smollm2-135m", test::kSmollmFile},
                                         Model{"gemma3-270m", test::kGemmaFile}),
                         [](const auto& model) { return std::string(model.index ? "Gemma" : "Smollm"); });

}  // namespace
}  // namespace attend
