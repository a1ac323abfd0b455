#include "attend/tensor/cascade.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "attend/tensor/error.h"

namespace attend {
namespace {

[[noreturn]] void refuse(std::string_view line, std::string_view rule) {
  throw Error(ErrorKind::kArgument, "cascade", "line", line, rule);
}

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '\'';
}

bool contains(const std::vector<std::string>& list, std::string_view name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

// One side of an einsum, read from left to right.
class Reader {
 public:
  Reader(std::string_view line, std::string_view text) : line_(line), text_(text) {}

  bool at_end() {
    skip_spaces();
    return at_ >= text_.size();
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  char next() { return text_[at_++]; }
  void skip_spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  std::string word() {
    const size_t begin = at_;
    while (is_word(peek())) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
  // "[i,j]" after a name.
  std::vector<std::string> ranks() {
    std::vector<std::string> list;
    next();
    while (true) {
      skip_spaces();
      list.push_back(word());
      skip_spaces();
      const char c = at_ < text_.size() ? next() : '\0';
      if (list.back().empty() || (c != ',' && c != ']')) refuse(line_, "has ranks that are not like [i,j]");
      if (c == ']') return list;
    }
  }

 private:
  std::string_view line_, text_;
  size_t at_ = 0;
};

Einsum parse_line(std::string_view line) {
  const size_t equals = line.find('=');
  if (equals == std::string_view::npos) refuse(line, "must be name[ranks] = expression");
  Einsum e;
  Reader left(line, line.substr(0, equals));
  left.skip_spaces();
  e.name = left.word();
  if (e.name.empty() || left.peek() != '[') refuse(line, "must begin with name[ranks]");
  e.ranks = left.ranks();
  if (!left.at_end()) refuse(line, "must begin with name[ranks] =");

  Reader right(line, line.substr(equals + 1));
  std::vector<std::string> calls;  // the function of each open parenthesis
  bool summands = false, minus = false;
  for (bool first = true; !right.at_end(); first = false) {
    const char c = right.peek();
    if (!is_word(c)) {
      right.next();
      if (c == '(') calls.emplace_back();
      if (c == ')') {
        if (calls.empty()) refuse(line, "closes a parenthesis that is not open");
        calls.pop_back();
      }
      summands |= calls.empty() && (c == '+' || c == '-');
      minus = c == '-';
      continue;
    }
    const std::string word = right.word();
    if (first && (word.starts_with("sum_") || word.starts_with("max_"))) {
      e.reduction = word.substr(0, 3);
      e.reduced = word.substr(4);
    } else if (right.peek() == '[') {
      const bool in_exp = !calls.empty() && calls.back() == "exp";
      e.operands.push_back({word, right.ranks(),
                            calls.empty()     ? Einsum::Role::kFactor
                            : in_exp && minus ? Einsum::Role::kShift
                                              : Einsum::Role::kOther});
    } else if (right.peek() == '(') {
      right.next();
      calls.push_back(word);
    }
    minus = false;
  }
  if (!calls.empty()) refuse(line, "leaves a parenthesis open");
  if (summands)
    for (Einsum::Operand& o : e.operands)
      if (o.role == Einsum::Role::kFactor) o.role = Einsum::Role::kOther;
  return e;
}

// The pass in which each tensor is made, under one set of rewritings.
class Analysis {
 public:
  Analysis(const std::vector<Einsum>& cascade, std::string_view rank, bool defer, bool running)
      : cascade_(cascade), rank_(rank), defer_(defer), running_(running) {
    for (const Einsum& e : cascade) pass_[e.name] = pass_of(e), last_ = std::max(last_, pass_[e.name]);
  }
  int passes() const { return last_; }

 private:
  bool streams(const Einsum& e) const {
    if (contains(e.ranks, rank_) || e.reduced == rank_) return true;
    return std::any_of(e.operands.begin(), e.operands.end(), [&](const auto& o) { return o.has(rank_); });
  }
  const Einsum* find(std::string_view name) const {
    for (const Einsum& e : cascade_)
      if (e.name == name) return &e;
    return nullptr;
  }

  // Whether a factor of `e` may wait until a sum over the rank is made: `e` is that sum, or goes into such sums alone.
  bool may_wait(const Einsum& e) const {
    if (!contains(e.ranks, rank_)) return e.reduction != "max";
    bool used = false;
    for (const Einsum& user : cascade_)
      for (const Einsum::Operand& o : user.operands) {
        if (o.name != e.name) continue;
        used = true;
        if (o.role != Einsum::Role::kFactor || contains(user.ranks, rank_) || user.reduction == "max") return false;
      }
    return used;
  }

  int pass_of(const Einsum& e) const {
    int pass = streams(e) ? 1 : 0;
    for (const Einsum::Operand& o : e.operands) {
      const auto made = pass_.find(o.name);
      if (made == pass_.end() || made->second == 0) continue;
      const Einsum* source = find(o.name);
      // Made beside the stream: available in the same pass. Made by a reduction of it: only after the pass.
      const bool ready = o.has(rank_) || !streams(e);
      const bool deferred = defer_ && o.role == Einsum::Role::kFactor && may_wait(e);
      const bool rescaled = running_ && o.role == Einsum::Role::kShift && source->reduction == "max";
      pass = std::max(pass, made->second + (ready || deferred || rescaled ? 0 : 1));
    }
    return pass;
  }

  const std::vector<Einsum>& cascade_;
  std::string_view rank_;
  bool defer_, running_;
  std::map<std::string, int, std::less<>> pass_;
  int last_ = 0;
};

}  // namespace

bool Einsum::Operand::has(std::string_view rank) const {
  return contains(ranks, rank);
}

std::vector<Einsum> parse_cascade(std::string_view text) {
  std::vector<Einsum> cascade;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(' ') != std::string_view::npos) cascade.push_back(parse_line(line));
  }
  return cascade;
}

Passes count_passes(const std::vector<Einsum>& cascade, std::string_view rank) {
  return {Analysis(cascade, rank, false, false).passes(), Analysis(cascade, rank, true, false).passes(),
          Analysis(cascade, rank, true, true).passes()};
}

}  // namespace attend
