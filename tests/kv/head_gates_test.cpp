// Files of head gates: what is written is read back, and everything else is refused in one line.
#include "attend/kv/head_gates.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "support/expect_error.h"

namespace attend {
namespace {

using test::expect_error;

TEST(HeadGates, AreReadAsTheyWereWritten) {
  constexpr double kNone = HeadGates::kNone;
  const HeadGates gates{.model = "a \"model\"\n",
                        .layers = 3,
                        .kv_heads = 3,
                        .gates = {1, 0.25, 0, 0, 0.5, 0.125, kNone, kNone, kNone},
                        .made_by = "attend fit duo"};
  // The last layer has none.
  const HeadGates read = parse_head_gates(to_json(gates), "x");
  EXPECT_EQ(read.model, gates.model);
  EXPECT_EQ(read.layers, 3);
  EXPECT_EQ(read.kv_heads, 3);
  EXPECT_EQ(read.gates, gates.gates);
  EXPECT_EQ(read.made_by, gates.made_by);
  EXPECT_EQ(read.gate(1, 1), 0.5);
}

TEST(HeadGates, AreRefusedWhereTheyAreNotWhatTheyShouldBe) {
  auto refused = [](const char* rule, const std::string& json) {
    expect_error(ErrorKind::kFile, rule, [&] { parse_head_gates(json, "bad\x1b[31m"); });
  };
  refused("is no valid JSON", "{");
  refused("is no valid JSON", std::string(100000, '['));
  refused("has no \"head_gates\"", "[1]");
  refused("is of version 2", R"({"head_gates": 2})");
  refused("no integer within", R"({"head_gates": -1})");
  refused("has no \"model\"", R"({"head_gates": 1})");
  auto with = [](const char* model, const char* gates) {
    return std::string(R"({"head_gates": 1, "model": )") + model + R"(, "gates": )" + gates + "}";
  };
  refused("has no \"name\"", with(R"({"layers": 1, "kv_heads": 1})", "[[1]]"));
  refused("\"name\" that is no text", with(R"({"name": 3, "layers": 1, "kv_heads": 1})", "[[1]]"));
  refused("\"layers\" that is no integer within", with(R"({"name": "", "layers": 1e9, "kv_heads": 1})", "[[1]]"));
  refused("\"layers\" that is no integer within", with(R"({"name": "", "layers": 0, "kv_heads": 1})", "[]"));
  const char* model = R"({"name": "", "layers": 2, "kv_heads": 1})";
  refused("no list of 2", with(model, "[[1]]"));
  refused("no list of 1", with(model, "[[1], [1, 1]]"));
  refused("no number within 0..1", with(model, "[[1], [1.5]]"));
  refused("no number within 0..1", with(model, "[[1], [\"0\"]]"));
  refused("no number within 0..1", with(model, "[[1], [null]]"));
  EXPECT_EQ(parse_head_gates(with(model, "[[1], [0.5]]"), "x").gates, (std::vector<double>{1, 0.5}));
}

TEST(HeadGates, AreReadFromFilesOfAReasonableSize) {
  expect_error(ErrorKind::kFile, "can't be opened", [] { read_head_gates("/no/such/file"); });
  expect_error(ErrorKind::kFile, "can't be opened", [] { read_head_gates("/tmp"); });
  expect_error(ErrorKind::kFile, "is larger than 4194304 bytes", [] { read_head_gates("/dev/zero"); });
}

}  // namespace
}  // namespace attend
