#include "engine/cuda/cuda_cycle.h"

#include <algorithm>

#include "engine/backend.h"
#include "kernels/base/error.h"
#include "kernels/select/cycle_cuda.h"

namespace foretoken::cuda {

CudaCycle::CudaCycle(CudaEngine& engine)
    : engine_(engine),
      draft_(static_cast<size_t>(engine.options.max_window)),
      decide_(draft_.size()),
      refresh_(draft_.size()) {
  FT_CHECK(engine.options.max_window <= kMaxWindow);
}

int CudaCycle::deferred_capacity() const {
  return std::min(kMaxDeferred, pass_rows(engine_.options));
}

void CudaCycle::begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) {
  FT_CHECK(supports(sampling) && sequence.length > 0);
  sequence_ = &sequence;
  CudaEngine& e = engine_;
  e.stream.synchronize();
  *e.host.sampling.data<SamplingScalars>() = {sampling.temperature, sampling.seed};
  copy_to_device(e.stream, e.sampling, e.host.sampling.data(), sizeof(SamplingScalars));
  has_draft_ = false;
  deferred_.clear();
  if (!e.options.with_mtp) return;
  const auto dim = static_cast<size_t>(e.config.hidden_dim);
  copy_on_device(e.stream, e.follow_hidden, e.hidden.values + static_cast<size_t>(row) * dim, dim * sizeof(float));
  deferred_.push_back(first);
  e.stream.synchronize();
}

// Tokens that waited: the MTP layer takes them in, and makes the first draft behind the last of them.
void CudaCycle::catch_up() {
  CudaEngine& e = engine_;
  const int count = static_cast<int>(deferred_.size());
  FollowScalars follow;
  follow.rows.num_rows = count;
  follow.rows.position = static_cast<int32_t>(sequence_->length + 1 - count);
  follow.outputs.num_rows = 1;
  follow.outputs.position = static_cast<int32_t>(sequence_->length);
  follow.first_output = count - 1;
  *e.host.follow.data<FollowScalars>() = follow;
  copy_to_device(e.stream, e.follow, e.host.follow.data(), sizeof follow);
  std::copy(deferred_.begin(), deferred_.end(), e.host.ids.data<int32_t>());
  copy_to_device(e.stream, e.follow_ids, e.host.ids.data(), deferred_.size() * sizeof(int32_t));
  e.send_groups();
  e.pass.mtp(e.weights.mtp, {count, &e.follow->rows}, e.follow_ids, e.follow_hidden, {1, &e.follow->outputs},
             &e.follow->first_output, e.mtp_hidden);
  first_draft();
  fetch_result();
  e.stream.synchronize();
  deferred_.clear();
  has_draft_ = true;
}

void CudaCycle::first_draft() {
  CudaEngine& e = engine_;
  e.run_draft_head(0, 1);
  e.choose(e.draft_logits, /*is_draft=*/true, 1, &e.follow->outputs.position, 1, &e.result->next_draft,
           &e.result->next_share);
}

void CudaCycle::fetch_result() {
  CudaEngine& e = engine_;
  copy_to_host(e.stream, e.host.result.data(), e.result, sizeof(CycleResult));
  copy_to_host(e.stream, e.host.num_buckets.data(), e.buffers.num_buckets, e.host.num_buckets.size_bytes());
}

void CudaCycle::send_command(const Window& window) {
  CudaEngine& e = engine_;
  auto& command = *e.host.command.data<Command>();
  command.window = window_scalars(*sequence_, window.num_drafts + 1);
  for (int i = 1; i < window.num_drafts; ++i) {
    command.steps[i] = {};
    command.steps[i].num_rows = 1;
    command.steps[i].position = static_cast<int32_t>(sequence_->length + i);
  }
  command.last = window.last;
  command.deferred_row = static_cast<int32_t>(deferred_.size());
  std::fill_n(command.forced, kMaxWindow, -1);
  for (size_t i = 0; i < window.forced.size() && i < static_cast<size_t>(window.num_drafts); ++i)
    command.forced[i] = window.forced[i];
}

void CudaCycle::draft(int num_drafts) {
  CudaEngine& e = engine_;
  copy_to_device(e.stream, e.command, e.host.command.data(), sizeof(Command));
  copy_on_device(e.stream, e.ids, &e.command->last, sizeof(int32_t));
  for (int i = 0; i < num_drafts; ++i) {
    if (i > 0) {
      // Step i takes draft i - 1 (ids[i]) and the hidden that the step before has left in the same row.
      const CudaRows step{1, &e.command->steps[i]};
      e.pass.mtp(e.weights.mtp, step, e.ids + i, e.mtp_hidden.values, step, nullptr, e.mtp_hidden);
      e.run_draft_head(0, 1);
      e.choose(e.draft_logits, /*is_draft=*/true, 1, &e.command->window.position, 1 + i, &e.result->next_draft,
               &e.result->next_share);
    }
    launch(TakeDraftDesc{&e.result->next_draft, &e.result->next_share, e.command->forced, e.ids, e.result->shares, i},
           e.stream);
  }
}

void CudaCycle::decide(int num_drafts) {
  CudaEngine& e = engine_;
  const int num_rows = num_drafts + 1;
  e.run_head(0, num_rows);
  e.choose(e.logits, /*is_draft=*/false, num_rows, &e.command->window.position, 1, e.result->choices, nullptr);
  launch(AcceptDesc{e.ids, e.result->choices, num_rows, &e.command->window, &e.result->num_accepted,
                    num_drafts > 0 ? e.follow : nullptr},
         e.stream);
  if (num_drafts > 0) return;
  if (e.options.with_mtp) {
    launch(CopyRowsDesc{e.hidden.values, nullptr, e.follow_hidden, &e.command->deferred_row, e.config.hidden_dim, 1},
           e.stream);
  }
  fetch_result();
}

void CudaCycle::refresh(int num_drafts) {
  CudaEngine& e = engine_;
  CudaRows rows{num_drafts + 1, &e.follow->rows};
  rows.exact = false;
  e.pass.mtp(e.weights.mtp, rows, e.result->choices, e.hidden.values, {1, &e.follow->outputs}, &e.follow->first_output,
             e.mtp_hidden);
  first_draft();
  fetch_result();
}

const DeviceCycle::Outcome& CudaCycle::run(const Window& window) {
  CudaEngine& e = engine_;
  const int k = window.num_drafts;
  FT_CHECK(k >= 0 && k < e.options.max_window && (k == 0 || e.options.with_mtp));
  FT_CHECK(sequence_->length + k + 1 < e.options.ctx_size);
  const bool waits = !deferred_.empty();
  if (waits && (k > 0 || static_cast<int>(deferred_.size()) == deferred_capacity())) catch_up();
  FT_CHECK(k == 0 || has_draft_);

  const auto at = static_cast<size_t>(k);
  outcome_.is_steady = draft_[at].is_recorded() && e.is_recorded(k + 1) && decide_[at].is_recorded() &&
                       (k == 0 || refresh_[at].is_recorded());
  e.begin_pass();
  send_command(window);
  e.send_groups();
  began_.record(e.stream);
  draft_[at].run(e.stream, [&] { draft(k); });
  drafted_.record(e.stream);
  e.run_trunk(k + 1, /*in_slot=*/true);
  decide_[at].run(e.stream, [&] { decide(k); });
  verified_.record(e.stream);
  if (k > 0) refresh_[at].run(e.stream, [&] { refresh(k); });
  refreshed_.record(e.stream);
  e.stream.synchronize();

  const CycleResult& result = host_result();
  outcome_.num_accepted = result.num_accepted;
  FT_CHECK(outcome_.num_accepted >= 0 && outcome_.num_accepted <= k);
  outcome_.choices.assign(result.choices, result.choices + k + 1);
  outcome_.confidences.assign(result.shares, result.shares + k);
  outcome_.distinct_experts = e.distinct_experts();
  outcome_.draft_ms = drafted_.milliseconds_since(began_);
  outcome_.verify_ms = verified_.milliseconds_since(drafted_);
  outcome_.refresh_ms = refreshed_.milliseconds_since(verified_);

  sequence_->commit(outcome_.num_accepted + 1, /*is_window=*/true);
  has_draft_ = k > 0;
  if (k == 0 && e.options.with_mtp) deferred_.push_back(outcome_.choices[0]);
  return outcome_;
}

}  // namespace foretoken::cuda
