#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"
#include "mtp/scheduler.h"

// Texts of the prefix cache as bytes: a saved generation (saved_generation.cpp) whose prompt has one more token, which
// is not read.

namespace foretoken {

std::vector<TokenId>& Scheduler::text_of(int slot) {
  FT_CHECK(slot >= 0 && slot < static_cast<int>(slot_texts_.size()));
  return slot_texts_[slot];
}

std::vector<std::byte> Scheduler::save_text(int slot, int64_t* num_tokens) {
  std::vector<TokenId> text = text_of(slot);
  // A text that fills the context could not be begun with again.
  text.resize(std::min(text.size(), static_cast<size_t>(engine_.options().ctx_size) - 2));
  text.push_back(0);
  const TextCheckpoint* from = cache_.find(text, options_.generator.max_drafts > 0);
  if (from == nullptr) from = cache_.find(text, /*with_drafts=*/false);
  if (from == nullptr) throw InputError(fmt::format("slot {} has left no text in the cache", slot));
  if (engine_.free_slots() == 0) throw InputError("no slot is free for this now; try again");
  text.resize(static_cast<size_t>(from->length()) + 1);
  *num_tokens = from->length();
  GenerationOptions options;
  options.max_drafts = from->drafts ? options_.generator.max_drafts : 0;
  Sequence sequence(engine_);
  const std::unique_ptr<Generation> generation =
      generator_.resume(*from, sequence, std::move(text), std::move(options));
  if (generation == nullptr) throw InputError("no pages are free for this now; try again");
  std::vector<std::byte> saved = generator_.save(*generation);
  generator_.leave(*generation);
  return saved;
}

int64_t Scheduler::restore_text(int slot, std::span<const std::byte> saved) {
  if (engine_.free_slots() == 0) throw InputError("no slot is free for this now; try again");
  GenerationOptions options;
  options.max_drafts = options_.generator.max_drafts;
  Sequence sequence(engine_);
  const std::unique_ptr<Generation> generation = generator_.restore(sequence, saved, std::move(options));
  std::vector<TokenId> text(generation->prompt().begin(), generation->prompt().end());
  std::unique_ptr<TextCheckpoint> checkpoint;
  if (generation->unread() > 0 && sequence.length() > 0) {
    text.resize(sequence.length());
    checkpoint = generator_.checkpoint(*generation);
  }
  generator_.leave(*generation);
  if (checkpoint == nullptr) throw InputError("the saved text is one that was being continued, not one of the cache");
  cache_.insert(text, std::move(checkpoint));
  text_of(slot) = text;
  return static_cast<int64_t>(text.size());
}

int64_t Scheduler::erase_text(int slot) {
  std::vector<TokenId>& text = text_of(slot);
  const auto num_tokens = static_cast<int64_t>(text.size());
  cache_.drop(text);
  text.clear();
  return num_tokens;
}

}  // namespace foretoken
