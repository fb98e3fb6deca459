#include "mtp/draft.h"

#include <algorithm>

#include "kernels/base/error.h"
#include "kernels/select/softmax.h"

namespace foretoken {

Drafter::Drafter(Session& session) : session_(session) {
  hidden_.reserve(static_cast<size_t>(kMaxDeferred * session.model().config().hidden_dim));
}

void Drafter::reset() {
  filled_ = 0;
  last_row_ = -1;
  num_drafts_ = 0;
  ids_.clear();
  hidden_.clear();
  fault_.reset();
}

void Drafter::defer(std::span<const TokenId> ids, std::span<const float* const> hidden) {
  FT_CHECK_EQ(ids.size(), hidden.size());
  const auto dim = static_cast<size_t>(session_.model().config().hidden_dim);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (deferred() == kMaxDeferred) flush();
    ids_.push_back(ids[i]);
    hidden_.insert(hidden_.end(), hidden[i], hidden[i] + dim);
  }
  last_row_ = -1;
}

void Drafter::follow(std::span<const TokenId> ids, std::span<const float* const> hidden) {
  FT_CHECK(ids_.empty());
  last_row_ = static_cast<int>(ids.size()) - 1;
  session_.mtp_forward(ids, filled_, hidden, last_row_);
  look_for_fault();
  filled_ += static_cast<int64_t>(ids.size());
  num_drafts_ = 0;
}

void Drafter::flush() {
  const auto dim = static_cast<size_t>(session_.model().config().hidden_dim);
  for (size_t begin = 0; begin < ids_.size();) {
    const size_t count = std::min(ids_.size() - begin, static_cast<size_t>(session_.max_rows()));
    std::vector<const float*> hidden;
    for (size_t i = begin; i < begin + count; ++i) hidden.push_back(&hidden_[i * dim]);
    last_row_ = static_cast<int>(count) - 1;
    session_.mtp_forward(std::span(ids_).subspan(begin, count), filled_, hidden, last_row_);
    look_for_fault();
    filled_ += static_cast<int64_t>(count);
    begin += count;
  }
  ids_.clear();
  hidden_.clear();
  num_drafts_ = 0;
  FT_CHECK(last_row_ >= 0);
}

TokenId Drafter::next_draft(const SamplingOptions& sampling, float& confidence) {
  FT_CHECK(last_row_ >= 0 && ids_.empty());
  if (num_drafts_ > 0) {
    const float* hidden = session_.mtp_hidden(last_row_);
    session_.mtp_forward(std::span(&last_draft_, 1), filled_ + num_drafts_ - 1, std::span(&hidden, 1));
    last_row_ = 0;
  }
  session_.mtp_compute_logits(last_row_, last_row_ + 1);
  look_for_fault();
  const float* logits = session_.mtp_logits(last_row_);
  const int64_t vocab_size = session_.model().config().vocab_size;
  last_draft_ = choose_token(session_.options().isa, logits, vocab_size, sampling, filled_ + num_drafts_);
  confidence = softmax_share(session_.options().isa, logits, vocab_size, last_draft_);
  ++num_drafts_;
  return last_draft_;
}

}  // namespace foretoken
