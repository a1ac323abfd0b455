#include "kv/reserved.h"

#include <fmt/format.h>

#include "attend/tensor/error.h"
#include "kv/mapping.h"
#include "kv/store_base.h"

namespace attend::kv {

Reserved::Reserved(std::string_view name, const StoreShape& shape, int64_t reserve)
    : store(name), tokens(reserve ? reserve : shape.context) {
  check_store_shape(shape);
  constexpr int64_t kMost = int64_t{1} << 31;
  if (tokens < 1 || tokens > kMost)
    throw Error(ErrorKind::kArgument, store, "reserve", fmt::format("{}", tokens),
                fmt::format("must be 1..{} tokens, or the context be known", kMost));
  heads = int64_t{shape.layers} * shape.kv_heads;
  k_region = round_up(tokens * row_bytes(shape.codec, shape.d), system_page());
  v_region = round_up(tokens * row_bytes(shape.v_codec, shape.dv), system_page());
  constexpr double kAddresses = 0x1p62;
  if (static_cast<double>(heads) * static_cast<double>(k_region + v_region) > kAddresses)
    throw Error(ErrorKind::kMemory, store, "reserve", fmt::format("{} tokens", tokens),
                "are more than there are addresses for");
}

void Reserved::check(int64_t wanted) const {
  if (wanted > tokens)
    throw Error(ErrorKind::kMemory, store, "tokens", fmt::format("{}", wanted),
                fmt::format("are more than the {} reserved", tokens));
}

}  // namespace attend::kv
