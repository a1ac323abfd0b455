#include "attend/tensor/spec.h"

#include <gtest/gtest.h>

#include <random>

#include "attend/tensor/error.h"

namespace attend {
namespace {

std::string refusal(auto&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kSpec);
    return error.what();
  }
  return "accepted";
}

TEST(Spec, ReadsNameAndOptions) {
  const Spec spec = parse_spec(" softmax : window = 512 , sinks=4 ");
  EXPECT_EQ(spec.name, "softmax");
  ASSERT_EQ(spec.options.size(), 2u);
  EXPECT_EQ(spec.integer("window"), 512);
  EXPECT_EQ(spec.integer("sinks"), 4);
  EXPECT_EQ(to_string(spec), "softmax:window=512,sinks=4");
}

TEST(Spec, QuotesHoldWhatWouldEndAValue) {
  const Spec spec = parse_spec(R"(duo:plan="a b,c+d;\"e\"\\f=g",empty="")");
  EXPECT_EQ(spec.text("plan"), R"(a b,c+d;"e"\f=g)");
  EXPECT_EQ(spec.text("empty"), "");
  EXPECT_EQ(parse_spec(to_string(spec)), spec);
}

TEST(Spec, ReadsAPolicyAsSpecs) {
  const auto specs = parse_specs("duo:plan=\"heads.json\" + h2o:budget=512+paged:page=16 + q8_0");
  ASSERT_EQ(specs.size(), 4u);
  EXPECT_EQ(specs[0].text("plan"), "heads.json");
  EXPECT_EQ(specs[1].integer("budget"), 512);
  EXPECT_EQ(specs[3].name, "q8_0");
}

TEST(Spec, SplitsPoliciesOutsideQuotes) {
  const auto policies = split_policies("softmax; duo:plan=\"a;\\\";b\" + f16 ;; window ; ");
  ASSERT_EQ(policies.size(), 3u);
  EXPECT_EQ(policies[0], "softmax");
  EXPECT_EQ(policies[1], "duo:plan=\"a;\\\";b\" + f16");
  EXPECT_EQ(policies[2], "window");
  EXPECT_THROW(split_policies(" ; "), Error);
  const auto readings = split_readings("rope:base=1e4 | rope + f16|duo:plan=\"a|b\"");
  ASSERT_EQ(readings.size(), 3u);
  EXPECT_EQ(readings[1], "rope + f16");
  EXPECT_EQ(readings[2], "duo:plan=\"a|b\"");
  EXPECT_THROW(split_readings("|"), Error);
  EXPECT_THROW(split_readings("softmax | "), Error);
}

TEST(Spec, RefusesWhatIsNoSpec) {
  for (const char* text :
       {"",          " ",   ":",   "a:",      "a:b",       "a:b=",        "a:b=1,",    "a:=1",         "a b",
        "a:b=1 c",   "a +", "+ a", "a:b=\"x", "a:b=\"x\\", "a:b=\"\\n\"", "a:b=1,b=2", "a:b=\"\x01\"", "\x7f",
        "a:b=1\x02", "a;b"}) {
    EXPECT_NE(refusal([&] { parse_specs(text); }), "accepted") << text;
  }
  EXPECT_THROW(parse_spec("a + b"), Error);
  EXPECT_EQ(refusal([] { parse_spec("softmax:window"); }), "[spec] window, needs '=' and a value");
}

TEST(Spec, ReadsNumbersWhole) {
  EXPECT_EQ(parse_integer("-12", "x"), -12);
  EXPECT_EQ(parse_real("1e-3", "x"), 1e-3);
  for (const char* text : {"", "1.5", "1k", " 1", "99999999999999999999", "0x10"}) {
    EXPECT_NE(refusal([&] { parse_integer(text, "x"); }), "accepted") << text;
  }
  for (const char* text : {"", "nan", "inf", "1e999", "1,5", "x"}) {
    EXPECT_NE(refusal([&] { parse_real(text, "x"); }), "accepted") << text;
  }
  EXPECT_EQ(refusal([] { parse_integer("ten", "window"); }), "[spec] window = \"ten\", must be an integer");
}

TEST(Spec, WrittenSpecsReadBackTheSame) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  auto pick = [&](std::string_view from) { return from[random() % from.size()]; };
  for (int round = 0; round < 2000; ++round) {
    Spec spec{.name = std::string(1, pick("abz09")), .options = {}};
    for (int i = static_cast<int>(random() % 4); i > 0; --i) {
      std::string value;
      for (int n = static_cast<int>(random() % 6); n > 0; --n) value += pick("ab0 ,+;:=\"\\'\xc3\xa9.-");
      spec.set(std::string(1, pick("abcd")), value);
    }
    ASSERT_EQ(parse_spec(to_string(spec)), spec) << to_string(spec);
  }
}

}  // namespace
}  // namespace attend
