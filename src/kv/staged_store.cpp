#include "attend/kv/staged_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <numeric>
#include <tuple>
#include <utility>

#include "attend/simd/isa.h"
#include "attend/tensor/context.h"
#include "attend/tensor/error.h"
#include "kv/positions.h"
#include "kv/recode.h"
#include "kv/stage.h"

namespace attend {
namespace {

struct Head {
  std::vector<kv::Part> parts;  // of each stage
  kv::Positions positions;
  std::vector<KeyRun> runs;  // from the oldest stage to the newest
  size_t settled = 0;        // of them: in stages after the first

  int64_t count() const {
    return std::accumulate(parts.begin(), parts.end(), int64_t{0},
                           [](int64_t n, const kv::Part& p) { return n + p.count; });
  }
};

class StagedStore : public Store {
 public:
  StagedStore(const StoreFactory& stores, const StoreShape& shape, const Codec& codec)
      : shape_(shape),
        group_(codec.group),
        heads_(static_cast<size_t>(shape.layers) * static_cast<size_t>(shape.kv_heads)) {
    stages_.emplace_back(stores, shape, CodecStage{0, codec.type, codec.type});
    for (const CodecStage& coding : codec.stages) stages_.emplace_back(stores, shape, coding);
    for (Head& head : heads_) head.parts.resize(stages_.size());
  }

  const StoreShape& shape() const override { return shape_; }

  void append(int layer, const View& k, const View& v, std::span<const int32_t> position) override {
    const size_t first = index("append", layer, 0), last = first + static_cast<size_t>(shape_.kv_heads);
    for (size_t h = first; h < last; ++h) heads_[h].positions.check(position);
    for (size_t h = first; h < last; ++h) heads_[h].positions.reserve(heads_[h].count(), position);
    stages_[0].rows->append(layer, k, v, position);
    if (position.empty()) return;
    for (size_t s = 1; s < stages_.size(); ++s) stages_[s].turn_to(layer);
    for (size_t h = first; h < last; ++h) {
      heads_[h].positions.add(position);
      heads_[h].parts[0].count += static_cast<int64_t>(position.size());
      publish(h, 0);
    }
  }

  void append_coded(int layer, int head_index, const KeyView& keys) override {
    const size_t h = index("append", layer, head_index);
    Head& head = heads_[h];
    std::vector<int32_t> slots;
    std::span<const int32_t> position = keys.position;
    if (position.empty()) {
      slots.resize(static_cast<size_t>(keys.count()));
      std::iota(slots.begin(), slots.end(), 0);
      position = slots;
    }
    if (static_cast<int64_t>(position.size()) != keys.count())
      throw Error(ErrorKind::kArgument, "append", "positions", std::to_string(position.size()),
                  fmt::format("must be one for each of {} keys", keys.count()));
    head.positions.check(position);
    const std::vector<size_t> of_run = stages_of(head, keys, position);
    const std::vector<kv::Part> before = head.parts;
    head.positions.reserve(head.count(), position);
    try {
      for (size_t r = 0; r < keys.runs.size(); ++r) {
        KeyRun run = keys.runs[r];
        if (run.count == 0) continue;
        const size_t s = of_run[r];
        const bool goes_on = r > 0 && keys.runs[r - 1].k_scale == run.k_scale;  // where a store cut a group
        if (stages_[s].groups && !goes_on) {
          const KeyRun header{run.k_scale, run.k_offset, shape_.d, shape_.d, 0, 1, DType::kF16, DType::kF16};
          stages_[s].groups->append_coded(layer, head_index, {{&header, 1}, {}});
          head.parts[s].groups.push_back(0);
        }
        run.first_slot = 0;
        stages_[s].rows->append_coded(layer, head_index, {{&run, 1}, {}});
        head.parts[s].count += run.count;
        if (stages_[s].groups) head.parts[s].groups.back() += static_cast<int32_t>(run.count);
      }
    } catch (...) {
      cut_back(layer, head_index, before);
      throw;
    }
    head.positions.add(position);
    publish_all(h);
  }

  KeyView keys(int layer, int head_index) const override {
    const Head& head = heads_[index("keys", layer, head_index)];
    return {head.runs, head.positions.view()};
  }

  void keep(int layer, int head_index, std::span<const int64_t> slots) override {
    const size_t h = index("keep", layer, head_index);
    Head& head = heads_[h];
    const int64_t count = head.count(), kept = static_cast<int64_t>(slots.size());
    int64_t previous = -1;
    for (int64_t slot : slots) {
      if (slot <= previous || slot >= count)
        throw Error(ErrorKind::kArgument, "keep", "slots", std::to_string(slot),
                    fmt::format("must ascend and lie below {}", count));
      previous = slot;
    }
    if (kept == count) return;
    std::vector<int32_t> position(static_cast<size_t>(count));
    for (int64_t slot = 0; slot < count; ++slot)
      position[static_cast<size_t>(slot)] = static_cast<int32_t>(head.positions.at(slot));
    // A stage that fails keeps everything, and so do those after it.
    std::exception_ptr failed;
    std::vector<int64_t> own;
    std::vector<int32_t> left;
    int64_t first = 0;  // slot of the stage
    size_t next = 0;
    for (size_t s = stages_.size(); s-- > 0;) {
      const int64_t rows = head.parts[s].count;
      own.clear();
      for (; next < slots.size() && slots[next] < first + rows; ++next) own.push_back(slots[next] - first);
      try {
        if (!failed) stages_[s].keep(head.parts[s], layer, head_index, own);
      } catch (const Error&) {
        failed = std::current_exception();
      }
      if (failed) {
        own.resize(static_cast<size_t>(rows));
        std::iota(own.begin(), own.end(), 0);
      }
      for (int64_t slot : own) left.push_back(position[static_cast<size_t>(first + slot)]);
      first += rows;
    }
    head.positions.take(std::move(left));
    publish_all(h);
    if (failed) std::rethrow_exception(failed);
  }

  void cut(int layer, int head_index, int64_t count) override {
    const size_t h = index("cut", layer, head_index);
    Head& head = heads_[h];
    if (count < 0 || count > head.count())
      throw Error(ErrorKind::kArgument, "cut", "count", std::to_string(count),
                  fmt::format("must be 0..{}", head.count()));
    head.positions.cut(count);
    size_t oldest = 0;  // of the stages that lose rows
    for (size_t s = stages_.size(); s-- > 0; count -= head.parts[s].count) {
      if (count >= head.parts[s].count) continue;
      stages_[s].cut(head.parts[s], layer, head_index, count);
      oldest = std::max(oldest, s);
    }
    oldest == 0 ? publish(h, 0) : publish_all(h);
  }

  bool settle(int64_t tokens) override {
    bool some = false;
    for (int layer = 0; layer < shape_.layers; ++layer)
      for (int head = 0; head < shape_.kv_heads; ++head) {
        // The newest first: a key reaches the stage of its age.
        for (size_t s = 1; s < stages_.size(); ++s) some |= age(layer, head, s, tokens);
      }
    return some;
  }

  void clear() override {
    for (kv::Stage& stage : stages_) {
      stage.rows->clear();
      if (stage.groups) stage.groups->clear();
    }
    for (Head& head : heads_) {
      head = Head();
      head.parts.resize(stages_.size());
    }
  }

  std::unique_ptr<Store> fork() const override {
    std::unique_ptr<StagedStore> copy(new StagedStore(shape_, group_));
    for (const kv::Stage& stage : stages_) copy->stages_.push_back(stage.fork());
    copy->heads_ = heads_;
    for (size_t h = 0; h < heads_.size(); ++h) copy->publish_all(h);
    return copy;
  }

  int64_t bytes() const override {
    int64_t total = 0;
    for (const kv::Stage& stage : stages_) total += stage.bytes();
    for (const Head& head : heads_) {
      total += head.positions.bytes();
      total += static_cast<int64_t>(head.runs.capacity() * sizeof(KeyRun));
      for (const kv::Part& part : head.parts) total += static_cast<int64_t>(part.groups.capacity() * sizeof(int32_t));
    }
    return total;
  }

  int64_t disk_bytes() const override {
    int64_t total = 0;
    for (const kv::Stage& stage : stages_) total += stage.disk_bytes();
    return total;
  }

 private:
  StagedStore(const StoreShape& shape, int64_t group) : shape_(shape), group_(group) {}

  size_t index(std::string_view op, int layer, int head) const {
    for (const auto& [name, got, most] :
         {std::tuple{"layer", layer, shape_.layers}, std::tuple{"head", head, shape_.kv_heads}})
      if (got < 0 || got >= most)
        throw Error(ErrorKind::kArgument, op, name, std::to_string(got), fmt::format("must be below {}", most));
    return static_cast<size_t>(layer) * static_cast<size_t>(shape_.kv_heads) + static_cast<size_t>(head);
  }

  int64_t group_of(int64_t position) const { return position / group_; }

  // The stage of each run. Throws for what is not coded as this store's keys are.
  std::vector<size_t> stages_of(const Head& head, const KeyView& keys, std::span<const int32_t> position) const {
    auto refuse = [](const std::string& got, std::string_view rule) {
      throw Error(ErrorKind::kArgument, "append", "codec", got, rule);
    };
    size_t oldest = stages_.size() - 1;
    for (size_t s = 0; s < stages_.size(); ++s)
      if (head.parts[s].count > 0) oldest = std::min(oldest, s);
    std::vector<size_t> of_run;
    for (const KeyRun& run : keys.runs) {
      const auto found = std::find_if(stages_.begin(), stages_.end(), [&](const kv::Stage& s) {
        return s.coding.keys == run.k_type && s.coding.values == run.v_type;
      });
      const size_t s = static_cast<size_t>(found - stages_.begin());
      if (found == stages_.end())
        refuse(fmt::format("{} and {}", name_of(run.k_type), name_of(run.v_type)), "must be those of a stage");
      if (run.count > 0 && s > oldest)
        refuse(std::string(name_of(run.k_type)), "must be no older a stage's than before");
      if (run.count > 0) oldest = s;
      if (run.count > 0 && found->groups) {
        if (!run.k_scale || !run.k_offset) refuse("null", "must have scales and offsets");
        const int64_t last = run.first_slot + run.count - 1;
        if (group_of(position[static_cast<size_t>(run.first_slot)]) != group_of(position[static_cast<size_t>(last)]))
          refuse(fmt::format("{} keys", run.count), "must be of one group");
      }
      of_run.push_back(s);
    }
    return of_run;
  }

  // Drops what was appended to a head since it had `before`.
  void cut_back(int layer, int head_index, const std::vector<kv::Part>& before) {
    Head& head = heads_[index("append", layer, head_index)];
    for (size_t s = 0; s < stages_.size(); ++s) {
      // What of the rows and groups came, if only one of them did, too.
      kv::Stage& stage = stages_[s];
      if (stage.rows->keys(layer, head_index).count() > before[s].count)
        stage.rows->cut(layer, head_index, before[s].count);
      if (const int64_t groups = static_cast<int64_t>(before[s].groups.size());
          stage.groups && stage.groups->keys(layer, head_index).count() > groups)
        stage.groups->cut(layer, head_index, groups);
    }
    head.parts = before;
  }

  // Moves keys that are old enough for stage s there from the one before; whether there were any.
  bool age(int layer, int head_index, size_t s, int64_t tokens) {
    Head& head = heads_[index("settle", layer, head_index)];
    const int64_t bound = (tokens - stages_[s].coding.age) / group_ * group_;  // position
    kv::Part& from = head.parts[s - 1];
    int64_t first = 0;  // slot of the stage before
    for (size_t t = s; t < stages_.size(); ++t) first += head.parts[t].count;
    int64_t moved = 0;
    std::vector<int32_t> groups;  // rows of each
    for (int64_t id = -1; moved < from.count && head.positions.at(first + moved) < bound; ++moved) {
      const int64_t own = group_of(head.positions.at(first + moved));
      if (own != id) groups.push_back(0), id = own;
      ++groups.back();
    }
    if (moved == 0) return false;
    const std::vector<kv::Part> before = head.parts;
    try {
      const kv::Recoded next =
          kv::recode({head.runs, {}}, first, groups, stages_[s].coding, shape_.d, shape_.dv, active_isa(context_));
      stages_[s].rows->append_coded(layer, head_index, {{&next.rows, 1}, {}});
      head.parts[s].count += moved;
      if (stages_[s].groups) {
        stages_[s].groups->append_coded(layer, head_index, {{&next.groups, 1}, {}});
        head.parts[s].groups.insert(head.parts[s].groups.end(), groups.begin(), groups.end());
      }
      std::vector<int64_t> stay(static_cast<size_t>(from.count - moved));
      std::iota(stay.begin(), stay.end(), moved);
      stages_[s - 1].keep(from, layer, head_index, stay);
    } catch (...) {
      cut_back(layer, head_index, before);
      throw;
    }
    publish_all(index("settle", layer, head_index));
    return true;
  }

  void publish_all(size_t h) {
    Head& head = heads_[h];
    size_t groups = 0;
    for (const kv::Part& part : head.parts) groups += part.groups.size();
    if (groups > head.runs.capacity()) head.runs.reserve(groups + groups / 8 + 16);
    head.runs.clear();
    for (size_t s = stages_.size(); s-- > 1;) publish(h, s);
    head.settled = head.runs.size();
    publish(h, 0);
  }

  // The runs of a stage, after those before it.
  void publish(size_t h, size_t s) {
    Head& head = heads_[h];
    const int layer = static_cast<int>(h) / shape_.kv_heads, head_index = static_cast<int>(h) % shape_.kv_heads;
    if (s == 0) head.runs.resize(head.settled);
    int64_t slot = head.runs.empty() ? 0 : head.runs.back().first_slot + head.runs.back().count;
    const KeyView rows = stages_[s].rows->keys(layer, head_index);
    if (!stages_[s].groups) {
      for (KeyRun run : rows.runs) {
        run.first_slot += slot;
        head.runs.push_back(run);
      }
      return;
    }
    const KeyView headers = stages_[s].groups->keys(layer, head_index);
    auto run = rows.runs.begin(), header = headers.runs.begin();
    int64_t row = 0;
    for (size_t g = 0; g < head.parts[s].groups.size(); ++g) {
      while (header->first_slot + header->count <= static_cast<int64_t>(g)) ++header;
      const int64_t at = static_cast<int64_t>(g) - header->first_slot;
      for (const int64_t end = row + head.parts[s].groups[g]; row < end;) {
        while (run->first_slot + run->count <= row) ++run;
        const int64_t n = std::min(end, run->first_slot + run->count) - row;
        KeyRun own = run->part(row - run->first_slot, n);
        own.first_slot = slot;
        own.k_scale = static_cast<const F16*>(header->keys().row(at));
        own.k_offset = static_cast<const F16*>(header->values().row(at));
        head.runs.push_back(own);
        row += n, slot += n;
      }
    }
  }

  StoreShape shape_;
  int64_t group_;
  std::vector<kv::Stage> stages_;  // from the newest keys to the oldest
  std::vector<Head> heads_;
  Context context_{1};
};

}  // namespace

std::unique_ptr<Store> open_store(const StoreFactory& stores, const StoreShape& shape, const Codec& codec) {
  if (codec.stages.empty()) return stores.open(shape);
  kv::check_stages(codec);
  return std::make_unique<StagedStore>(stores, shape, codec);
}

}  // namespace attend
