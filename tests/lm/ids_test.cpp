#include "attend/lm/ids.h"

#include <gtest/gtest.h>

#include "support/expect_error.h"

namespace attend {
namespace {

using Ids = std::vector<int32_t>;

TEST(Ids, ListsAndObjects) {
  EXPECT_EQ(parse_ids("[]", "f"), Ids{});
  EXPECT_EQ(parse_ids(" [1,2 , 2147483647]\n", "f"), (Ids{1, 2, 2147483647}));
  EXPECT_EQ(parse_ids(R"({"tokens": [7, 0]})", "f"), (Ids{7, 0}));
  EXPECT_EQ(parse_ids(R"({"a": [[1.5], {"tokens": [9]}], "tokens": [7], "b": null, "c": -1})", "f"), Ids{7});
}

TEST(Ids, EverythingElse) {
  const auto fails = [](std::string_view part, std::string_view json) {
    SCOPED_TRACE(json);
    test::expect_error(ErrorKind::kFile, part, [&] { parse_ids(json, "a\nname"); });
  };
  for (std::string_view json :
       {"", "[1", "[1,]", "1 2", "{\"tokens\":[1]", "[1] [2]", "\xff[1]", "[01]", "nan", "[1}"}) {
    fails("is no valid JSON", json);
  }
  for (std::string_view json : {"3", "null", "\"[1]\"", "{}", "{\"ids\":[1]}", "{\"a\":{\"tokens\":[1]}}"}) {
    fails("has no list of ids", json);
  }
  for (std::string_view json : {"{\"tokens\":1}", "{\"tokens\":{}}", "{\"tokens\":null}"}) fails("no list under", json);
  for (std::string_view json :
       {"[1.0]", "[\"1\"]", "[null]", "[[1]]", "[{}]", "[true]", "[1e3]", "[1, 123456789012345678901]"}) {
    fails("where an integer id is wanted", json);
  }
  fails("[ids] file = a\\x0aname, has the id -1, which is negative (index 1)", "[1, -1]");
  fails("has the id 2147483648, which is too large (index 0)", "[2147483648]");
  fails("more than one list", R"({"tokens": [1], "tokens": [2]})");
  fails("is no valid JSON", std::string(1 << 20, '[').insert(0, "{\"a\":"));
}

}  // namespace
}  // namespace attend
