#pragma once
// What a policy keeps of a text, drawn by layer and kv head and over the text itself.
#include <string>
#include <vector>

#include "attend/study/kept.h"

namespace attend {

struct KeptFigure {
  std::string title;
  const KeptMap& map;
  const std::vector<std::string>& pieces;  // bytes of each token; characters may reach over several
};

// A <figure>: a line a kv head, the text from left to right, the stronger the colour the more of a stretch is held;
// then the text, each token the stronger the more heads hold it. Of a long text the middle is left out. Everything is
// escaped. Needs the style of a Page. Throws Error(kArgument) if there is not one piece a token.
std::string kept_html(const KeptFigure& figure);

}  // namespace attend
