#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "attend/tensor/registry.h"
#include "command.h"
#include "terminal.h"

namespace attend::app {
namespace {

constexpr const char* kVersion = ATTEND_VERSION;
constexpr int kHelpColumn = 30;

std::string bold(std::string_view text) {
  return coloured(text, Colour::kBold, has_colour(Stream::kOut));
}

// "  left            right, wrapped"
std::string entry_line(std::string_view left, std::string_view right) {
  std::string line = fmt::format("  {}", left);
  line += static_cast<int>(line.size()) + 2 > kHelpColumn ? '\n' + std::string(kHelpColumn, ' ')
                                                          : std::string(kHelpColumn - line.size(), ' ');
  return line + wrapped(right, kHelpColumn) + '\n';
}

class CliOptions : public Options {
 public:
  explicit CliOptions(const Command& command) : command_(command), app_(command.summary, command.name) {
    app_.set_help_flag();
    app_.allow_windows_style_options(false);
    flag("-h,--help", help_, "show this help");
  }

  void text(const char* names, std::string& target, const char* help, bool required) override {
    CLI::Option* option = app_.add_option(declared(names, "TEXT", help, false, required), target);
    option->required(required);
  }
  void texts(const char* names, std::vector<std::string>& target, const char* help) override {
    app_.add_option(declared(names, "TEXT", help, true, false), target);
  }
  void integer(const char* names, int64_t& target, int64_t min, int64_t max, const char* help) override {
    number(names, "N", target, min, max, help);
  }
  void real(const char* names, double& target, double min, double max, const char* help) override {
    number(names, "X", target, min, max, help);
  }
  void flag(const char* names, bool& target, const char* help) override {
    app_.add_flag(declared(names, "", help, false, false), target)->disable_flag_override();
  }
  void group(const char* title) override { group_ = title; }
  bool given(const char* name) const override { return app_.count(name) > 0; }

  // False if only help was wanted.
  bool parse(int argc, char** argv) {
    std::vector<std::string> args(argv, argv + argc);
    const auto end = std::find(args.begin(), args.end(), "--");
    for (auto arg = args.begin(); arg != end; ++arg) {
      if (*arg == "-h" || *arg == "--help") return false;
    }
    std::reverse(args.begin(), args.end());
    try {
      app_.parse(std::move(args));
    } catch (const CLI::ExtrasError&) {
      refuse_extras();
    } catch (const CLI::ParseError& error) {
      throw UsageError(
          fmt::format("{}: {} (attend {} --help shows the options)", command_.name, error.what(), command_.name));
    }
    return true;
  }

  std::string help() const {
    std::string usage = fmt::format("attend {}", command_.name), options;
    std::vector<std::string> titles;
    for (const Line& line : lines_) {
      if (std::find(titles.begin(), titles.end(), line.group) == titles.end()) titles.push_back(line.group);
      if (line.positional) {
        usage += fmt::format(fmt::runtime(line.required ? " {}{}" : " [{}{}]"), line.value, line.many ? ".." : "");
      } else if (line.required) {
        usage += fmt::format(" {} {}", line.names.substr(0, line.names.find(',')), line.value);
      }
    }
    std::rotate(titles.begin(), std::find(titles.begin(), titles.end(), "Options"), titles.end());
    for (const std::string& title : titles) {
      options += '\n' + bold(title + ":") + '\n';
      for (const Line& line : lines_) {
        if (line.group != title) continue;
        const std::string left = line.positional      ? line.value
                                 : line.value.empty() ? line.names
                                                      : line.names + ' ' + line.value;
        options += entry_line(left, line.help);
      }
    }
    std::string text =
        fmt::format("{}\n\n{} {} [options]\n{}", wrapped(command_.summary, 0), bold("Usage:"), usage, options);
    if (command_.details && *command_.details) text += fmt::format("\n{}\n", command_.details);
    return text;
  }

 private:
  struct Line {
    std::string group, names, value, help;
    bool positional, many, required;
  };

  // Notes an option for --help and returns its names as CLI11 takes them.
  std::string declared(std::string_view names, std::string_view value, std::string_view help, bool many,
                       bool required) {
    const size_t space = names.find(' ');
    const std::string bare(names.substr(0, space));
    const bool positional = bare[0] != '-';
    std::string shown(space == std::string_view::npos ? value : names.substr(space + 1));
    if (positional && space == std::string_view::npos) {
      shown = bare;
      std::transform(shown.begin(), shown.end(), shown.begin(), [](unsigned char c) { return std::toupper(c); });
    }
    if (many && !positional) shown += " ..";
    std::string spaced;
    for (const char c : bare) spaced += c == ',' ? std::string(", ") : std::string(1, c);
    lines_.push_back({group_, spaced, shown, std::string(help), positional, many, required});
    return bare;
  }

  template <class T>
  void number(const char* names, const char* value, T& target, T min, T max, const char* help) {
    const std::string bare = declared(names, value, help, false, false);
    app_.add_option_function<std::string>(bare, [&target, min, max, bare](const std::string& text) {
      const std::string name = bare.substr(bare.rfind(',') + 1);
      T parsed{};
      try {
        if constexpr (std::is_integral_v<T>) {
          parsed = parse_integer(text, name);
        } else {
          parsed = parse_real(text, name);
        }
      } catch (const Error&) {
        throw UsageError(fmt::format("{} = \"{}\", must be {}", name, text.substr(0, 80),
                                     std::is_integral_v<T> ? "an integer" : "a number"));
      }
      if (parsed < min || parsed > max) {
        throw UsageError(fmt::format("{} = {}, must lie in {}..{}", name, text.substr(0, 80), min, max));
      }
      target = parsed;
    });
  }

  [[noreturn]] void refuse_extras() {
    const std::string extra = app_.remaining().empty() ? "" : app_.remaining().front();
    std::vector<std::string> names;
    for (const CLI::Option* option : app_.get_options()) {
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    }
    const std::string asked = extra.substr(0, extra.find('='));
    std::string message = fmt::format("{}: \"{}\" is not expected", command_.name, asked.substr(0, 80));
    if (asked.starts_with("-")) {
      message = fmt::format("{}: \"{}\" is no option", command_.name, asked.substr(0, 80));
      if (const auto nearest = nearest_name(asked, {names.begin(), names.end()})) {
        throw UsageError(fmt::format("{}; did you mean {}?", message, *nearest));
      }
    }
    throw UsageError(fmt::format("{} (attend {} --help shows the options)", message, command_.name));
  }

  const Command& command_;
  CLI::App app_;
  bool help_ = false;
  std::string group_ = "Options";
  std::vector<Line> lines_;
};

std::string overview(std::span<const CommandGroup> groups) {
  std::string text = wrapped(
      "attend: attention mechanisms behind one interface, measured alone and inside real "
      "language models.",
      0);
  text += fmt::format("\n\n{} attend COMMAND [options]\n", bold("Usage:"));
  for (const CommandGroup& group : groups) {
    if (group.commands.empty()) continue;
    text += '\n' + bold(fmt::format("{}:", group.title)) + '\n';
    for (const Command* command : group.commands) text += entry_line(command->name, command->summary);
  }
  text += fmt::format("\n{}\n", bold("Examples:"));
  text +=
      "  attend run -p \"The capital of France is\" -n 16\n"
      "  attend compare -f book.txt --policies \"softmax; softmax:window=512,sinks=4\" --html page.html\n"
      "  attend info softmax\n";
  text += "\nattend COMMAND --help explains a command; attend --version shows the version.\n";
  return text;
}

}  // namespace

int run_command_line(std::span<const CommandGroup> groups, int argc, char** argv) {
  const bool asks_help = argc > 1 && std::string_view(argv[1]) == "help";
  std::string_view name = argc > 1 + asks_help ? argv[1 + asks_help] : "--help";
  if (name == "--help" || name == "-h") {
    fmt::print("{}", overview(groups));
    return 0;
  }
  if (name == "--version" || name == "-V") {
    fmt::print("attend {}\n", kVersion);
    return 0;
  }
  std::vector<std::string_view> names;
  for (const CommandGroup& group : groups) {
    for (const Command* command : group.commands) {
      names.push_back(command->name);
      if (name != command->name) continue;
      CliOptions options(*command);
      const std::function<int()> body = command->declare(options);
      if (asks_help || !options.parse(argc - 2, argv + 2)) {
        fmt::print("{}", options.help());
        return 0;
      }
      return body();
    }
  }
  const auto nearest = nearest_name(name, names);
  throw UsageError(
      fmt::format("\"{}\" is no command{}", name.substr(0, 80),
                  nearest ? fmt::format("; did you mean {}?", *nearest) : std::string(" (attend --help lists them)")));
}

}  // namespace attend::app
