#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace foretoken {

/// Splits text into the words within which BPE merges, by the pattern that a file's `tokenizer.ggml.pre` names.
/// Immutable; any number of threads may use it at once.
class Pretokenizer {
 public:
  /// Nothing if the name is none of names(). use_jit = false runs PCRE2's interpreter, as on systems that forbid
  /// generated code.
  [[nodiscard]] static std::optional<Pretokenizer> find(std::string_view name, bool use_jit = true);
  [[nodiscard]] static std::string names();  // "qwen2, qwen35 ...", for messages

  /// Whether the models' own tokenizers bring text into Unicode's normal form C before they split it.
  [[nodiscard]] bool normalises() const;

  ~Pretokenizer();
  Pretokenizer(Pretokenizer&&) noexcept;
  Pretokenizer& operator=(Pretokenizer&&) noexcept;

  /// The words of `text`, in order; together they are the whole text. REQUIRES: `text` is valid UTF-8.
  /// Throws InputError if PCRE2 gives up (out of memory).
  [[nodiscard]] std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Pattern;
  explicit Pretokenizer(std::unique_ptr<const Pattern> pattern);
  std::unique_ptr<const Pattern> pattern_;
};

}  // namespace foretoken
