#include "attend/lm/chat.h"

#include <algorithm>

#include "attend/tensor/error.h"
#include "attend/tensor/text.h"

namespace attend {
namespace {

// A ChatML template, as the files write it: kBegin, perhaps kIfNoSystem TEXT kEndIf, kEachMessage.
constexpr std::string_view kBegin = "{% for message in messages %}";
constexpr std::string_view kIfNoSystem = "{% if loop.first and messages[0]['role'] != 'system' %}{{ '";
constexpr std::string_view kEndIf = "' }}{% endif %}";
constexpr std::string_view kEachMessage =
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// Line feeds stand in the literals as they are or as \n.
std::string with_line_feeds(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape = text.substr(i).starts_with("\\n");
    out.push_back(escape ? '\n' : text[i]);
    i += escape;
  }
  return out;
}

bool remove_prefix(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

}  // namespace

ChatFormat::ChatFormat(std::string_view chat_template, std::string_view model) {
  if (chat_template.empty()) {
    throw Error(ErrorKind::kUnsupported, "chat", "model", printable(model), "has no chat template");
  }
  const std::string plain = with_line_feeds(chat_template);
  std::string_view rest = plain;
  bool known = remove_prefix(rest, kBegin);
  if (known && remove_prefix(rest, kIfNoSystem)) {
    const size_t end = rest.find('\'');
    opening_ = rest.substr(0, end);
    rest.remove_prefix(std::min(end, rest.size()));
    known = remove_prefix(rest, kEndIf) && opening_.find('\\') == std::string::npos;
  }
  while (rest.ends_with('\n')) rest.remove_suffix(1);
  if (!known || rest != kEachMessage) {
    throw Error(ErrorKind::kUnsupported, "chat", "model", printable(model),
                "has a chat template that is not known; known: ChatML as SmolLM2 writes it, with or without a default "
                "system message");
  }
}

std::string ChatFormat::render(std::span<const ChatMessage> messages, bool answer) const {
  std::string out;
  if (!messages.empty() && messages.front().role != "system") out = opening_;
  for (const ChatMessage& message : messages) {
    if (message.role.empty()) throw Error(ErrorKind::kArgument, "chat", "role", "\"\"", "must not be empty");
    out.append("<|im_start|>").append(message.role).append("\n");
    out.append(message.content).append("<|im_end|>\n");
  }
  if (answer) out.append("<|im_start|>assistant\n");
  return out;
}

}  // namespace attend
