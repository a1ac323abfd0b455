#include "attend/simd/isa.h"

#include <memory>

#include "attend/report/table.h"
#include "command.h"
#include "common.h"
#include "json.h"
#include "terminal.h"

namespace attend::app {
namespace {

int list_isas(bool json) {
  const Isa active = active_isa(Context(1));
  Json rows = Json::array();
  Table table({{"name", true}, {"active", true}, {"description", true}, {"needs", true}, {"usable", true}});
  for (const IsaInfo& info : isa_list()) {
    const bool is_active = info.isa == active;
    rows.push_back({{"name", name_of(info.isa)},
                    {"description", info.description},
                    {"needs", info.needs},
                    {"usable", info.usable},
                    {"why_not", info.why_not},
                    {"active", is_active}});
    table.row({std::string(name_of(info.isa)), is_active ? "*" : "", std::string(info.description),
               std::string(info.needs), info.usable ? "yes" : "no: " + info.why_not});
  }
  if (json) {
    print_json(rows);
  } else {
    fmt::print("{}", table.text(has_colour(Stream::kOut)));
  }
  return 0;
}

}  // namespace

const Command kIsa = {"isa", "List instruction sets, which of them this machine can use, and why not the others.",
                      "ATTEND_ISA=NAME forces one for any command; one that can't be used is an error.",
                      [](Options& options) -> std::function<int()> {
                        auto json = std::make_shared<bool>(false);
                        declare_json(options, *json);
                        return [json] { return list_isas(*json); };
                      }};

}  // namespace attend::app
