#include "kv/stage.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "attend/tensor/error.h"

namespace attend::kv {
namespace {

StoreShape part_of(const StoreShape& whole, DType keys, DType values) {
  StoreShape shape = whole;
  shape.codec = keys;
  shape.v_codec = values;
  shape.part = true;
  return shape;
}

}  // namespace

void check_stages(const Codec& codec) {
  auto refuse = [](std::string_view argument, const std::string& got, std::string_view rule) {
    throw Error(ErrorKind::kArgument, "codec", argument, got, rule);
  };
  if (is_quantised(codec.type)) refuse("type", std::string(name_of(codec.type)), "must be a float where stages follow");
  if (codec.group < 1) refuse("group", std::to_string(codec.group), "must be at least 1");
  if (codec.stride < 1) refuse("stride", std::to_string(codec.stride), "must be at least 1");
  int64_t age = -1;
  std::vector<std::pair<DType, DType>> types;
  for (const CodecStage& stage : codec.stages) {
    if (stage.age <= age) refuse("age", std::to_string(stage.age), fmt::format("must be above {}", age));
    age = stage.age;
    if (!is_quantised(stage.keys) || stage.keys == DType::kQ4_1 || stage.keys == DType::kQ2_1)
      refuse("keys", std::string(name_of(stage.keys)), "must be q8_0, q4_0 or by channel");
    if (!is_quantised(stage.values) || is_by_channel(stage.values))
      refuse("values", std::string(name_of(stage.values)), "must be quantised rows");
    if (std::find(types.begin(), types.end(), std::pair{stage.keys, stage.values}) != types.end())
      refuse("keys", std::string(name_of(stage.keys)), "must differ from those of other stages");
    types.emplace_back(stage.keys, stage.values);
  }
}

Stage::Stage(const StoreFactory& stores, const StoreShape& shape, const CodecStage& given)
    : coding(given), rows(stores.open(part_of(shape, given.keys, given.values))) {
  if (!is_by_channel(coding.keys)) return;
  StoreShape scales = part_of(shape, DType::kF16, DType::kF16);
  scales.dv = scales.d;
  groups = stores.open(scales);
}

void Stage::keep(Part& part, int layer, int head, std::span<const int64_t> slots) {
  if (static_cast<int64_t>(slots.size()) == part.count) return;
  Part next;
  next.count = static_cast<int64_t>(slots.size());
  std::vector<int64_t> stay;
  size_t at = 0;
  int64_t end = 0;
  for (size_t g = 0; g < part.groups.size(); ++g) {
    end += part.groups[g];
    const size_t first = at;
    while (at < slots.size() && slots[at] < end) ++at;
    if (at == first) continue;
    stay.push_back(static_cast<int64_t>(g));
    next.groups.push_back(static_cast<int32_t>(at - first));
  }
  rows->keep(layer, head, slots);
  if (groups) {
    try {
      groups->keep(layer, head, stay);
    } catch (const Error&) {  // no memory to give memory back: rows are gone, their groups stay, empty
      std::vector<int32_t> all(part.groups.size(), 0);
      for (size_t i = 0; i < stay.size(); ++i) all[static_cast<size_t>(stay[i])] = next.groups[i];
      next.groups = std::move(all);
    }
  }
  part = std::move(next);
}

void Stage::cut(Part& part, int layer, int head, int64_t count) {
  rows->cut(layer, head, count);
  if (groups) {
    int64_t excess = part.count - count;
    while (excess > 0 && part.groups.back() <= excess) excess -= part.groups.back(), part.groups.pop_back();
    if (excess > 0) part.groups.back() -= static_cast<int32_t>(excess);
    groups->cut(layer, head, static_cast<int64_t>(part.groups.size()));
  }
  part.count = count;
}

}  // namespace attend::kv
