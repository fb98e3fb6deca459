#include "engine/cuda/cuda_cycle.h"

#include <algorithm>
#include <numeric>

#include "engine/backend.h"
#include "kernels/base/error.h"
#include "kernels/rows/rows_cuda.h"
#include "kernels/select/windows_cuda.h"

namespace foretoken::cuda {

CudaCycle::CudaCycle(CudaEngine& engine)
    : engine_(engine),
      first_(static_cast<size_t>(engine.options.parallel) + 1),
      step_(first_.size()),
      next_(first_.size()),
      decide_(static_cast<size_t>(engine.max_window_rows()) + 1),
      take_in_(decide_.size()),
      known_(static_cast<size_t>(engine.options.parallel)),
      drafting_(static_cast<size_t>(engine.options.max_window)) {
  FT_CHECK(engine.options.max_window <= kMaxWindow);
  for (Known& k : known_) k.deferred.reserve(deferred_capacity(engine.options));
  order_.reserve(known_.size());
}

void CudaCycle::begin(SequenceState& sequence, const SamplingOptions& sampling, TokenId first, int row) {
  FT_CHECK(supports(sampling) && sequence.length > 0);
  CudaEngine& e = engine_;
  e.attempt([&] {
    e.stream.synchronize();
    const SamplingScalars scalars{sampling.temperature, sampling.seed};
    copy_to_device(e.stream, e.io.sampling + sequence.slot, &scalars, sizeof scalars);
    Known& k = known(sequence);
    k.has_draft = false;
    k.deferred.clear();
    if (e.options.with_mtp) {
      const int64_t dim = e.config.hidden_dim;
      copy_on_device(e.stream, e.io.deferred_hidden + sequence.slot * deferred_capacity(e.options) * dim,
                     e.io.hidden.values + row * dim, static_cast<size_t>(dim) * sizeof(float));
      k.deferred.push_back(first);
    }
    e.stream.synchronize();
  });
}

float CudaCycle::first_confidence(const SequenceState& sequence) const {
  return known_[sequence.slot].has_draft ? engine_.io.result.next_share.host[sequence.slot] : -1.0f;
}

DeviceCycle::Kept CudaCycle::kept(SequenceState& sequence) {
  CudaEngine& e = engine_;
  FT_CHECK(e.options.with_mtp);
  Kept kept;
  e.attempt([&] {
    e.stream.synchronize();
    e.send_groups();
    Window rests;
    rests.sequence = &sequence;
    catch_up({&rests, 1});  // where more wait than anybody else lets wait
    const Known& k = known(sequence);
    const int64_t dim = e.config.hidden_dim;
    kept.deferred = k.deferred;
    kept.deferred_hidden.resize(k.deferred.size() * static_cast<size_t>(dim));
    copy_to_host(e.stream, kept.deferred_hidden.data(),
                 e.io.deferred_hidden + sequence.slot * deferred_capacity(e.options) * dim,
                 kept.deferred_hidden.size() * sizeof(float));
    kept.has_draft = k.has_draft;
    if (k.has_draft) {
      e.io.result.memory.fetch(e.stream);
      kept.draft_hidden.resize(dim);
      const float* from =
          e.io.draft_hidden == nullptr ? e.io.mtp_hidden.values : e.io.draft_hidden + sequence.slot * dim;
      copy_to_host(e.stream, kept.draft_hidden.data(), from, kept.draft_hidden.size() * sizeof(float));
    }
    e.stream.synchronize();
    if (!k.has_draft) return;
    kept.draft = e.io.result.next_draft.host[sequence.slot];
    kept.confidence = e.io.result.next_share.host[sequence.slot];
  });
  return kept;
}

void CudaCycle::check(std::span<const Window> windows) const {
  const SessionOptions& o = engine_.options;
  FT_CHECK(!windows.empty() && static_cast<int>(windows.size()) <= o.parallel);
  for (const Window& w : windows) {
    FT_CHECK(w.num_drafts >= 0 && w.num_drafts < o.max_window);
    FT_CHECK(w.mtp_drafts ? w.num_drafts == 0 || o.with_mtp : w.given.size() >= static_cast<size_t>(w.num_drafts));
    const int64_t end = w.sequence->length + w.num_drafts + 1;
    FT_CHECK(end < o.ctx_size && end < static_cast<int64_t>(w.sequence->pages.size()) * kPagePositions);
  }
}

// Tokens that waited: the MTP layer takes them in, and makes the first draft behind the last of them. Of each sequence
// where it has to draft, or where no more can wait.
void CudaCycle::catch_up(std::span<const Window> windows) {
  CudaEngine& e = engine_;
  if (!e.options.with_mtp) return;
  MtpInput& in = e.io.mtp;
  const int most_rows = pass_rows(e.options);
  const auto clear = [&in] {
    in.rows.clear();
    in.outputs.clear();
  };
  clear();
  for (const Window& w : windows) {
    Known& k = known(*w.sequence);
    const auto count = static_cast<int>(k.deferred.size());
    if (count == 0 || (drafts_of(w) == 0 && count < kMaxDeferred)) continue;
    e.state.set_pages(*w.sequence);
    for (int begin = 0; begin < count;) {
      if (in.rows.counts.host->num_rows == most_rows) {
        take_in_deferred();
        clear();
      }
      const int row = in.rows.counts.host->num_rows, end = std::min(count, begin + most_rows - row);
      const int64_t position = w.sequence->length + 1 - count;
      in.rows.add(device_span(*w.sequence, end - begin, position + begin, /*is_window=*/true));
      for (int i = begin; i < end; ++i) {
        in.ids.host[row + i - begin] = k.deferred[i];
        in.hidden_rows.host[row + i - begin] =
            static_cast<int32_t>(w.sequence->slot * deferred_capacity(e.options) + i);
      }
      if (end == count) {
        in.output_rows.host[in.outputs.counts.host->num_rows] = row + end - begin - 1;
        in.outputs.add(device_span(*w.sequence, 1, position + count - 1, /*is_window=*/true));
      }
      begin = end;
    }
    k.deferred.clear();
    k.has_draft = true;
  }
  if (in.rows.counts.host->num_rows > 0) take_in_deferred();
}

void CudaCycle::take_in_deferred() {
  CudaEngine& e = engine_;
  const MtpInput& in = e.io.mtp;
  const int num_rows = in.rows.counts.host->num_rows, num_outputs = in.outputs.counts.host->num_rows;
  e.state.send_pages(e.stream);
  in.memory.send(e.stream);
  launch(GatherRowsDesc{e.io.deferred_hidden, in.hidden_rows.device, e.io.mtp_input, e.config.hidden_dim, num_rows},
         e.stream);
  e.mtp_take_in({num_rows, in.rows.on_device(in.rows.counts.host->num_spans)}, in.ids.device, e.io.mtp_input);
  if (num_outputs > 0) {
    const DevicePass outputs = in.outputs.on_device(num_outputs);
    e.mtp_finish({num_outputs, outputs}, in.output_rows.device);
    e.run_draft_head(e.io.mtp_hidden, num_outputs);
    e.choose(e.io.draft_logits, /*is_draft=*/true, num_outputs, outputs, /*by_sequence=*/true,
             e.io.result.next_draft.device, e.io.result.next_share.device);
    if (e.io.draft_hidden != nullptr) {
      // The list of rows has served; now it says whose they are.
      e.stream.synchronize();
      for (int i = 0; i < num_outputs; ++i) in.output_rows.host[i] = in.outputs.spans.host[i].sequence;
      in.memory.send(e.stream);
      launch(ScatterRowsDesc{e.io.mtp_hidden.values, in.output_rows.device, e.io.draft_hidden, e.config.hidden_dim,
                             num_outputs},
             e.stream);
    }
  }
  e.stream.synchronize();
}

void CudaCycle::fill_input(std::span<const Window> windows) {
  CudaEngine& e = engine_;
  CycleInput& in = e.io.cycle;
  order_.resize(windows.size());
  std::iota(order_.begin(), order_.end(), size_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&](size_t a, size_t b) { return drafts_of(windows[a]) > drafts_of(windows[b]); });
  std::fill(drafting_.begin(), drafting_.end(), 0);
  drafting_rows_ = 0;
  e.io.windows.pass.clear();
  in.steps.clear();
  for (size_t i = 0; i < order_.size(); ++i) {
    const Window& w = windows[order_[i]];
    const SequenceState& sequence = *w.sequence;
    const int num_rows = w.num_drafts + 1, own_drafts = drafts_of(w), row = e.io.windows.pass.counts.host->num_rows;
    e.state.set_pages(sequence);
    e.io.windows.pass.add(device_span(sequence, num_rows, sequence.length, /*is_window=*/true));
    in.sequences.host[i] = sequence.slot;
    e.io.windows.ids.host[row] = w.last;
    for (int d = 0; d < w.num_drafts; ++d) {
      const auto at = static_cast<size_t>(d);
      e.io.windows.ids.host[row + 1 + d] = at < w.given.size() ? w.given[at] : -1;
    }
    const bool waits = own_drafts == 0 && e.options.with_mtp;
    const auto first_free = static_cast<int64_t>(sequence.slot) * deferred_capacity(e.options) +
                            static_cast<int64_t>(known(sequence).deferred.size());
    for (int r = 0; r < num_rows; ++r)
      in.deferred_rows.host[row + r] = waits ? static_cast<int32_t>(first_free + r) : -1;
    if (own_drafts == 0) continue;
    FT_CHECK(known(sequence).has_draft);
    in.steps.add(device_span(sequence, 1, sequence.length, /*is_window=*/true));
    for (int d = 0; d < own_drafts; ++d) ++drafting_[d];
    drafting_rows_ += num_rows;
  }
  *in.num_drafting.host = drafting_[0];
}

void CudaCycle::extend(int num_windows) {
  CudaEngine& e = engine_;
  ExtendWindowsDesc desc;
  desc.windows = e.io.windows.pass.on_device(num_windows);
  desc.steps = e.io.cycle.steps.on_device(num_windows);
  desc.chosen = e.io.result.next_draft.device;
  desc.shares = e.io.result.next_share.device;
  desc.window_ids = e.io.windows.ids.device;
  desc.window_shares = e.io.result.shares.device;
  desc.step_ids = e.io.cycle.step_ids.device;
  desc.num_windows = num_windows;
  launch(desc, e.stream);
}

void CudaCycle::first(int num_windows) {
  CudaEngine& e = engine_;
  if (e.io.draft_hidden != nullptr) {
    launch(GatherRowsDesc{e.io.draft_hidden, e.io.cycle.sequences.device, e.io.mtp_hidden.values, e.config.hidden_dim,
                          num_windows},
           e.stream);
  }
  extend(num_windows);
}

// The token is the draft before, the hidden what the step before has left in the same row.
void CudaCycle::step(int num_windows) {
  CudaEngine& e = engine_;
  const CudaRows rows{num_windows, e.io.cycle.steps.on_device(num_windows)};
  e.mtp_take_in(rows, e.io.cycle.step_ids.device, e.io.mtp_hidden.values);
  e.mtp_finish(rows, nullptr);
  e.run_draft_head(e.io.mtp_hidden, num_windows);
  e.choose(e.io.draft_logits, /*is_draft=*/true, num_windows, rows.pass, /*by_sequence=*/true,
           e.io.result.next_draft.device, e.io.result.next_share.device);
  extend(num_windows);
}

void CudaCycle::decide(int num_rows) {
  CudaEngine& e = engine_;
  const int max_spans = std::min(num_rows, e.options.parallel);
  const DevicePass windows = e.io.windows.pass.on_device(max_spans);
  e.run_head(e.io.hidden, num_rows);
  e.choose(e.io.logits, /*is_draft=*/false, num_rows, windows, /*by_sequence=*/false, e.io.result.choices.device,
           nullptr);
  AcceptDesc desc;
  desc.windows = windows;
  desc.window_ids = e.io.windows.ids.device;
  desc.choices = e.io.result.choices.device;
  desc.num_accepted = e.io.result.num_accepted.device;
  desc.num_followed = e.io.cycle.num_drafting.device;
  desc.counted = e.io.mtp.rows.on_device(max_spans);
  desc.last = e.io.mtp.outputs.on_device(max_spans);
  desc.last_rows = e.io.mtp.output_rows.device;
  launch(desc, e.stream);
}

void CudaCycle::next_drafts(int num_windows) {
  CudaEngine& e = engine_;
  const DevicePass outputs = e.io.mtp.outputs.on_device(num_windows);
  e.mtp_finish({num_windows, outputs}, e.io.mtp.output_rows.device);
  e.run_draft_head(e.io.mtp_hidden, num_windows);
  e.choose(e.io.draft_logits, /*is_draft=*/true, num_windows, outputs, /*by_sequence=*/true,
           e.io.result.next_draft.device, e.io.result.next_share.device);
  if (e.io.draft_hidden == nullptr) return;
  launch(ScatterRowsDesc{e.io.mtp_hidden.values, e.io.cycle.sequences.device, e.io.draft_hidden, e.config.hidden_dim,
                         num_windows},
         e.stream);
}

const DeviceCycle::Outcome& CudaCycle::run(std::span<const Window> windows) {
  check(windows);
  engine_.attempt([&] { run_checked(windows); });
  return outcome_;
}

void CudaCycle::drop_outdated_recordings() {
  if (num_draft_heads_ == engine_.num_draft_heads()) return;
  num_draft_heads_ = engine_.num_draft_heads();
  step_ = std::vector<Recorded>(step_.size());
  next_ = std::vector<Recorded>(next_.size());
}

void CudaCycle::run_checked(std::span<const Window> windows) {
  CudaEngine& e = engine_;
  e.stream.synchronize();
  e.send_groups();
  drop_outdated_recordings();
  catch_up(windows);
  fill_input(windows);
  const int num_rows = e.io.windows.pass.counts.host->num_rows;
  const int num_drafting = drafting_[0];
  const auto rows = static_cast<size_t>(num_rows), drafting = static_cast<size_t>(num_drafting),
             drafting_rows = static_cast<size_t>(drafting_rows_);

  outcome_.is_steady = e.is_recorded(num_rows) && decide_[rows].is_recorded();
  if (num_drafting > 0) {
    outcome_.is_steady = outcome_.is_steady && first_[drafting].is_recorded() && next_[drafting].is_recorded() &&
                         take_in_[drafting_rows].is_recorded();
  }
  e.begin_pass(/*has_chunks=*/false);
  e.io.windows.memory.send(e.stream);
  began_.record(e.stream);
  if (num_drafting > 0) e.recorder.run(first_[drafting], [&] { first(num_drafting); });
  for (size_t d = 1; d < drafting_.size() && drafting_[d] > 0; ++d) {
    Recorded& piece = step_[drafting_[d]];
    outcome_.is_steady = outcome_.is_steady && piece.is_recorded();
    e.recorder.run(piece, [&] { step(drafting_[d]); });
  }
  drafted_.record(e.stream);
  e.run_trunk(e.io.windows, /*has_windows=*/true);
  e.recorder.run(decide_[rows], [&] { decide(num_rows); });
  if (e.options.with_mtp && num_drafting < static_cast<int>(windows.size())) {
    launch(ScatterRowsDesc{e.io.hidden.values, e.io.cycle.deferred_rows.device, e.io.deferred_hidden,
                           e.config.hidden_dim, num_rows},
           e.stream);
  }
  verified_.record(e.stream);
  if (num_drafting > 0) {
    e.recorder.run(take_in_[drafting_rows], [&] {
      CudaRows accepted{drafting_rows_, e.io.mtp.rows.on_device(std::min(drafting_rows_, e.options.parallel))};
      accepted.exact = false;
      e.mtp_take_in(accepted, e.io.result.choices.device, e.io.hidden.values);
    });
    e.recorder.run(next_[drafting], [&] { next_drafts(num_drafting); });
  }
  refreshed_.record(e.stream);
  e.io.result.memory.fetch(e.stream);
  e.fetch_buckets();
  e.stream.synchronize();
  read_result(windows);
}

void CudaCycle::read_result(std::span<const Window> windows) {
  CudaEngine& e = engine_;
  outcome_.distinct_experts = e.distinct_experts();
  outcome_.draft_ms = drafted_.milliseconds_since(began_);
  outcome_.verify_ms = verified_.milliseconds_since(drafted_);
  outcome_.refresh_ms = refreshed_.milliseconds_since(verified_);
  outcome_.windows.resize(windows.size());
  for (size_t i = 0; i < order_.size(); ++i) {
    const Window& w = windows[order_[i]];
    Verified& verified = outcome_.windows[order_[i]];
    const int row = e.io.windows.pass.spans.host[i].first_row;
    const int32_t* choices = e.io.result.choices.host + row;
    const float* shares = e.io.result.shares.host + row;
    verified.num_accepted = e.io.result.num_accepted.host[i];
    FT_CHECK(verified.num_accepted >= 0 && verified.num_accepted <= w.num_drafts);
    verified.choices.assign(choices, choices + w.num_drafts + 1);
    verified.confidences.assign(shares, shares + drafts_of(w));

    const int kept = verified.num_accepted + 1;
    w.sequence->commit(kept, /*is_window=*/true);
    Known& k = known(*w.sequence);
    k.has_draft = drafts_of(w) > 0;
    if (!k.has_draft && e.options.with_mtp)
      k.deferred.insert(k.deferred.end(), verified.choices.begin(), verified.choices.begin() + kept);
  }
}

}  // namespace foretoken::cuda
