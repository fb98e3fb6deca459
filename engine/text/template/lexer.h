#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken::jinja {

struct Token {
  enum class Kind {
    kData,
    kBlockBegin,
    kBlockEnd,
    kOutputBegin,
    kOutputEnd,
    kName,
    kString,
    kInt,
    kFloat,
    kOperator,
    kEnd
  };
  Kind kind = Kind::kEnd;
  std::string text;  // of data, a name, a string (escapes resolved) or an operator
  int64_t integer = 0;
  double number = 0;
  int line = 1;
};

/// The tokens of a template, with white space around tags taken away as trim_blocks and lstrip_blocks have it
/// (keep_trailing_newline off); comments are gone. Throws TemplateError.
[[nodiscard]] std::vector<Token> tokenize_template(std::string_view source);

}  // namespace foretoken::jinja
