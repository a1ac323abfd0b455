#include "segments.h"

#include <algorithm>
#include <limits>

namespace attend {
namespace {

struct Uses {
  std::vector<int> reads, writes;  // a slot that is changed is read
};

Uses uses(const op::Embed& o) {
  return {{}, {o.x}};
}
Uses uses(const op::Scale& o) {
  return {{o.x}, {}};
}
Uses uses(const op::RmsNorm& o) {
  return {{o.x}, {o.y}};
}
Uses uses(const op::Product& o) {
  Uses u{{o.x}, {}};
  for (const auto& output : o.outputs) u.writes.push_back(output.y);
  return u;
}
Uses uses(const op::Rotate& o) {
  return {{o.x}, {}};
}
Uses uses(const op::Attend& o) {
  return {{o.q, o.k, o.v}, {o.out}};
}
Uses uses(const op::Gate& o) {
  return {{o.x, o.y}, {}};
}
Uses uses(const op::Add& o) {
  return {{o.x, o.y}, {}};
}
Uses uses(const op::SelectRows& o) {
  return {o.slots, {}};
}

int64_t width_of(const Graph& graph, const std::vector<bool>& live) {
  int64_t sum = 0;
  for (size_t s = 0; s < live.size(); ++s) sum += live[s] ? graph.slots[s].width : 0;
  return sum;
}

}  // namespace

std::vector<Segment> segments(const Graph& graph) {
  const size_t count = graph.operations.size();
  std::vector<std::vector<bool>> live(count + 1, std::vector<bool>(graph.slots.size()));
  live[count][static_cast<size_t>(graph.output_slot)] = true;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (size_t i = count; i-- > 0;) {
    live[i] = live[i + 1];
    const Uses u = std::visit([](const auto& o) { return uses(o); }, graph.operations[i]);
    for (int slot : u.writes) live[i][static_cast<size_t>(slot)] = false;
    for (int slot : u.reads) live[i][static_cast<size_t>(slot)] = true;
    if (i > 0) least = std::min(least, width_of(graph, live[i]));
  }
  std::vector<Segment> parts;
  size_t begin = 0;
  bool attends = false;
  auto cut = [&](size_t end) {
    Segment part{begin, end, {}};
    for (size_t s = 0; s < graph.slots.size(); ++s)
      if (live[begin][s]) part.live.push_back(static_cast<int>(s));
    parts.push_back(std::move(part));
    begin = end;
    attends = false;
  };
  for (size_t i = 0; i < count; ++i) {
    if (attends && width_of(graph, live[i]) == least) cut(i);
    attends |= std::holds_alternative<op::Attend>(graph.operations[i]);
  }
  cut(count);
  return parts;
}

}  // namespace attend
