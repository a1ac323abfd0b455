// docs/architecture.md, kept true: a room includes only the rooms above it, and the reference only tensor and options.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>

namespace {

namespace fs = std::filesystem;

const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"tensor", {}},
    {"simd", {"tensor"}},
    {"reference", {"tensor"}},
    {"exact", {"tensor", "simd", "reference"}},
    {"conformance", {"tensor", "simd", "reference", "exact"}},
    {"sparse", {"tensor", "simd", "reference", "exact"}},
    {"kv", {"tensor", "simd", "reference", "exact", "sparse"}},
    {"lm", {"tensor", "simd", "reference", "exact", "sparse", "kv"}},
    {"study", {"tensor", "simd", "reference", "exact", "sparse", "kv", "lm"}},
    {"report", {"tensor", "simd", "reference", "exact", "sparse", "kv", "lm", "study"}},
};

TEST(Rooms, IncludeOnlyRoomsAboveThem) {
  const fs::path root = fs::path(ATTEND_TEST_DATA).parent_path().parent_path();
  const std::regex include(R"re(^\s*#\s*include\s+"(?:attend/)?([a-z_]+)/([^"]+)")re");
  int checked = 0;
  for (const auto& [room, above] : kMayInclude) {
    for (const fs::path& folder : {root / "src" / room, root / "include" / "attend" / room}) {
      if (!fs::exists(folder)) continue;
      for (const auto& entry : fs::recursive_directory_iterator(folder)) {
        if (!entry.is_regular_file()) continue;
        std::ifstream file(entry.path());
        for (std::string line; std::getline(file, line);) {
          std::smatch found;
          if (!std::regex_search(line, found, include)) continue;
          const std::string other = found[1], header = found[2];
          if (!kMayInclude.contains(other) || header.ends_with("_options.h")) continue;
          EXPECT_TRUE(other == room || above.contains(other)) << entry.path() << ": " << line;
          ++checked;
        }
      }
    }
  }
  EXPECT_GT(checked, 200);
}

TEST(Rooms, AllAreNamedHere) {
  const fs::path root = fs::path(ATTEND_TEST_DATA).parent_path().parent_path();
  for (const auto& entry : fs::directory_iterator(root / "src")) {
    const std::string room = entry.path().filename();
    EXPECT_TRUE(kMayInclude.contains(room) || room == "attend") << room;
  }
}

}  // namespace
