#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/engine.h"

namespace foretoken {

/// A text at a commit point, to be taken up by any number of others that begin with the same tokens: the sequence's
/// state, and what its drafter knows of it.
struct TextCheckpoint {
  std::unique_ptr<SequenceCheckpoint> sequence;
  bool drafts = false;                 // the drafter has followed it
  std::vector<std::byte> drafter;      // Drafter::save()
  std::vector<float> previous_hidden;  // [hidden_dim] of its last token, for the drafter

  [[nodiscard]] int64_t length() const { return sequence->length(); }
  /// Of the host's memory, beside the pages that it shares.
  [[nodiscard]] size_t bytes() const {
    return sizeof *this + sequence->bytes() + drafter.capacity() + previous_hidden.capacity() * sizeof(float);
  }
};

}  // namespace foretoken
