#pragma once
// Arrays in NumPy's .npy format, versions 1 to 3, C order (Fortran order is read too). bf16 travels as u2 where the
// reader asks for it.
#include <filesystem>
#include <span>

#include "attend/tensor/buffer.h"
#include "attend/tensor/view.h"

namespace attend {

struct Array {
  Buffer storage;
  View view;  // of `storage`
};

// An array with room for the given shape, uninitialised. Throws Error(kMemory).
Array make_array(DType type, int rank, const Shape& shape);

// Throws Error(kFile) for anything that is not a whole, well-formed .npy of a type that DType covers (u2 reads as
// bf16).
Array read_npy(const std::filesystem::path& path);
Array parse_npy(std::span<const std::byte> bytes, std::string_view name);

// Writes beside the target, then renames. Throws Error(kFile), and Error(kArgument) for a type that no array has.
void write_npy(const std::filesystem::path& path, const View& view);

}  // namespace attend
