#include "attend/study/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <set>

#include "attend/tensor/error.h"
#include "attend/tensor/registry.h"
#include "attend/tensor/text.h"
#include "study/ruler.h"
#include "study/words.h"

namespace attend {
namespace {

constexpr int64_t kShortest = 256;
constexpr int64_t kFewestLines = 5;
constexpr int64_t kLongHaystack = 4096;  // from this length on, word lists repeat their words more often

constexpr std::array kTasks = {
    Task{"niah_single_1", "a word's number in repeated noise", TaskKind::kNeedle, false, true, 128},
    Task{"niah_single_2", "a word's number in an essay", TaskKind::kNeedle, true, true, 128},
    Task{"niah_single_3", "a word's UUID in an essay", TaskKind::kNeedle, true, true, 128},
    Task{"niah_multikey_1", "one of four words' numbers in an essay", TaskKind::kNeedle, true, true, 128},
    Task{"niah_multikey_2", "a word's number among other words' numbers", TaskKind::kNeedle, false, true, 128},
    Task{"niah_multikey_3", "a UUID's UUID among other pairs", TaskKind::kNeedle, false, true, 128},
    Task{"niah_multivalue", "four numbers of one word in an essay", TaskKind::kNeedle, true, false, 128},
    Task{"niah_multiquery", "four words' numbers in an essay", TaskKind::kNeedle, true, false, 128},
    Task{"vt", "the variables of a chain of assignments", TaskKind::kVariables, false, false, 30},
    Task{"cwe", "the ten most common words of a list", TaskKind::kCommonWords, false, false, 120},
    Task{"fwe", "the three most frequent coded words", TaskKind::kFrequentWords, false, false, 50},
};

struct NeedleSettings {
  bool uuid_keys = false, uuid_values = false, needles_around = false;
  size_t keys = 1, values = 1, queries = 1;
};

NeedleSettings needle_settings(std::string_view name) {
  if (name == "niah_single_3") return {.uuid_values = true};
  if (name == "niah_multikey_1") return {.keys = 4};
  if (name == "niah_multikey_2") return {.needles_around = true};
  if (name == "niah_multikey_3") return {.uuid_keys = true, .uuid_values = true, .needles_around = true};
  if (name == "niah_multivalue") return {.values = 4};
  if (name == "niah_multiquery") return {.keys = 4, .queries = 4};
  return {};
}

// Draws that are the same on every machine, unlike those of the standard distributions.
class Draws {
 public:
  explicit Draws(uint64_t seed) : random_(seed) {}

  uint64_t bits() { return random_(); }

  size_t below(size_t n) {
    const uint64_t unbiased = UINT64_MAX - UINT64_MAX % n;
    uint64_t x;
    do x = random_();
    while (x >= unbiased);
    return static_cast<size_t>(x % n);
  }

  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }

  // `count` of 0..n-1, all different, in the order drawn.
  std::vector<size_t> sample(size_t n, size_t count) {
    std::vector<size_t> all(n);
    std::iota(all.begin(), all.end(), size_t{0});
    for (size_t i = 0; i < count; ++i) std::swap(all[i], all[i + below(n - i)]);
    all.resize(count);
    return all;
  }

  std::string letters(char first, size_t count) {
    std::string text(count, first);
    for (char& c : text) c = static_cast<char>(c + static_cast<char>(below(26)));
    return text;
  }

  std::string number(size_t low, size_t high) { return std::to_string(low + below(high - low + 1)); }

  std::string word() {
    const std::string_view first = adjectives()[below(adjectives().size())];
    return fmt::format("{}-{}", first, nouns()[below(nouns().size())]);
  }

  std::string uuid() {  // version 4
    const uint64_t high = (bits() & ~0xf000ull) | 0x4000, low = (bits() & ~(3ull << 62)) | 1ull << 63;
    return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, high >> 16 & 0xffff, high & 0xffff, low >> 48,
                       low & 0xffffffffffff);
  }

 private:
  std::mt19937_64 random_;
};

// A task's sample with a haystack of `size` units; larger ones contain what smaller ones do.
using Maker = std::function<TaskSample(int64_t size)>;

TaskSample make_needle(const Task& task, const TaskOptions& options, int64_t size) {
  const NeedleSettings set = needle_settings(task.name);
  const std::string_view kind = set.uuid_values ? "uuids" : "numbers";
  Draws draws(options.seed);
  auto value = [&] { return set.uuid_values ? draws.uuid() : draws.number(1'000'000, 9'999'999); };
  auto key = [&] { return set.uuid_keys ? draws.uuid() : draws.word(); };
  struct Needle {
    size_t key;
    std::string value;
  };
  std::vector<std::string> keys;
  std::vector<Needle> needles;
  while (keys.size() < set.keys) {
    std::string drawn = key();
    if (std::find(keys.begin(), keys.end(), drawn) != keys.end()) continue;
    keys.push_back(std::move(drawn));
    for (size_t v = 0; v < set.values; ++v) needles.push_back({keys.size() - 1, value()});
  }
  draws.shuffle(needles);
  const std::vector<size_t> asked = draws.sample(set.keys, set.queries);

  // Places are shares of the haystack, so that they hold for any size.
  std::vector<double> shares;
  for (size_t step : draws.sample(40, needles.size())) shares.push_back(std::round(static_cast<double>(step) / 0.39));
  std::sort(shares.begin(), shares.end());
  if (options.depth >= 0) {  // the needle asked for stands there, the others keep their places
    const auto own = std::find_if(needles.begin(), needles.end(), [&](const Needle& n) { return n.key == asked[0]; });
    Needle moved = std::move(*own);
    shares.erase(shares.begin() + (own - needles.begin()));
    needles.erase(own);
    const auto at = std::upper_bound(shares.begin(), shares.end(), options.depth) - shares.begin();
    shares.insert(shares.begin() + at, options.depth);
    needles.insert(needles.begin() + at, std::move(moved));
  }

  std::vector<std::string> haystack;
  if (task.essay)
    haystack = ruler::essay_sentences(options.essay, size);
  else if (set.needles_around)
    while (static_cast<int64_t>(haystack.size()) < size) {
      const std::string other = key();
      if (other != keys[0]) haystack.push_back(ruler::needle(kind, other, value()));
    }
  else
    haystack.assign(static_cast<size_t>(size), std::string(ruler::kNoise));
  std::vector<ruler::Insertion> insertions;
  for (size_t i = 0; i < needles.size(); ++i)
    insertions.push_back({static_cast<int64_t>(static_cast<double>(haystack.size()) * shares[i] / 100),
                          ruler::needle(kind, keys[needles[i].key], needles[i].value)});
  const std::string context =
      task.essay ? ruler::sentences_with(haystack, insertions) : ruler::lines_with(haystack, insertions);

  TaskSample sample;
  std::vector<std::string> queries;
  for (size_t k : asked) {
    queries.push_back(keys[k]);
    for (const Needle& needle : needles)  // of one key: in the order of the text
      if (needle.key == k) sample.targets.push_back(needle.value);
  }
  sample.prompt = ruler::needle_prompt(kind, context, queries, set.queries * set.values == 1);
  sample.answer = " " + ruler::listed(sample.targets);
  return sample;
}

std::string draw_variables(Draws& draws, size_t letters, int64_t noises, std::vector<std::string>& names) {
  constexpr size_t kNames = 5;
  names.clear();
  while (names.size() < kNames) {
    std::string name = draws.letters('A', letters);
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  }
  const std::string value = draws.number(10'000, 99'998);
  const std::vector<size_t> drawn = draws.sample(static_cast<size_t>(noises), kNames);
  std::vector<int64_t> places(drawn.begin(), drawn.end());
  std::sort(places.begin(), places.end());
  const std::vector<std::string> chain = ruler::variable_chain(names, value);
  std::vector<ruler::Insertion> insertions;
  for (size_t i = 0; i < kNames; ++i) insertions.push_back({places[i], chain[i]});
  const std::vector<std::string> noise(static_cast<size_t>(noises), std::string(ruler::kNoise));
  return ruler::variable_prompt(ruler::lines_with(noise, insertions), value, kNames);
}

// The example, of names with 3 letters, that comes before the question.
std::string variables_example(uint64_t seed, int64_t noises) {
  Draws draws(~seed);
  std::vector<std::string> names;
  const std::string question = draw_variables(draws, 3, noises, names);
  return question + " " + ruler::joined(names, " ") + "\n\n";
}

TaskSample make_variables(const TaskOptions& options, int64_t size, const std::string& example) {
  Draws draws(options.seed);
  TaskSample sample;
  sample.prompt = example + draw_variables(draws, 5, size, sample.targets);
  sample.answer = " " + ruler::joined(sample.targets, " ");
  return sample;
}

std::vector<std::string> draw_words(Draws& draws, size_t count) {
  static const std::vector<std::string> all = [] {
    std::set<std::string> words;
    for (const auto* list : {&nouns(), &adjectives(), &verbs()})
      for (std::string_view word : *list) words.emplace(word);
    return std::vector<std::string>(words.begin(), words.end());
  }();
  std::vector<std::string> words;
  for (size_t index : draws.sample(all.size(), std::min(count, all.size()))) words.push_back(all[index]);
  for (std::set<std::string> more; words.size() < count;) {
    std::string pair = draws.word();
    if (more.insert(pair).second) words.push_back(std::move(pair));
  }
  return words;
}

TaskSample make_common_words(const TaskOptions& options, int64_t size) {
  Draws draws(options.seed);
  constexpr size_t kCommon = 10;
  auto list = [&](size_t count, size_t common_repeats, size_t other_repeats, std::vector<std::string>& common) {
    const std::vector<std::string> words = draw_words(draws, count);
    common.assign(words.begin(), words.begin() + kCommon);
    std::vector<std::string> all;
    for (size_t i = 0; i < words.size(); ++i)
      all.insert(all.end(), i < kCommon ? common_repeats : other_repeats, words[i]);
    draws.shuffle(all);
    return ruler::common_words_prompt(ruler::numbered(all));
  };
  const bool longer = options.length >= kLongHaystack;
  const size_t count = static_cast<size_t>(size) + kCommon;
  TaskSample sample;
  std::vector<std::string> common;
  std::string example = longer ? list(40, 10, 3, common) : list(20, 3, 1, common);
  example += " " + ruler::numbered(common) + "\n";
  sample.prompt = example + (longer ? list(count, 30, 3, sample.targets) : list(count, 6, 1, sample.targets));
  sample.answer = " " + ruler::numbered(sample.targets);
  return sample;
}

// Word k of the vocabulary, from 1, comes floor(size k^-2 / zeta(2)) times; the first is noise.
TaskSample make_frequent_words(const TaskOptions& options, int64_t size) {
  constexpr double kZeta2 = 1.6449340668482264;
  constexpr int64_t kFewest = 4;
  Draws draws(options.seed);
  std::set<std::string> distinct;
  while (static_cast<int64_t>(distinct.size()) < std::max(options.length / 50, kFewest))
    distinct.insert(draws.letters('a', 6));
  std::vector<std::string> vocabulary(distinct.begin(), distinct.end());
  draws.shuffle(vocabulary);
  vocabulary[0] = "...";
  std::vector<std::string> words;
  for (size_t k = 1; k <= vocabulary.size(); ++k) {
    const double count = static_cast<double>(size) / static_cast<double>(k * k) / kZeta2;
    words.insert(words.end(), static_cast<size_t>(count), vocabulary[k - 1]);
  }
  draws.shuffle(words);
  TaskSample sample;
  sample.targets.assign(vocabulary.begin() + 1, vocabulary.begin() + kFewest);
  sample.prompt = ruler::frequent_words_prompt(ruler::joined(words, " "));
  sample.answer = " " + ruler::joined(sample.targets, ", ");
  return sample;
}

int64_t count_tokens(const Tokenizer& tokenizer, const std::string& text) {
  return static_cast<int64_t>(tokenizer.encode(text).size());
}

// The largest size of at least `smallest` whose prompt has at most `limit` tokens.
TaskSample largest(const Maker& make, int64_t smallest, int64_t limit, const Task& task, const TaskOptions& options,
                   const Tokenizer& tokenizer) {
  auto attempt = [&](int64_t size) {
    TaskSample sample = make(size);
    sample.tokens = count_tokens(tokenizer, sample.prompt);
    sample.question = sample.prompt.rfind(task.kind == TaskKind::kNeedle ? "\nWhat " : "\nQuestion: ");
    return sample;
  };
  TaskSample best = attempt(smallest);
  if (best.tokens > limit)
    throw Error(ErrorKind::kArgument, "task", "length", std::to_string(options.length),
                fmt::format("{} needs at least {} of this model's tokens", task.name, best.tokens + task.answer));
  int64_t low = smallest, high = smallest;
  for (int64_t step = std::max<int64_t>(smallest, 16);; step *= 2) {
    TaskSample sample = attempt(low + step);
    high = low + step;
    if (sample.tokens > limit) break;
    best = std::move(sample);
    low = high;
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    TaskSample sample = attempt(middle);
    if (sample.tokens <= limit) {
      best = std::move(sample);
      low = middle;
    } else {
      high = middle;
    }
  }
  return best;
}

}  // namespace

std::span<const Task> tasks() {
  return kTasks;
}

std::vector<const Task*> find_tasks(std::string_view name) {
  std::vector<const Task*> found;
  if (name == "needle") name = "niah_single_2";
  std::vector<std::string_view> names = {"ruler", "needle"};
  for (const Task& task : kTasks) {
    if (name == "ruler" || name == task.name) found.push_back(&task);
    names.push_back(task.name);
  }
  if (found.empty()) {
    const auto nearest = nearest_name(name, names);
    throw Error(ErrorKind::kSpec, "task", "name", fmt::format("\"{}\"", printable(name)),
                nearest ? fmt::format("is no known task; did you mean \"{}\"?", *nearest)
                        : fmt::format("is no known task; known are {}", fmt::join(names, ", ")));
  }
  return found;
}

TaskSample draw_task(const Task& task, const TaskOptions& options, const Tokenizer& tokenizer) {
  if (options.length < kShortest)
    throw Error(ErrorKind::kArgument, "task", "length", std::to_string(options.length),
                fmt::format("must be at least {}", kShortest));
  if (!(options.depth <= 100) || (options.depth >= 0 && !task.at_depth))
    throw Error(ErrorKind::kArgument, "task", "depth", fmt::format("{}", options.depth),
                task.at_depth ? "must be 0 to 100" : fmt::format("{} has none", task.name));
  const int64_t limit = options.length - task.answer;
  auto fit = [&](const Maker& make, int64_t smallest) {
    return largest(make, smallest, limit, task, options, tokenizer);
  };
  switch (task.kind) {
    case TaskKind::kNeedle:
      return fit([&](int64_t size) { return make_needle(task, options, size); }, task.essay ? 50 : kFewestLines);
    case TaskKind::kVariables: {
      // RULER's example is as long as 500 tokens allow.
      const int64_t most = std::min<int64_t>(500, limit / 2);
      std::string example = variables_example(options.seed, kFewestLines);
      for (int64_t lines = kFewestLines + 1;; ++lines) {
        std::string more = variables_example(options.seed, lines);
        if (count_tokens(tokenizer, more) > most) break;
        example = std::move(more);
      }
      return fit([&](int64_t size) { return make_variables(options, size, example); }, kFewestLines);
    }
    case TaskKind::kCommonWords:
      return fit([&](int64_t size) { return make_common_words(options, size); }, 0);
    case TaskKind::kFrequentWords:
      break;
  }
  return fit([&](int64_t size) { return make_frequent_words(options, size); }, 32);
}

double string_match(std::string_view answer, std::span<const std::string> targets) {
  auto lower = [](std::string_view text) {
    std::string out(text);
    for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    return out;
  };
  const std::string text = lower(answer);
  double found = 0;
  for (const std::string& target : targets) found += text.find(lower(target)) != std::string::npos;
  return targets.empty() ? 0 : found / static_cast<double>(targets.size());
}

}  // namespace attend
