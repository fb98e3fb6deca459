#pragma once

#include <stdexcept>
#include <string>

namespace foretoken {

/// The input or the machine cannot serve what was asked: a bad file, an unsupported type, too little memory. The
/// message is one line that names the file or flag, the value, the limit and what to do. Programs end with exit code 1.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The command line or the environment is wrong. Programs end with exit code 2.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Somebody asked the work to stop (SessionOptions::stop): a signal. Programs end with exit code
/// 130.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

/// A fault of our own: prints expression, both values, file and line, and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* expression, const std::string& values);

}  // namespace foretoken

/// FT_CHECK(n > 0): our own bug if false. Never for what an input can trigger.
#define FT_CHECK(expression) \
  (static_cast<bool>(expression) ? void(0) : ::foretoken::check_failed(__FILE__, __LINE__, #expression, ""))

/// FT_CHECK_EQ(a, b): our own bug if they differ; the message has both values.
#define FT_CHECK_EQ(a, b)                                                   \
  ((a) == (b) ? void(0)                                                     \
              : ::foretoken::check_failed(__FILE__, __LINE__, #a " == " #b, \
                                          std::to_string(a) + " against " + std::to_string(b)))
