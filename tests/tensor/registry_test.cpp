#include "attend/tensor/registry.h"

#include <gtest/gtest.h>

#include <limits>

namespace attend {
namespace {

struct Nothing : Component {};
struct Other : Component {};

std::unique_ptr<Component> make_nothing(const Spec&) {
  return std::make_unique<Nothing>();
}

constexpr Option kSoftmaxOptions[] = {
    {"window", "tokens", "", "0", OptionType::kInteger, 0, 1e15},
    {"softcap", "", "", "0", OptionType::kReal, 0, std::numeric_limits<double>::infinity()},
    {"strict", "", "", "false", OptionType::kFlag, 0, 0},
};
constexpr Option kEvictOptions[] = {
    {"budget", "tokens", "", "", OptionType::kInteger, 1, 1e15},
    {"plan", "", "", "", OptionType::kText, 0, 0},
};

Entry entry(Kind kind, std::string_view name, std::span<const Option> options = {}) {
  Entry result{};
  result.kind = kind;
  result.name = name;
  result.options = options;
  result.make = make_nothing;
  return result;
}

const Registry& small() {
  static const Entry entries[] = {entry(Kind::kMechanism, "softmax", kSoftmaxOptions),
                                  entry(Kind::kMechanism, "sigmoid"),
                                  entry(Kind::kRetention, "evict", kEvictOptions),
                                  entry(Kind::kStore, "contiguous"),
                                  entry(Kind::kCodec, "f16"),
                                  entry(Kind::kCodec, "q8_0")};
  static const Registry all = [] {
    Registry r;
    for (const Entry& e : entries) r.add(e);
    return r;
  }();
  return all;
}

std::string refusal(std::string_view policy) {
  try {
    small().policy(policy);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSpec);
    return error.what();
  }
  return "accepted";
}

TEST(Registry, CompletesOptionsInTheEntrysOrder) {
  const Spec spec = small().complete(parse_spec("softmax:softcap=5e1,window=0512"));
  EXPECT_EQ(to_string(spec), "softmax:window=512,softcap=50,strict=false");
  EXPECT_FALSE(spec.flag("strict"));
  EXPECT_TRUE(small().complete(parse_spec("softmax:strict=1")).flag("strict"));
}

TEST(Registry, FillsAPolicyUp) {
  const Policy policy = small().policy("evict:budget=64");
  ASSERT_TRUE(policy[Kind::kMechanism] && policy[Kind::kStore] && policy[Kind::kCodec] && policy[Kind::kRetention]);
  EXPECT_EQ(policy[Kind::kMechanism]->name, "softmax");
  EXPECT_EQ(policy[Kind::kCodec]->name, "f16");
  EXPECT_FALSE(policy[Kind::kPlan]);
}

TEST(Registry, WritesPoliciesShort) {
  auto shortened = [](std::string_view text) { return to_string(small().policy(text), small()); };
  EXPECT_EQ(shortened("f16 + softmax:window=0 + contiguous"), "softmax");
  EXPECT_EQ(shortened("q8_0+softmax:softcap=30.0,window=512"), "softmax:window=512,softcap=30 + q8_0");
  EXPECT_EQ(shortened("evict:plan=\"a b\",budget=7"), "evict:budget=7,plan=\"a b\"");
  EXPECT_EQ(shortened("evict:plan=\"\",budget=7"), "evict:budget=7");
}

TEST(Registry, NamesTheNearest) {
  EXPECT_EQ(refusal("sofmtax"), "[spec] name = \"sofmtax\", is no known name; did you mean \"softmax\"?");
  EXPECT_EQ(refusal("q8"), "[spec] name = \"q8\", is no known name; did you mean \"q8_0\"?");
  EXPECT_EQ(refusal("softmax:windw=1"), "[softmax] option = \"windw\", is no known option; did you mean \"window\"?");
  EXPECT_EQ(refusal("sigmoid:x=1"), "[sigmoid] option = \"x\", is no known option; there are none");
  EXPECT_EQ(refusal("zzzzzz"),
            "[spec] name = \"zzzzzz\", is no known name; known: softmax, sigmoid, evict, contiguous, f16, q8_0");
  EXPECT_FALSE(nearest_name(std::string(100000, 'x'), {"softmax"}));
}

TEST(Registry, RefusesValuesAndPairs) {
  EXPECT_EQ(refusal("softmax:window=-1"), "[softmax] window = \"-1\", must lie in 0..1000000000000000");
  EXPECT_EQ(refusal("softmax:window=a"), "[spec] softmax: window = \"a\", must be an integer");
  EXPECT_EQ(refusal("softmax:strict=maybe"), "[softmax] strict = \"maybe\", must be true or false");
  EXPECT_EQ(refusal("evict"), "[evict] budget, must be given");
  EXPECT_EQ(refusal("softmax + f16 + sigmoid"),
            "[policy] mechanism = \"sigmoid\", \"softmax\" is given already; at most one of a kind");
}

TEST(Registry, MakesOnlyTheWantedKind) {
  EXPECT_TRUE(small().make<Nothing>(parse_spec("sigmoid")));
  EXPECT_THROW(small().make<Other>(parse_spec("sigmoid")), Error);
}

TEST(Registry, RefusesATakenName) {
  Registry r;
  const Entry one = entry(Kind::kCodec, "one");
  r.add(one);
  EXPECT_THROW(r.add(one), Error);
}

}  // namespace
}  // namespace attend
