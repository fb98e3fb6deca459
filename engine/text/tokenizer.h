#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

class GgufFile;

using TokenId = int32_t;

/// A piece of a text that is tokenized as a whole.
struct TextPart {
  std::string text;
  bool parse_special = false;  // text that spells a control token becomes that token
};

/// Byte-level BPE as GGUF files describe it (`tokenizer.ggml.model` = gpt2) with one of Pretokenizer::names(): special
/// tokens cut out whole, NFC where the pre-tokenizer has it, pattern split, bytes to the 256 GPT-2 characters, merges by
/// rank. Immutable after loading; any number of threads may use it at once.
class Tokenizer {
 public:
  /// Throws InputError for a missing or malformed vocabulary or an unsupported model or pre-tokenizer.
  [[nodiscard]] static Tokenizer load(const GgufFile& file);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /// Token ids of a UTF-8 text. Throws InputError naming the byte offset if the text is not valid UTF-8. parse_special:
  /// text that spells a control token (<|im_end|>) becomes that token; otherwise it is plain text. User-defined tokens
  /// (<think>) are part of plain text: the models' own tokenizers know them everywhere.
  [[nodiscard]] std::vector<TokenId> encode(std::string_view text, bool parse_special = true) const;
  /// The same of parts that follow each other: between tokens that are cut out whole, text goes on over their ends.
  [[nodiscard]] std::vector<TokenId> encode(std::span<const TextPart> parts) const;
  /// The first control token that the text spells; empty if it spells none.
  [[nodiscard]] std::string_view find_control_token(std::string_view text) const;

  /// Bytes of one token; special (control) tokens give their name if keep_special, else nothing. May be part of a UTF-8
  /// character. REQUIRES: 0 <= id < vocab_size().
  [[nodiscard]] std::string_view piece(TokenId id, bool keep_special = false) const;
  [[nodiscard]] std::string decode(std::span<const TokenId> ids, bool keep_special = false) const;

  [[nodiscard]] int vocab_size() const;
  [[nodiscard]] bool is_special(TokenId id) const;             // control or user-defined
  [[nodiscard]] std::span<const TokenId> special_ids() const;  // rising
  /// Tokens that end a generation: those that the file names as eos, eot, eom, or as padding, repository or file mark
  /// of a fill in the middle, and those whose names say it (<|im_end|>, <|endoftext|>, <|fim_pad|> ...).
  [[nodiscard]] bool is_end_of_generation(TokenId id) const;
  [[nodiscard]] std::string_view chat_template() const;  // empty if the file has none
  [[nodiscard]] bool add_bos() const;
  [[nodiscard]] TokenId bos() const;  // -1 if none
  /// Puts bos() in front of a prompt where the file asks for it and it is not there yet.
  void begin_prompt(std::vector<TokenId>& ids) const;
  [[nodiscard]] TokenId eos() const;  // -1 if none

 private:
  Tokenizer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Holds back bytes until they form whole UTF-8 characters, for streaming.
class Utf8Stream {
 public:
  /// Appends bytes; returns the longest part that ends at a character boundary (bytes that can never become valid pass
  /// as U+FFFD).
  [[nodiscard]] std::string push(std::string_view bytes);
  /// What is left at the end: U+FFFD if an unfinished character was held back, else nothing.
  [[nodiscard]] std::string finish();

 private:
  std::string held_;
};

/// Byte offset of the first byte that is not part of valid UTF-8, or npos.
[[nodiscard]] size_t find_invalid_utf8(std::string_view text);

}  // namespace foretoken
