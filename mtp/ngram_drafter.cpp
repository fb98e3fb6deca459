#include "mtp/ngram_drafter.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "mtp/byte_stream.h"
#include "mtp/statistics.h"

namespace foretoken {

namespace {

// The known token behind the committed ones, and drafts on top while a window grows.
int64_t tokens_of(const SessionOptions& options) {
  return options.ctx_size + 1 + kMaxDraft;
}

}  // namespace

NgramDrafter::NgramDrafter(const Engine& engine)
    : vocab_size_(engine.model().config().vocab_size), max_tokens_(tokens_of(engine.options())) {
  indexes_.reserve(engine.options().parallel);
  for (int i = 0; i < engine.options().parallel; ++i) indexes_.emplace_back(max_tokens_);
}

size_t NgramDrafter::size_bytes(const SessionOptions& options) {
  return static_cast<size_t>(options.parallel) * NgramIndex::size_bytes(tokens_of(options));
}

DraftTimes NgramDrafter::follow(std::span<const KnownTokens> known) {
  for (const KnownTokens& tokens : known) text_of(*tokens.sequence).append(tokens.ids);
  return {};
}

DraftTimes NgramDrafter::extend(std::span<DraftWindow* const> windows) {
  for (DraftWindow* window : windows) {
    NgramIndex& text = text_of(*window->sequence);
    const int64_t known = text.size();
    if (known + static_cast<int64_t>(window->drafts.size()) > max_tokens_) continue;
    text.append(window->drafts);
    TokenId draft = 0;
    float confidence = 0;
    const int offered = text.propose({&draft, 1}, {&confidence, 1});
    text.rewind(known);
    if (offered == 0) continue;
    window->drafts.push_back(draft);
    window->confidences.push_back(confidence);
  }
  return {};
}

void NgramDrafter::save(const Sequence& sequence, std::vector<std::byte>& to) const {
  put_all(to, index(sequence).tokens());
}

void NgramDrafter::restore(const Sequence& sequence, std::span<const std::byte>& from) {
  std::vector<TokenId> ids;
  take_all(from, ids);
  const auto known = [&](TokenId id) { return id >= 0 && id < vocab_size_; };
  if (static_cast<int64_t>(ids.size()) > sequence.length() + 1 || !std::all_of(ids.begin(), ids.end(), known))
    throw InputError("the saved sequence is damaged: its drafts do not fit its text");
  text_of(sequence).rewind(0);
  text_of(sequence).append(ids);
}

void NgramDrafter::copy(const Sequence& from, const Sequence& to) {
  text_of(to).rewind(0);
  text_of(to).append(index(from).tokens());
}

}  // namespace foretoken
