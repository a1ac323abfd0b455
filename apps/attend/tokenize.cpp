#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>

#include "attend/lm/ids.h"
#include "attend/lm/tokenizer.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

constexpr int64_t kLongestInput = int64_t{1} << 30;
constexpr const char* kInput = "standard input";

struct Arguments {
  std::string model = kDefaultModel;
  bool no_bos = false, special = false, decode = false, json = false;
};

int tokenize(const Arguments& arguments) {
  if (arguments.decode && arguments.no_bos) throw UsageError("--no-bos is for text to ids, not for --decode");
  Context context = make_context(1, nullptr);
  const auto tokenizer = make_tokenizer(Gguf::open(obtain_model(arguments.model, context)));
  const std::string input = read_bytes("-", kLongestInput);
  if (!arguments.decode) {
    const std::vector<int32_t> ids = tokenizer->encode(input, !arguments.no_bos, arguments.special);
    fmt::print("{}[{}]{}\n", arguments.json ? "{\"tokens\":" : "", fmt::join(ids, ", "), arguments.json ? "}" : "");
    return 0;
  }
  const std::string text = tokenizer->decode(parse_ids(input, kInput), arguments.special);
  if (arguments.json) {
    fmt::print("{}\n", Json{{"text", to_valid_utf8(text)}}.dump());
  } else {
    write_out(text);
  }
  return 0;
}

}  // namespace

const Command kTokenize = {
    "tokenize", "Turn text into a model's token ids, or ids into text.",
    "Reads standard input. Text becomes one line, a JSON list of ids; with --decode such a list (or an object with\n"
    "the list under \"tokens\") becomes text.\n"
    "\n"
    "  echo -n 'Hello, world!' | attend tokenize\n"
    "  echo '[19556, 28, 905, 17]' | attend tokenize --decode\n",
    [](Options& options) -> std::function<int()> {
      auto arguments = std::make_shared<Arguments>();
      declare_model(options, arguments->model);
      options.flag("--decode", arguments->decode, "ids to text");
      options.flag("--no-bos", arguments->no_bos, "leave out the token that the model wants before a text");
      options.flag("--special", arguments->special,
                   "special tokens written in the text (<|im_start|>) become their ids; with --decode: show them");
      declare_json(options, arguments->json);
      return [arguments] { return tokenize(*arguments); };
    }};

}  // namespace attend::app
