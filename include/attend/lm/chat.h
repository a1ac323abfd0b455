#pragma once
// Conversations as a model was trained to read them.
#include <span>
#include <string>
#include <string_view>

namespace attend {

struct ChatMessage {
  std::string role;  // "system", "user" or "assistant"
  std::string content;
};

// A model's chat template. Known are ChatML templates, with or without a default system message:
//
//   <|im_start|>ROLE\nCONTENT<|im_end|>\n     for each message, then <|im_start|>assistant\n for the answer
class ChatFormat {
 public:
  // `chat_template` as the model's file has it; `model` is for messages. Throws Error(kUnsupported) for a model without
  // a template and for a template that is not known.
  ChatFormat(std::string_view chat_template, std::string_view model);

  // Text of the messages, to be encoded with special tokens: those written in a content count too. With `answer`, ends
  // where the assistant's answer begins. A default system message comes first unless the first message is one.
  // Throws Error(kArgument) for a message without a role.
  std::string render(std::span<const ChatMessage> messages, bool answer = true) const;

 private:
  std::string opening_;  // before a conversation that begins with another role than system
};

}  // namespace attend
