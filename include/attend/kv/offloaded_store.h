#pragma once
// Keys and values in a file, mapped: a layer is read ahead while the one before it runs, and written behind after its
// turn. Slot s of a head is row s of one run, which any kernel reads.
//
// Memory   The first layers stay, as many as `resident` allows beside the three in motion: the one that runs, the one
//          being read and the one being written. Layers run in a circle, so that a fixed share stays hot where evicting
//          the oldest would lose every layer before its turn. Less than three layers can't be held.
// File     unlinked at once, with blocks allocated before they are written: a full disk is an error of append(), not a
//          signal. An input error of the disk while keys are read does end the process (SIGBUS).
// Cost     append O(rows) and the input and output of what does not stay; keep O(rows after the first dropped).
#include <memory>
#include <string>

#include "attend/kv/store.h"

namespace attend {

struct OffloadedOptions {
  int64_t resident = 256;  // MiB of keys and values in memory
  int64_t reserve = 0;     // tokens, 0: the shape's context
  std::string directory;   // empty: $TMPDIR, else /tmp
};

// bytes() is what lies in memory, the system's file cache included; disk_bytes() what the file occupies.
// Throws Error(kArgument) as check_store_shape(), for a negative option, and if neither reserve nor context is given;
// Error(kMemory) where so many addresses can't be reserved, and from append() for tokens beyond them; Error(kFile)
// where no file can be made, and from append() where it can't grow.
std::unique_ptr<Store> make_offloaded_store(const StoreShape& shape, const OffloadedOptions& options = {});

}  // namespace attend
