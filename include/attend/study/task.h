#pragma once
// Questions about long texts: the synthetic tasks of RULER (Hsieh et al. 2024, arXiv:2404.06654, section 3), generated
// to a length in the tokens of a model.
//
//   niah_single_1..3    a key and its value hidden in repeated noise (1) or an essay (2, 3); the value is asked for
//   niah_multikey_1..3  three more keys (1), or nothing but other keys and values (2, 3: of which values are UUIDs)
//   niah_multivalue     four values of one key
//   niah_multiquery     four keys with a value each
//   vt                  a chain of five assigned variables in repeated noise; all that hold a value are asked for
//   cwe, fwe            the ten most common words of a list; the three of a text whose word counts follow a zeta law
//
// Wording, counts and answers are those of the authors' generators (NVIDIA/RULER, scripts/data/synthetic and
// scripts/synthetic.yaml, base template). What differs: random numbers and word lists are attend's own; every sample is
// fitted to the length by itself; needles stand at RULER's 40 depths in every haystack; the example before vt takes
// half of a length below 1000; sentences of the essay end at a mark of . ! ? before a space; a common-words list
// longer than the word lists goes on with hyphenated pairs; an asked-for needle can be put at a depth of choice.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attend/lm/tokenizer.h"

namespace attend {

enum class TaskKind { kNeedle, kVariables, kCommonWords, kFrequentWords };

struct Task {
  std::string_view name, summary;
  TaskKind kind;
  bool essay = false;     // reads the haystack text
  bool at_depth = false;  // one needle is asked for, so its depth can be chosen
  int64_t answer = 0;     // tokens that RULER leaves for the answer
};

std::span<const Task> tasks();

// One name, "needle" for niah_single_2, or "ruler" for all of them. Throws Error(kSpec), which names the nearest one.
std::vector<const Task*> find_tasks(std::string_view name);

struct TaskOptions {
  int64_t length = 4096;  // tokens of the prompt and of what RULER leaves for the answer; at least 256
  double depth = -1;      // percent of the haystack before the needle, 0 to 100; below 0: drawn, as RULER does
  uint64_t seed = 0;
  std::string_view essay = {};  // of tasks that read one
};

struct TaskSample {
  std::string prompt;                // a base model continues it with the answer
  std::string answer;                // that continuation, one that is right, with its leading space
  std::vector<std::string> targets;  // what string_match looks for
  int64_t tokens = 0;                // of the prompt
  size_t question = 0;               // where in the prompt the question begins, after all that it is about
};

// Draws one sample; the same arguments give the same sample on every machine. Its prompt is the longest that leaves
// Task::answer tokens of the length. Cost: about 15 encodings of the prompt.
// Throws Error(kArgument) for a length that the shortest prompt exceeds, a depth beyond 100 or where the task has none,
// or an essay without words.
TaskSample draw_task(const Task& task, const TaskOptions& options, const Tokenizer& tokenizer);

// RULER's score of an answer, string_match_all: the share of the targets that it contains, whatever their case (ASCII).
double string_match(std::string_view answer, std::span<const std::string> targets);

}  // namespace attend
