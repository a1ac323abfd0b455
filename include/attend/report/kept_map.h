#pragma once
// What a policy keeps of a text, drawn by layer and kv head and over the text itself.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "attend/study/kept.h"

namespace attend {

struct KeptFigure {
  std::string title;
  const KeptMap& map;
  const std::vector<std::string>& pieces;               // bytes of each token; characters may reach over several
  std::vector<std::pair<int64_t, int64_t>> marks = {};  // half-open ranges of tokens that stand out
};

// A <figure>: a line a kv head, the text from left to right, the stronger the colour the more of a stretch is held;
// then the text, each token the stronger the more heads hold it. Marked tokens have a line through all heads and a
// frame in the text. Of a long text what is far from its ends and its marks is left out. Everything is escaped. Needs
// the style of a Page. Throws Error(kArgument) if there is not one piece a token, or for a mark outside of the text.
std::string kept_html(const KeptFigure& figure);

}  // namespace attend
