#include "attend/kv/retention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "attend/tensor/registry.h"

namespace attend {
namespace {

struct SinksAndWindow : Operator {
  std::map<std::string, TensorSpec, std::less<>> infer(const Tensors&) const override { return {}; }
  void forward(const Tensors&, const Tensors&, Form, Context&) const override {}
  std::vector<KeyRange> needed_from(int64_t position) const override {
    return {{0, 2}, {std::max<int64_t>(2, position - 9), kNoEnd}};
  }
};

TEST(Retention, DropsWhatNobodySees) {
  std::vector<int32_t> position;
  for (int32_t p = 0; p < 30; p += 2) position.push_back(p);
  KeyRun run;
  run.count = 15;
  KeyView plain, keys;
  plain.runs = keys.runs = {&run, 1};
  keys.position = position;
  std::vector<int64_t> slots;
  const SinksAndWindow mechanism;
  make_implied_retention(mechanism)->choose({.keys = keys, .d = 4, .dv = 4, .next_position = 30}, slots);
  EXPECT_EQ(slots, (std::vector<int64_t>{0, 11, 12, 13, 14}));
  EXPECT_EQ(slots_in(plain, {4, kNoEnd}), (KeyRange{4, 15}));
  EXPECT_EQ(slots_in(plain, {40, kNoEnd}), (KeyRange{15, 15}));
}

// Beyond all that a head ever holds.
TEST(Retention, PaysBeyondWhatItHoldsOrIsNotSaidTo) {
  int said = 0;
  for (const Entry* entry : registry().entries()) {
    if (entry->kind != Kind::kRetention) continue;
    const Spec spec = registry().complete(parse_spec(std::string(entry->name)));
    const auto retention = registry().make<Retention>(spec);
    EXPECT_GE(retention->pays_from(), 0) << entry->name;
    if (retention->pays_from() == 0) continue;
    ++said;
    EXPECT_GT(retention->pays_from(), spec.integer("budget") + retention->stride()) << entry->name;
  }
  EXPECT_GE(said, 3);
  EXPECT_EQ(registry().make<Retention>(registry().complete(parse_spec("h2o:budget=100,stride=28")))->pays_from(), 512);
}

}  // namespace
}  // namespace attend
