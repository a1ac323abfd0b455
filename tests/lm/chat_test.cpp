#include "attend/lm/chat.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "attend/lm/tokenizer.h"
#include "support/expect_error.h"
#include "support/model_file.h"

namespace attend {
namespace {

constexpr const char* kPlain =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const std::vector<ChatMessage> kDialogue = {{"user", "Hi"}, {"assistant", "Hello!"}, {"user", " Bye\n"}};

TEST(Chat, SmollmsOwnTemplate) {
  const auto path = test::model_file(test::kSmollmFile);
  ASSERT_FALSE(path.empty());
  const auto tokenizer = make_tokenizer(Gguf::open(path));
  const ChatFormat chat(tokenizer->chat_template(), "smollm");
  EXPECT_EQ(chat.render(kDialogue),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
            "<|im_start|>user\n Bye\n<|im_end|>\n<|im_start|>assistant\n");
  const std::vector<ChatMessage> own = {{"system", "Be brief."}, {"user", "Hi"}};
  const std::string text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n";
  EXPECT_EQ(chat.render(own, false), text);
  EXPECT_EQ(chat.render(own), text + "<|im_start|>assistant\n");

  // Each mark is one token, so that the model sees its turns.
  const auto ids = tokenizer->encode(chat.render(own), true, true);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 3);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 2);
}

TEST(Chat, GemmasFileHasNoTemplate) {
  const auto path = test::model_file(test::kGemmaFile);
  ASSERT_FALSE(path.empty());
  const auto tokenizer = make_tokenizer(Gguf::open(path));
  test::expect_error(ErrorKind::kUnsupported, "[chat] model = gemma, has no chat template",
                     [&] { ChatFormat(tokenizer->chat_template(), "gemma"); });
}

TEST(Chat, PlainChatMl) {
  const ChatFormat chat(kPlain, "m");
  EXPECT_EQ(chat.render(kDialogue, false),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
            "<|im_start|>user\n Bye\n<|im_end|>\n");
  EXPECT_EQ(chat.render({}), "<|im_start|>assistant\n");
  const std::vector<ChatMessage> nobody = {{"", "Hi"}};
  test::expect_error(ErrorKind::kArgument, "role", [&] { chat.render(nobody); });
}

TEST(Chat, OtherTemplatesAreRefused) {
  const std::string plain = kPlain;
  for (const std::string& other :
       {std::string("{{ messages }}"), plain + "x", plain.substr(1), "\n" + plain, std::string(1, '\0'),
        std::string("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ 'a"),
        std::string("{% for message in messages %}")}) {
    test::expect_error(ErrorKind::kUnsupported, "not known; known: ChatML", [&] { ChatFormat(other, "m"); });
  }
}

}  // namespace
}  // namespace attend
