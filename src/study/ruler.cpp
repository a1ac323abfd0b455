#include "study/ruler.h"

#include <fmt/format.h>

#include "attend/tensor/error.h"

namespace attend::ruler {
namespace {

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t i = 0; i < text.size();) {
    while (i < text.size() && is_space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !is_space(text[i])) ++i;
    if (i > begin) words.push_back(text.substr(begin, i - begin));
  }
  return words;
}

}  // namespace

std::string needle(std::string_view kind, std::string_view key, std::string_view value) {
  return fmt::format("One of the special magic {} for {} is: {}.", kind, key, value);
}

std::string joined(const std::vector<std::string>& items, std::string_view between) {
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i) text += between;
    text += items[i];
  }
  return text;
}

std::string listed(const std::vector<std::string>& items) {
  if (items.size() < 2) return joined(items, "");
  return joined({items.begin(), items.end() - 1}, ", ") + ", and " + items.back();
}

std::string lines_with(const std::vector<std::string>& lines, const std::vector<Insertion>& insertions) {
  std::vector<std::string> all;
  size_t next = 0;
  for (size_t i = 0; i <= lines.size(); ++i) {
    for (; next < insertions.size() && insertions[next].place <= static_cast<int64_t>(i); ++next)
      all.push_back(insertions[next].text);
    if (i < lines.size()) all.push_back(lines[i]);
  }
  return joined(all, "\n");
}

std::string sentences_with(const std::vector<std::string>& sentences, const std::vector<Insertion>& insertions) {
  std::vector<std::string> parts;
  auto begin = sentences.begin();
  for (const Insertion& insertion : insertions) {
    const auto end = sentences.begin() + insertion.place;
    parts.push_back(joined({begin, end}, " "));
    parts.push_back(insertion.text);
    begin = end;
  }
  parts.push_back(joined({begin, sentences.end()}, " "));
  return joined(parts, " ");
}

std::vector<std::string> essay_sentences(std::string_view text, int64_t words) {
  const std::vector<std::string_view> all = words_of(text);
  if (all.empty()) throw Error(ErrorKind::kArgument, "task", "haystack", "a text without words", "must have some");
  std::vector<std::string> sentences;
  bool ended = true;
  for (int64_t i = 0; i < words; ++i) {
    const std::string_view word = all[static_cast<size_t>(i) % all.size()];
    if (ended)
      sentences.emplace_back(word);
    else
      (sentences.back() += ' ') += word;
    ended = word.ends_with('.') || word.ends_with('!') || word.ends_with('?');
  }
  return sentences;
}

std::string needle_prompt(std::string_view kind, const std::string& context, const std::vector<std::string>& queries,
                          bool one_answer) {
  const std::string_view noun = one_answer ? kind.substr(0, kind.size() - 1) : kind;
  const std::string query = listed(queries);
  return fmt::format(
      "{0} special magic {1} {2} hidden within the following text. Make sure to memorize it. I will quiz you about the "
      "{1} afterwards.\n{3}\nWhat {4} the special magic {1} for {5} mentioned in the provided text? The special magic "
      "{1} for {5} mentioned in the provided text {2}",
      one_answer ? "A" : "Some", noun, one_answer ? "is" : "are", context, one_answer ? "is" : "are all", query);
}

std::vector<std::string> variable_chain(const std::vector<std::string>& names, std::string_view value) {
  std::vector<std::string> chain = {fmt::format("VAR {} = {}", names.front(), value)};
  for (size_t i = 1; i < names.size(); ++i) chain.push_back(fmt::format("VAR {} = VAR {} ", names[i], names[i - 1]));
  return chain;
}

std::string variable_prompt(const std::string& context, std::string_view value, size_t variables) {
  return fmt::format(
      "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{0}\nQuestion: Find all "
      "variables that are assigned the value {1} in the text above. Answer: According to the chain(s) of variable "
      "assignment in the text above, {2} variables are assigned the value {1}, they are: ",
      context, value, variables);
}

std::string numbered(const std::vector<std::string>& words) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) text += fmt::format("{}{}. {}", i ? " " : "", i + 1, words[i]);
  return text;
}

std::string common_words_prompt(const std::string& context) {
  return fmt::format(
      "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
      "appear most often.\n{}\nQuestion: What are the 10 most common words in the above list? Answer: The top 10 words "
      "that appear most often in the list are:",
      context);
}

std::string frequent_words_prompt(const std::string& context) {
  return fmt::format(
      "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
      "appeared coded words. {}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the "
      "three most frequently appeared words in the above coded text? Answer: According to the coded text above, the "
      "three most frequently appeared words are:",
      context);
}

}  // namespace attend::ruler
