#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"

namespace foretoken::synth {

/// A byte-level BPE vocabulary of the size asked for: ids 0 to 255 are the bytes, then a few merged pieces, then words
/// that no merge reaches, the special tokens last, as in real files.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  // GGUF: 1 normal, 3 control
  std::vector<std::string> merges;
  TokenId end_of_text = 0;  // <|endoftext|>, the padding too
  TokenId end_of_turn = 0;  // <|im_end|>, ends a generation

  static constexpr int64_t kSmallest = 320;
  /// REQUIRES: size >= kSmallest.
  [[nodiscard]] static Vocabulary make(int64_t size);
};

/// False for control tokens and for bytes that are no printable ASCII: a synthetic model never says them.
[[nodiscard]] bool is_printable(TokenId id, int64_t vocab_size);

}  // namespace foretoken::synth
