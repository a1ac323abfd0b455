// Any chat template of a model file: known, or refused with attend::Error; what is known renders a conversation whose
// messages stand in it whole.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "attend/lm/chat.h"
#include "attend/tensor/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace attend;
  const std::string_view given(reinterpret_cast<const char*>(data), size);
  // The whole of a known template about what was given, too.
  const std::string known = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '" +
                            std::string(given) +
                            "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                            "'<|im_end|>' + '\n'}}{% endfor %}"
                            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  for (const std::string_view text : {given, std::string_view(known)}) try {
      const ChatFormat format(text, "fuzz");
      const std::vector<ChatMessage> messages = {{"user", "question"}, {"assistant", "answer"}};
      const std::string shown = format.render(messages);
      if (shown.find("question<|im_end|>") == std::string::npos || !shown.ends_with("<|im_start|>assistant\n"))
        std::abort();
    } catch (const Error&) {
    }
  return 0;
}
