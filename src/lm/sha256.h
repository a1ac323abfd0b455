#pragma once
#include <fmt/format.h>
#include <openssl/evp.h>

#include <memory>
#include <string>

#include "attend/tensor/error.h"

namespace attend {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    if (!context_ || EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) != 1) refuse();
  }
  void add(const void* data, size_t size) {
    if (EVP_DigestUpdate(context_.get(), data, size) != 1) refuse();
  }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    if (EVP_DigestFinal_ex(context_.get(), digest, &length) != 1) refuse();
    std::string text;
    for (unsigned i = 0; i < length; ++i) text += fmt::format("{:02x}", digest[i]);
    return text;
  }

 private:
  [[noreturn]] static void refuse() { throw Error(ErrorKind::kUnsupported, "[sha256] SHA-256 is not available"); }
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

}  // namespace attend
