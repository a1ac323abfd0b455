// attend list and attend info: the registry, as it is.
#include <memory>

#include "attend/report/table.h"
#include "attend/kv/retention.h"
#include "attend/sparse/selector.h"
#include "attend/tensor/cascade.h"
#include "attend/tensor/registry.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

Json papers_json(const Entry& entry) {
  Json papers = Json::array();
  for (const Paper& paper : entry.papers)
    papers.push_back({{"title", paper.title}, {"arxiv", paper.arxiv}, {"catalogue", paper.catalogue}});
  return papers;
}

Json summary_json(const Entry& entry) {
  return {{"name", entry.name},          {"kind", name_of(entry.kind)},      {"aliases", entry.aliases},
          {"room", entry.room},          {"summary", entry.summary},         {"papers", papers_json(entry)},
          {"forms", entry.traits.forms}, {"patterns", entry.traits.patterns}};
}

int list_entries(bool json) {
  Json rows = Json::array();
  Table table({{"name", true}, {"kind", true}, {"what it is", true}, {"papers", true}});
  for (const Entry* entry : registry().entries()) {
    rows.push_back(summary_json(*entry));
    std::string papers;
    for (const Paper& paper : entry->papers) papers.append(papers.empty() ? "" : " ").append(paper.catalogue);
    table.row({std::string(entry->name), std::string(name_of(entry->kind)), std::string(entry->summary), papers});
  }
  if (json) {
    print_json(rows);
  } else {
    fmt::print("{}", table.text(has_colour(Stream::kOut)));
  }
  return 0;
}

std::string_view type_name(OptionType type) {
  constexpr std::string_view names[] = {"integer", "real", "flag", "text"};
  return names[static_cast<int>(type)];
}

std::string_view same_bits_text(SameBits same) {
  switch (same) {
    case SameBits::kAny:
      return "the same for any threads, batch and chunks";
    case SameBits::kStride:
      return "the same for chunks cut at its stride";
    case SameBits::kBound:
      return "within its bound between forms";
  }
  return "";
}

std::string range_text(const Option& option) {
  if (option.path) return "a path";
  if (option.type != OptionType::kInteger && option.type != OptionType::kReal) return std::string(option.choices);
  return fmt::format("{:g}..{:g}", option.min, option.max);
}

Json ports_json(std::span<const Port> ports) {
  Json rows = Json::array();
  for (const Port& port : ports)
    rows.push_back({{"name", port.name},
                    {"shape", port.shape},
                    {"types", port.types},
                    {"required", port.required},
                    {"help", port.help}});
  return rows;
}

// Keys from which a selector or a retention of default options pays; 0 where that is not known.
int64_t pays_from(const Entry& entry) {
  const Spec spec = parse_spec(std::string(entry.name));
  if (entry.kind == Kind::kSelector) return registry().make<Selector>(spec)->pays_from();
  return entry.kind == Kind::kRetention ? registry().make<Retention>(spec)->pays_from() : 0;
}

Json entry_json(const Entry& entry) {
  Json j = summary_json(entry);
  j["equation"] = entry.equation;
  j["exact_for"] = entry.traits.exact_for;
  j["same_bits"] = same_bits_text(entry.traits.same_bits);
  j["notes"] = entry.notes;
  j["gradients"] = Json::array();
  for (const std::string_view port : entry.traits.gradients) j["gradients"].push_back(port);
  if (!entry.cascade.empty()) {
    const Passes p = count_passes(parse_cascade(entry.cascade), "j");
    j["passes"] = {{"cascade", entry.cascade},
                   {"as_written", p.as_written},
                   {"division_deferred", p.deferred},
                   {"running_maximum", p.running},
                   {"kernel", entry.passes}};
  }
  j["options"] = Json::array();
  for (const Option& option : entry.options) {
    Json row = {{"name", option.name},
                {"type", type_name(option.type)},
                {"unit", option.unit},
                {"default", option.fallback},
                {"help", option.help}};
    if (option.path) {
      row["path"] = true;
    } else if (!option.choices.empty()) {
      row["choices"] = option.choices;
    } else if (!range_text(option).empty()) {
      row["min"] = option.min, row["max"] = option.max;
    }
    j["options"].push_back(row);
  }
  if (const int64_t keys = pays_from(entry); keys > 0) j["pays_from"] = keys;
  j["in"] = ports_json(entry.in);
  j["out"] = ports_json(entry.out);
  return j;
}

void print_ports(std::string_view title, std::span<const Port> ports) {
  if (ports.empty()) return;
  Table table({{"  " + std::string(title), true}, {"shape", true}, {"types", true}, {"what it is", true}});
  for (const Port& port : ports)
    table.row({"  " + std::string(port.name) + (port.required ? "" : " (optional)"), std::string(port.shape),
               std::string(port.types), std::string(port.help)});
  fmt::print("\n{}", table.text(has_colour(Stream::kOut)));
}

void print_entry(const Entry& entry) {
  const bool colour = has_colour(Stream::kOut);
  fmt::print("{} ({}): {}\n\n", coloured(entry.name, Colour::kBold, colour), name_of(entry.kind), entry.summary);
  auto lines = [](std::string_view text) {
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      fmt::print("  {}\n", text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  };
  lines(entry.equation);
  if (!entry.options.empty()) {
    Table table({{"  option", true}, {"default", true}, {"range", true}, {"unit", true}, {"what it does", true}});
    for (const Option& option : entry.options)
      table.row({"  " + std::string(option.name), std::string(option.fallback), range_text(option),
                 std::string(option.unit), std::string(option.help)});
    fmt::print("\n{}", table.text(colour));
  }
  print_ports("input", entry.in);
  print_ports("output", entry.out);
  fmt::print("\n");
  auto field = [](std::string_view name, std::string_view text) {
    if (!text.empty()) fmt::print("  {:<10} {}\n", name, wrapped(text, 13));
  };
  field("also", fmt::format("{}", fmt::join(entry.aliases, ", ")));
  field("exact for", entry.traits.exact_for);
  if (entry.kind == Kind::kMechanism) field("same bits", same_bits_text(entry.traits.same_bits));
  field("forms", fmt::format("{}", fmt::join(entry.traits.forms, ", ")));
  field("patterns", fmt::format("{}", fmt::join(entry.traits.patterns, ", ")));
  if (const int64_t keys = pays_from(entry); keys > 0) {
    field("pays from", fmt::format("{} keys a head, under default options: no decoded token costs more than with exact "
                                   "attention over all of them (attend bench {}/{}-pays)",
                                   keys, entry.room, entry.name));
  } else if (entry.kind == Kind::kSelector || entry.kind == Kind::kRetention) {
    field("pays from", "no number of keys that is known, under default options");
  }
  field("gradients", fmt::format("{}", fmt::join(entry.traits.gradients, ", ")));
  if (!entry.cascade.empty()) {
    const Passes p = count_passes(parse_cascade(entry.cascade), "j");
    field("passes",
          fmt::format("{} over the keys as defined, {} with divisions deferred, {} with a running maximum; the "
                      "kernel makes {}",
                      p.as_written, p.deferred, p.running, entry.passes));
  }
  field("notes", entry.notes);
  for (const Paper& paper : entry.papers)
    field("source", fmt::format("{}{}{}", paper.title, paper.arxiv.empty() ? "" : ", arXiv:", paper.arxiv));
}

}  // namespace

const Command kList = {"list", "List everything with a name: mechanisms, stores, codecs.",
                       "Example:\n  attend list\n  attend info softmax", [](Options& options) -> std::function<int()> {
                         auto json = std::make_shared<bool>(false);
                         declare_json(options, *json);
                         return [json] { return list_entries(*json); };
                       }};

const Command kInfo = {"info",
                       "Explain one entry: equation, options, inputs and outputs, what it is exact for, source.",
                       "Example:\n  attend info softmax", [](Options& options) -> std::function<int()> {
                         struct Arguments {
                           std::string name;
                           bool json = false;
                         };
                         auto arguments = std::make_shared<Arguments>();
                         options.text("name", arguments->name, "one of attend list", true);
                         declare_json(options, arguments->json);
                         return [arguments] {
                           const Entry& entry = registry().at(arguments->name);
                           if (arguments->json) {
                             print_json(entry_json(entry));
                           } else {
                             print_entry(entry);
                           }
                           return 0;
                         };
                       }};

}  // namespace attend::app
