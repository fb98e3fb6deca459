#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "engine/gguf/sha256.h"
#include "kernels/base/error.h"
#include "mtp/byte_stream.h"
#include "mtp/generator.h"
#include "mtp/mtp_drafter.h"

// Generations between two steps, as bytes and as copies.

namespace foretoken {

namespace {

/// What a saved generation begins with; then sequence, prompt, new tokens, the drafter's part, and the SHA-256 of all
/// before in hexadecimal digits. The model's fingerprint is part of the saved sequence.
struct SavedHeader {
  char magic[8] = {'F', 'T', 'G', 'E', 'N', '0', '0', '1'};
  uint64_t total_bytes = 0;  // with the checksum
};
constexpr size_t kChecksumBytes = 64;

[[noreturn]] void refuse_saved(const std::string& why) {
  throw InputError("the saved text " + why);
}

/// The bytes between header and checksum.
std::span<const std::byte> checked_payload(std::span<const std::byte> saved) {
  SavedHeader header;
  const SavedHeader ours;
  if (saved.size() < sizeof header + kChecksumBytes) refuse_saved("is cut off");
  std::memcpy(&header, saved.data(), sizeof header);
  if (std::memcmp(header.magic, ours.magic, sizeof ours.magic) != 0) refuse_saved("is none, or of another version");
  if (header.total_bytes != saved.size())
    refuse_saved(fmt::format("has {} bytes; {} were written", saved.size(), header.total_bytes));
  const auto checked = saved.first(saved.size() - kChecksumBytes);
  if (sha256_hex(checked) !=
      std::string_view(reinterpret_cast<const char*>(saved.data() + checked.size()), kChecksumBytes))
    refuse_saved("is damaged: its checksum does not match");
  return checked.subspan(sizeof header);
}

bool are_ids(const std::vector<TokenId>& ids, int64_t vocab_size) {
  return std::all_of(ids.begin(), ids.end(), [&](TokenId id) { return id >= 0 && id < vocab_size; });
}

/// The last new token has not been in the trunk; before there is one, part of the prompt may have been.
bool fits_text(int64_t length, size_t prompt_tokens, size_t new_tokens) {
  const auto prompt = static_cast<int64_t>(prompt_tokens);
  return new_tokens == 0 ? length < prompt : length == prompt + static_cast<int64_t>(new_tokens) - 1;
}

}  // namespace

void Generator::prepare_to_save(Generation& g) {
  FT_CHECK(!g.is_finished());
  FT_CHECK(fits_text(g.sequence_.length(), g.prompt_.size(), g.ids_.size()));
  if (!g.has_begun_) enter(g);
  if (g.on_device_ && mtp_ != nullptr) mtp_->take_over(g.sequence_, device_->kept(g.sequence_.state_for_device()));
}

// Makes a generation that has entered what one with these new tokens is.
void Generator::take_up(Generation& g, std::vector<TokenId> ids) {
  if (vocabulary_ && g.drafts_) vocabulary_->see(g.sequence_, ids);
  if (g.ruled_) {
    for (const TokenId id : ids) g.ruled_->push(id);
  }
  g.ids_ = std::move(ids);
  g.was_read_ = !g.ids_.empty();
  if (g.was_read_) {
    g.last_ = g.ids_.back();
    (void)may_go_on(g);
  }
}

std::vector<std::byte> Generator::save(Generation& g) {
  prepare_to_save(g);
  SavedHeader header;
  std::vector<std::byte> saved(sizeof header), drafter;
  put_all(saved, std::span<const std::byte>(g.sequence_.save()));
  put_all(saved, std::span(g.prompt_));
  put_all(saved, std::span<const TokenId>(g.ids_));
  const bool drafts = drafter_ && g.drafts_;
  if (drafts) drafter_->save(g.sequence_, drafter);
  put(saved, drafts);
  put(saved, g.planned_ > 0);
  put_all(saved, std::span<const float>(g.previous_hidden_));
  put_all(saved, std::span<const std::byte>(drafter));
  header.total_bytes = saved.size() + kChecksumBytes;
  std::memcpy(saved.data(), &header, sizeof header);
  const std::string checksum = sha256_hex(saved);
  const auto digits = std::as_bytes(std::span(checksum));
  saved.insert(saved.end(), digits.begin(), digits.end());
  return saved;
}

std::unique_ptr<Generation> Generator::restore(Sequence& sequence, std::span<const std::byte> saved,
                                               GenerationOptions options) {
  std::span<const std::byte> from = checked_payload(saved);
  std::vector<std::byte> state, drafter;
  std::vector<TokenId> prompt, ids;
  std::vector<float> previous_hidden;
  uint8_t drafts = 0, drafts_next = 0;
  take_all(from, state);
  take_all(from, prompt);
  take_all(from, ids);
  take(from, drafts);
  take(from, drafts_next);
  take_all(from, previous_hidden);
  take_all(from, drafter);
  const ModelConfig& config = engine_.model().config();
  if (!from.empty() || prompt.empty() || !are_ids(prompt, config.vocab_size) || !are_ids(ids, config.vocab_size) ||
      (!previous_hidden.empty() && static_cast<int64_t>(previous_hidden.size()) != config.hidden_dim))
    refuse_saved("is damaged, or of another model");
  const auto tokens = static_cast<int64_t>(prompt.size() + ids.size());
  if (tokens >= engine_.options().ctx_size) {
    refuse_saved(
        fmt::format("is too long: {}; raise --ctx-size", no_room_in_context(tokens, engine_.options().ctx_size)));
  }

  auto generation = std::make_unique<Generation>(sequence, std::move(prompt), std::move(options));
  Generation& g = *generation;
  try {
    sequence.restore(state);
    if (!fits_text(sequence.length(), g.prompt_.size(), ids.size())) refuse_saved("is damaged");
    enter(g);
    // Who was saved without drafts has a drafter that does not know its text.
    g.drafts_ = g.drafts_ && drafter_ && drafts != 0;
    if (g.drafts_) {
      std::span<const std::byte> bytes = drafter;
      drafter_->restore(sequence, bytes);
      if (!bytes.empty()) refuse_saved("is damaged, or was drafted for by somebody else");
      if (!previous_hidden.empty()) g.previous_hidden_ = std::move(previous_hidden);
      g.planned_ = drafts_next != 0 && drafter_->offers(sequence) ? 1 : 0;
    }
    take_up(g, std::move(ids));
  } catch (...) {
    leave(g);
    sequence.reset();
    throw;
  }
  return generation;
}

std::unique_ptr<TextCheckpoint> Generator::checkpoint(Generation& g) {
  FT_CHECK(g.unread() > 0 || g.has_kept_state());
  if (g.on_device_) return nullptr;
  auto checkpoint = std::make_unique<TextCheckpoint>();
  checkpoint->drafts = drafter_ && g.drafts_;
  // Without drafts nobody writes to the MTP layer's part of the pages.
  checkpoint->sequence =
      g.sequence_.checkpoint(checkpoint->drafts ? drafter_->settled_positions(g.sequence_) : g.sequence_.length());
  if (checkpoint->drafts) {
    drafter_->save(g.sequence_, checkpoint->drafter);
    checkpoint->drafter.shrink_to_fit();
    checkpoint->previous_hidden = g.previous_hidden_;
  }
  return checkpoint;
}

std::unique_ptr<Generation> Generator::resume(const TextCheckpoint& checkpoint, Sequence& sequence,
                                              std::vector<TokenId> prompt, GenerationOptions options) {
  FT_CHECK(static_cast<int64_t>(prompt.size()) > checkpoint.length());
  FT_CHECK(checkpoint.drafts || options.max_drafts == 0 || !drafter_);
  auto generation = std::make_unique<Generation>(sequence, std::move(prompt), std::move(options));
  Generation& g = *generation;
  if (!sequence.resume(*checkpoint.sequence)) return nullptr;
  enter(g);
  if (g.drafts_ && checkpoint.drafts) {
    std::span<const std::byte> bytes = checkpoint.drafter;
    drafter_->restore(sequence, bytes);
    g.previous_hidden_ = checkpoint.previous_hidden;
  }
  return generation;
}

std::unique_ptr<Generation> Generator::copy(Generation& from, Sequence& sequence, GenerationOptions options) {
  prepare_to_save(from);
  auto generation = std::make_unique<Generation>(sequence, from.prompt_, std::move(options));
  Generation& g = *generation;
  const int64_t length = from.sequence_.length();
  if (!sequence.copy(from.sequence_, drafter_ ? drafter_->settled_positions(from.sequence_) : length)) return nullptr;
  enter(g);
  g.drafts_ = g.drafts_ && drafter_ && from.drafts_;
  if (g.drafts_) {
    drafter_->copy(from.sequence_, sequence);
    g.previous_hidden_ = from.previous_hidden_;
    g.planned_ = from.planned_;
  }
  try {
    take_up(g, from.ids_);
  } catch (...) {
    leave(g);
    sequence.reset();
    throw;
  }
  return generation;
}

}  // namespace foretoken
