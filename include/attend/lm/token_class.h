#pragma once
// What kind of token an id is, for retentions that keep some kinds.
#include "attend/kv/retention.h"
#include "attend/lm/tokenizer.h"

namespace attend {

// kSpecial: BOS, ends of generations and other control tokens. kPunctuation: ASCII punctuation alone, spaces around it
// allowed. Throws Error(kArgument) for an id outside the vocabulary.
TokenClass class_of(int32_t id, const Tokenizer& tokenizer);

}  // namespace attend
