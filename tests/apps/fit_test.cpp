// attend fit on a small model, and its file as a plan.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "support/run_app.h"
#include "support/small_model.h"

namespace attend::test {
namespace {

class Fit : public testing::Test {
 protected:
  static SmallModel small() {
    SmallModel model;
    model.context = 2000;
    return model;
  }
  std::vector<std::string> command(std::vector<std::string> more) const {
    std::vector<std::string> all = {"fit", "duo",     "-m", model_,    "-f", text_,     "-o", out_,       "--passkeys",
                                    "2",   "--words", "2",  "--steps", "2",  "--sinks", "4",  "--recent", "16"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  const SmallModel::File file_ = small().file();
  const std::string model_ = file_.path, text_ = file_.folder / "book.txt", out_ = file_.folder / "heads.json";
  void SetUp() override { std::ofstream(text_) << "It rained on the roofs of the town, and nobody was out.\n"; }
};

TEST_F(Fit, WritesAPlanThatAModelRunsUnder) {
  const Outcome shown = run_app(command({"--max-length", "1100"}));
  ASSERT_EQ(shown.code, 0) << shown.error;
  EXPECT_NE(shown.out.find("of 4 gates are at least 0.5"), std::string::npos) << shown.out;
  auto file = [&] { return nlohmann::json::parse(std::ifstream(out_)); };
  const nlohmann::json first = file();
  EXPECT_EQ(first["gates"].size(), 2u);

  const Outcome reported = run_app(command({"--max-length", "1100", "--json", "--threads", "3"}));
  ASSERT_EQ(reported.code, 0) << reported.error;
  EXPECT_EQ(nlohmann::json::parse(reported.out)["steps"].size(), 2u);
  EXPECT_EQ(file(), first);

  const Outcome run = run_app({"run", "-m", model_, "-p", "hello", "-n", "4", "--policy",
                               "duo:plan=\"" + out_ + "\",share=0.5,sinks=1,recent=2", "--json"});
  EXPECT_EQ(run.code, 0) << run.error;
}

TEST_F(Fit, ProfilesHeads) {
  const Outcome shown = run_app({"fit", "fastgen", "-m", model_, "-f", text_, "-o", out_, "--recovery", "0.5"});
  ASSERT_EQ(shown.code, 0) << shown.error;
  EXPECT_NE(shown.out.find("heads of level 4"), std::string::npos) << shown.out;
  const Outcome run =
      run_app({"run", "-m", model_, "-p", "hello", "-n", "4", "--policy", "fastgen:plan=\"" + out_ + "\"", "--json"});
  EXPECT_EQ(run.code, 0) << run.error;
}

// What the default passkeys take is more than the default shortest text.
TEST_F(Fit, MakesTextsLongEnoughForTheirPasskeys) {
  const Outcome fitted =
      run_app({"fit", "duo", "-m", model_, "-f", text_, "-o", out_, "--steps", "1", "--passkeys", "6", "--words", "6"});
  ASSERT_EQ(fitted.code, 0) << fitted.error;
  const std::string made_by = nlohmann::json::parse(std::ifstream(out_))["made_by"];
  EXPECT_EQ(made_by.find("1 steps of 1000 to"), std::string::npos) << made_by;
}

TEST_F(Fit, RefusesInOneLine) {
  auto refused = [&](const std::vector<std::string>& arguments, int code, const char* part) {
    const Outcome outcome = run_app(arguments);
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_EQ(outcome.out, "");
    EXPECT_NE(outcome.error.find(part), std::string::npos) << outcome.error;
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
  };
  refused({"fit", "duo", "-m", model_}, 2, "--file");
  refused({"fit", "everything", "-m", model_, "-f", text_, "-o", out_}, 2, "can't be fitted");
  refused(command({"--recovery", "0.9"}), 2, "--recovery is of fit fastgen");
  refused({"fit", "fastgen", "-m", model_, "-f", text_, "-o", out_, "--steps", "3"}, 2, "--steps is of fit duo");
  refused(command({"--min-length", "20"}), 1, "shortest text");
  refused(command({"--min-length", "1500", "--max-length", "1400"}), 1, "longest text");
  refused({"run", "-m", model_, "-p", "hello", "--policy", "duo:plan=\"" + text_ + "\""}, 1, "is no valid JSON");
}

}  // namespace
}  // namespace attend::test
