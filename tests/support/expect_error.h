#pragma once
// One line of an error: kind and a part of the message, nothing that a terminal would act on.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "attend/tensor/error.h"

namespace attend::test {

template <class F>
void expect_error(ErrorKind kind, std::string_view part, F&& action) {
  try {
    action();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(error.kind(), kind) << text;
    EXPECT_NE(text.find(part), std::string::npos) << "'" << text << "' lacks '" << part << "'";
    EXPECT_TRUE(std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }))
        << text;
    return;
  }
  ADD_FAILURE() << "no error; expected one with '" << part << "'";
}

}  // namespace attend::test
