#include "mtp/generator.h"

#include <algorithm>

#include "engine/device_cycle.h"
#include "kernels/base/error.h"
#include "mtp/accept.h"
#include "mtp/chain_drafter.h"
#include "mtp/mtp_drafter.h"
#include "mtp/ngram_drafter.h"

namespace foretoken {

namespace {

DecodeBytes costs(const Engine& engine, const GeneratorOptions& options) {
  if (options.max_drafts == 0) return {};
  const bool chosen = options.draft_vocab != kAutoDraftVocab;
  DecodeBytes bytes =
      decode_bytes(engine.model(), chosen ? options.draft_vocab : auto_draft_vocab(engine.model().config().vocab_size),
                   engine.options().device);
  // Drafts out of the text cost no pass.
  if (!options.mtp) bytes.mtp_dense = bytes.mtp_routed = bytes.draft_head = 0;
  return bytes;
}

TokenOrigin origin_of(int index, int num_accepted, int num_drafts) {
  using Kind = TokenOrigin::Kind;
  if (num_drafts == 0) return {};
  const Kind kind = index < num_accepted ? Kind::kDraft : num_accepted == num_drafts ? Kind::kBonus : Kind::kCorrected;
  return {kind, index, num_drafts};
}

}  // namespace

size_t drafter_bytes(const ModelConfig& config, const SessionOptions& engine, const GeneratorOptions& options) {
  return (options.ngram ? NgramDrafter::size_bytes(engine) : 0) +
         (options.mtp ? MtpDrafter::size_bytes(config, engine) : 0);
}

Generator::Generator(Engine& engine, const GeneratorOptions& options)
    : engine_(engine), options_(options), controller_(costs(engine, options), options.max_drafts, !options.controller) {
  FT_CHECK(options.max_drafts >= 0 && options.max_drafts <= kMaxDraft);
  FT_CHECK(options.max_drafts < engine.options().max_window);
  if (options.mtp || options.ngram) {
    std::vector<std::unique_ptr<Drafter>> drafters;
    if (options.ngram) drafters.push_back(std::make_unique<NgramDrafter>(engine));
    if (options.mtp) {
      auto mtp = std::make_unique<MtpDrafter>(engine);
      if (!options.ngram) mtp_ = mtp.get();
      drafters.push_back(std::move(mtp));
    }
    if (drafters.size() == 1) {
      source_ = std::move(drafters.front());
    } else {
      source_ = std::make_unique<ChainDrafter>(engine, std::move(drafters));
    }
    drafter_.emplace(*source_, engine);
  }
  if (options.mtp) {
    vocabulary_.emplace(engine, options.draft_vocab);
  }
  if (!options.ngram) device_ = engine.device_cycle();
  const auto parallel = static_cast<size_t>(engine.options().parallel);
  const auto max_rows = static_cast<size_t>(engine.max_rows());
  host_parts_.reserve(parallel);
  device_parts_.reserve(parallel);
  device_windows_.reserve(parallel);
  forced_ids_.reserve(parallel * static_cast<size_t>(kMaxDraft));
  first_confidences_.reserve(parallel);
  inputs_.reserve(parallel);
  ids_.reserve(max_rows);
  logits_rows_.reserve(engine.logits_capacity());
  drafting_.reserve(parallel);
  extending_.reserve(parallel);
  batch_.reserve(parallel);
  num_drafts_.reserve(parallel);
  controller_.reserve(engine.options().parallel);
  known_.reserve(parallel);
  hidden_.reserve(max_rows + parallel);
  known_ids_.reserve(max_rows + parallel);
}

Generator::~Generator() = default;

void Generator::enter(Generation& generation) {
  generation.has_begun_ = true;
  generation.watch_ = Stopwatch();
  generation.ids_.reserve(
      static_cast<size_t>(std::min(generation.options_.max_new_tokens, engine_.options().ctx_size)));
  if (!drafter_) return;
  generation.previous_hidden_.assign(engine_.model().config().hidden_dim, 0.0f);
  if (!generation.options_.forced.continuation.empty())
    drafter_->force(generation.sequence_, generation.options_.forced);
  if (vocabulary_ && generation.drafts_) vocabulary_->see(generation.sequence_, generation.prompt_);
}

void Generator::leave(Generation& generation) {
  generation.on_device_ = false;
  if (drafter_) drafter_->leave(generation.sequence_);
  if (vocabulary_) vocabulary_->leave(generation.sequence_);
}

Generator::Step Generator::step(std::span<const Part> parts, int64_t other_prompt_tokens) {
  prompt_tokens_left_ = other_prompt_tokens;
  for (const Part& part : parts) {
    const Generation& g = *part.generation;
    if (!g.was_read_) prompt_tokens_left_ += g.unread() - part.prompt_rows;
  }
  host_parts_.clear();
  device_parts_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    FT_CHECK(!g.is_finished());
    FT_CHECK(g.was_read_ ? part.prompt_rows == 0 : part.prompt_rows > 0 && part.prompt_rows <= g.unread());
    if (!g.has_begun_) enter(g);
    (g.on_device_ ? device_parts_ : host_parts_).push_back(part);
  }
  Step step;
  Stopwatch whole;
  try {
    if (!device_parts_.empty()) device_step(device_parts_, step);
    if (!host_parts_.empty()) host_step(host_parts_, step);
  } catch (const Interrupted&) {
    for (const Part& part : parts) part.generation->stop(StopReason::kInterrupted);
    throw;
  }
  step.whole_ms = whole.lap_ms();
  return step;
}

void Generator::host_step(std::span<const Part> parts, Step& step) {
  draft(parts);
  Stopwatch watch;
  forward(parts);
  const double trunk_ms = watch.lap_ms();
  choose(parts);
  Step pass;
  for (const Part& part : parts) {
    pass.num_windows += part.prompt_rows == 0 ? 1 : 0;
    pass.prompt_rows += part.prompt_rows;
    if (part.prompt_rows == 0) pass.window_rows += static_cast<int>(part.generation->window_.drafts.size()) + 1;
  }
  pass.distinct_experts = engine_.distinct_experts();
  pass.verify_ms = trunk_ms + watch.lap_ms();
  const PassShape shape{static_cast<int>(parts.size()), pass.window_rows + pass.prompt_rows, pass.prompt_rows};
  if (pass.prompt_rows == 0) {
    controller_.cost().observe_window(shape, pass.distinct_experts, pass.verify_ms);
  } else if (engine_.options().device == Device::kCpu) {
    // On a device the first passes load their kernels, and nobody says which.
    controller_.cost().observe_prompt(shape, pass.distinct_experts, trunk_ms);
  }
  accept_windows(parts, pass);
  end_prompts(parts, pass.verify_ms);
  refresh(parts);
  step.num_windows += pass.num_windows;
  step.window_rows += pass.window_rows;
  step.prompt_rows += pass.prompt_rows;
  step.distinct_experts = pass.distinct_experts;
  step.verify_ms += pass.verify_ms;
}

// ---- draft ----

DraftingBatch Generator::batch_of(std::span<Generation* const> generations, std::span<const Part> parts) {
  batch_.clear();
  for (Generation* g : generations) {
    const DraftWindow& window = g->window_;
    batch_.push_back(
        {&g->history_, g->planned_ > 0 ? g->most_drafts(engine_.options().ctx_size) : 0, window.confidences});
  }
  DraftingBatch batch;
  batch.sequences = batch_;
  for (const Part& part : parts) {
    batch.prompt_spans += part.prompt_rows > 0 ? 1 : 0;
    batch.prompt_rows += part.prompt_rows;
  }
  return batch;
}

void Generator::draft(std::span<const Part> parts) {
  drafting_.clear();
  extending_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    g.window_.drafts.clear();
    g.window_.confidences.clear();
    g.window_.position = g.sequence_.length() + 1;
    if (part.prompt_rows > 0) continue;
    if (g.most_drafts(engine_.options().ctx_size) == 0) g.planned_ = 0;
    drafting_.push_back(&g);
    if (g.planned_ > 0) extending_.push_back(&g.window_);
  }
  Stopwatch watch;
  while (!extending_.empty()) {
    const size_t drafts_before = extending_[0]->drafts.size();
    const DraftTimes times = drafter_->extend(extending_);
    const double ms = watch.lap_ms();
    for (Generation* g : drafting_) stop_drafting_on_fault(*g);
    if (times.step_sequences > 0) controller_.cost().observe_step(times.step_sequences, times.step_ms);
    for (Generation* g : drafting_) {
      if (g->window_.drafts.empty()) continue;
      g->statistics_.draft_ms += ms;
      if (times.step_sequences == 0) continue;
      g->statistics_.draft_step_ms += times.step_ms;
      ++g->statistics_.draft_steps;
    }
    const DraftingBatch batch = batch_of(drafting_, parts);
    // A window that could not be extended gets no more.
    for (size_t i = 0; i < drafting_.size(); ++i) {
      const auto made = static_cast<int>(drafting_[i]->window_.drafts.size());
      if (made <= static_cast<int>(drafts_before) || !drafting_[i]->drafts_) batch_[i].limit = made;
    }
    num_drafts_.assign(drafting_.size(), 0);
    controller_.extend(batch, num_drafts_);
    extending_.clear();
    for (size_t i = 0; i < drafting_.size(); ++i) {
      DraftWindow& window = drafting_[i]->window_;
      if (window.drafts.size() == drafts_before + 1 && num_drafts_[i] > static_cast<int>(window.drafts.size()))
        extending_.push_back(&window);
    }
  }
}

// A draft is worth no more than its verification: without it the text is the same.
void Generator::stop_drafting_on_fault(Generation& g) {
  if (!g.drafts_ || !drafter_->fault(g.sequence_)) return;
  g.statistics_.draft_fault = *drafter_->fault(g.sequence_);
  g.drafts_ = false;
  g.planned_ = 0;
}

// ---- verify ----

void Generator::forward(std::span<const Part> parts) {
  inputs_.clear();
  ids_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    if (part.prompt_rows > 0) {
      inputs_.push_back({&g.sequence_, g.prompt().subspan(g.sequence_.length(), static_cast<size_t>(part.prompt_rows)),
                         /*is_window=*/false});
      continue;
    }
    const size_t begin = ids_.size();
    ids_.push_back(g.last_);
    ids_.insert(ids_.end(), g.window_.drafts.begin(), g.window_.drafts.end());
    inputs_.push_back({&g.sequence_, std::span(ids_).subspan(begin), /*is_window=*/true});
  }
  engine_.forward(inputs_);
}

// The target's own choice after each row of the windows, and after the last row of a prompt.
void Generator::choose(std::span<const Part> parts) {
  report_prompt_logits(parts);
  logits_rows_.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    const int first = engine_.first_row(static_cast<int>(i));
    g.choices_.clear();
    if (parts[i].prompt_rows == 0) {
      for (size_t r = 0; r <= g.window_.drafts.size(); ++r) {
        logits_rows_.push_back(first + static_cast<int32_t>(r));
        g.choices_.push_back(0);
      }
    } else if (parts[i].prompt_rows == g.unread()) {
      logits_rows_.push_back(first + parts[i].prompt_rows - 1);
      g.choices_.push_back(0);
    }
  }
  if (logits_rows_.empty()) return;
  engine_.compute_logits(logits_rows_);
  int index = 0;
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    const int64_t position = g.sequence_.length() + (part.prompt_rows == 0 ? 1 : part.prompt_rows);
    if (g.ruled_) {
      choose_by_rules(g, index, position);
      index += static_cast<int>(g.choices_.size());
      continue;
    }
    for (size_t r = 0; r < g.choices_.size(); ++r, ++index) {
      g.choices_[r] = engine_.choose(index, g.options_.sampling, position + static_cast<int64_t>(r));
    }
  }
}

// Row after row: a choice depends on the tokens before it, so it is made as if they had been decoded one by one, and no
// further than the drafts are right.
void Generator::choose_by_rules(Generation& g, int first_index, int64_t position) {
  std::fill(g.choices_.begin(), g.choices_.end(), Generation::kNoChoice);
  size_t pushed = 0;
  try {
    for (size_t r = 0; r < g.choices_.size(); ++r) {
      const TokenId id = g.ruled_->choose(engine_.options().isa, engine_.logits(first_index + static_cast<int>(r)),
                                          engine_.model().config().vocab_size, g.options_.sampling,
                                          position + static_cast<int64_t>(r));
      // What follows it is found here too: when the token goes out, nothing can fail any more.
      g.ruled_->push(id);
      ++pushed;
      g.choices_[r] = id;
      if (r >= g.window_.drafts.size() || g.window_.drafts[r] != id) break;
    }
  } catch (const InputError& error) {
    // The text ends there, after the tokens before it went out.
    g.choice_failure_ = error.what();
  }
  for (; pushed > 0; --pushed) g.ruled_->pop();
}

// Logits of all rows of prompt chunks but the very last of a prompt, which is reported with the choice.
void Generator::report_prompt_logits(std::span<const Part> parts) {
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (parts[i].prompt_rows == 0 || !g.options_.all_prompt_logits || !g.options_.on_logits) continue;
    const int first = engine_.first_row(static_cast<int>(i));
    const int end = parts[i].prompt_rows - (parts[i].prompt_rows == g.unread() ? 1 : 0);
    for (int r = 0; r < end;) {
      logits_rows_.clear();
      const int begin = r;
      for (; r < end && r - begin < engine_.logits_capacity(); ++r) logits_rows_.push_back(first + r);
      engine_.compute_logits(logits_rows_);
      for (int k = begin; k < r && rows_are_finite(g, first + k, 1); ++k)
        g.options_.on_logits(g.sequence_.length() + k, engine_.logits(k - begin));
      if (g.is_finished()) break;
    }
  }
}

// ---- accept and commit ----

bool Generator::may_go_on(Generation& g) const {
  if (static_cast<int64_t>(g.ids_.size()) >= g.options_.max_new_tokens) {
    g.stop(StopReason::kLength);
  } else if (g.sequence_.length() + 1 >= engine_.options().ctx_size) {
    g.stop(StopReason::kContextFull);
  }
  return !g.is_finished();
}

bool Generator::emit(Generation& g, TokenId id, const TokenOrigin& origin) {
  return g.emit(id, origin, engine_.model().tokenizer().is_end_of_generation(id));
}

// A text in whose rows something is not finite ends there; nobody else's does.
bool Generator::rows_are_finite(Generation& g, int first_row, int num_rows) {
  try {
    for (int r = first_row; r < first_row + num_rows; ++r) engine_.check_row(r);
    return true;
  } catch (const InputError& error) {
    g.failure_ = error.what();
    g.stop(StopReason::kFailed);
    return false;
  }
}

// The rules leave no token: the text ends there.
bool Generator::ends_without_choice(Generation& g, TokenId choice) {
  if (choice != Generation::kNoChoice) return false;
  g.failure_ = g.choice_failure_;
  g.stop(StopReason::kFailed);
  return true;
}

void Generator::accept_windows(std::span<const Part> parts, const Step& step) {
  Stopwatch watch;
  int index = 0;  // of the logits
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    const auto num_rows = static_cast<int>(g.choices_.size());
    if (part.prompt_rows > 0) {
      index += num_rows;
      continue;
    }
    DecodeStatistics& s = g.statistics_;
    const auto rows = static_cast<size_t>(num_rows);
    s.verify_ms += step.verify_ms;
    s.verify_ms_by_rows[rows] += step.verify_ms;
    ++s.windows_by_rows[rows];
    s.distinct_experts_by_rows[rows] += step.distinct_experts;

    const Acceptance acceptance = accept(g.window_.drafts, g.choices_);
    const int64_t begin = g.sequence_.length();
    int num_emitted = 0;
    const int first_row = engine_.first_row(static_cast<int>(&part - parts.data()));
    for (bool going = true; going && num_emitted <= acceptance.num_accepted; ++num_emitted) {
      // After the tokens before it went out, as in plain decoding.
      if (!rows_are_finite(g, first_row + num_emitted, 1)) break;
      if (g.options_.on_logits) g.options_.on_logits(begin + num_emitted, engine_.logits(index + num_emitted));
      if (ends_without_choice(g, g.choices_[num_emitted])) break;
      going = emit(g, g.choices_[num_emitted], origin_of(num_emitted, acceptance.num_accepted, num_rows - 1));
    }
    // What the pass computed beyond is taken back: the KV length moves to the accepted end, and the recurrent state,
    // which the pass left behind the window, is replayed over the accepted rows by the next one.
    if (num_emitted > 0) {
      g.sequence_.commit(num_emitted);
      g.last_ = g.choices_[static_cast<size_t>(num_emitted) - 1];
    }
    g.choices_.resize(num_emitted);
    g.count_window(acceptance.num_accepted, num_emitted);
    controller_.observe_acceptance(g.history_, g.window_.confidences, std::min(acceptance.num_accepted, num_emitted));
    if (!g.is_finished()) (void)may_go_on(g);
    s.accept_ms += watch.lap_ms();
    index += num_rows;
  }
}

void Generator::end_prompts(std::span<const Part> parts, double pass_ms) {
  int index = 0;
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    if (part.prompt_rows == 0) {
      index += static_cast<int>(g.window_.drafts.size()) + 1;
      continue;
    }
    const bool ends = part.prompt_rows == g.unread();
    if (g.is_finished() ||
        !rows_are_finite(g, engine_.first_row(static_cast<int>(&part - parts.data())), part.prompt_rows)) {
      index += ends ? 1 : 0;
      continue;
    }
    g.sequence_.commit(part.prompt_rows);
    g.statistics_.prompt_ms += pass_ms;
    g.statistics_.prompt_tokens += part.prompt_rows;
    if (!ends) continue;
    if (g.options_.on_logits) g.options_.on_logits(g.sequence_.length() - 1, engine_.logits(index));
    ++index;
    if (ends_without_choice(g, g.choices_[0])) continue;
    g.last_ = g.choices_[0];
    g.was_read_ = true;
    g.statistics_.time_to_first_token_ms = g.watch_.lap_ms();
    if (g.options_.max_new_tokens > 0) (void)emit(g, g.last_, {});
    if (!g.is_finished()) (void)may_go_on(g);
  }
}

// ---- refresh ----

// The drafter learns of the known tokens; first it is settled who drafts in the next step, and whose prompt has ended
// so that a device goes on with it.
void Generator::refresh(std::span<const Part> parts) {
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    g.on_device_ = device_ != nullptr && part.prompt_rows > 0 && g.was_read_ && !g.is_finished() &&
                   !g.options_.on_logits && !g.ruled_ && DeviceCycle::supports(g.options_.sampling);
  }
  if (drafter_) {
    plan_drafts(parts);
    gather_known(parts);
    if (!known_.empty()) follow_known(parts);
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (!g.on_device_) continue;
    device_begin(g, g.last_, engine_.first_row(static_cast<int>(i)) + parts[i].prompt_rows - 1);
  }
}

// Drafts that each text is likely to get in its next window.
void Generator::plan_drafts(std::span<const Part> parts) {
  drafting_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    g.planned_ = 0;
    if (!g.was_read_ || g.is_finished() || !g.drafts_ || g.on_device_) continue;
    g.planned_ = 1;  // may draft, as far as batch_of is concerned
    g.window_.confidences.clear();
    drafting_.push_back(&g);
  }
  if (drafting_.empty()) return;
  DraftingBatch batch = batch_of(drafting_, {});
  auto sequence = batch_.begin();
  for (const Part& part : parts) {
    const Generation& g = *part.generation;
    if (g.planned_ == 0) continue;
    sequence->tokens_left = g.tokens_left(engine_.options().ctx_size);
    sequence->waiting = drafter_->waiting(g.sequence_) + part.prompt_rows;
    ++sequence;
  }
  if (prompt_tokens_left_ > 0) {
    // As many as in this pass.
    for (const Part& part : parts) batch.prompt_rows += part.prompt_rows;
    batch.prompt_rows = static_cast<int>(std::min<int64_t>(std::max(batch.prompt_rows, 1), prompt_tokens_left_));
    batch.prompt_spans = 1;
    batch.prompt_tokens_left = prompt_tokens_left_;
  }
  num_drafts_.assign(drafting_.size(), 0);
  controller_.plan(batch, num_drafts_);
  for (size_t i = 0; i < drafting_.size(); ++i) drafting_[i]->planned_ = num_drafts_[i];
}

// What has become known in this step, with the hidden row before each token.
void Generator::gather_known(std::span<const Part> parts) {
  known_.clear();
  known_ids_.clear();
  hidden_.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (!g.drafts_ || (g.is_finished() && !g.has_kept_state())) continue;
    const int first = engine_.first_row(static_cast<int>(i));
    const size_t ids_begin = known_ids_.size(), hidden_begin = hidden_.size();
    if (parts[i].prompt_rows > 0) {
      const auto chunk =
          g.prompt().subspan(g.sequence_.length() - parts[i].prompt_rows, static_cast<size_t>(parts[i].prompt_rows));
      known_ids_.insert(known_ids_.end(), chunk.begin(), chunk.end());
      if (drafter_->needs_hidden()) {
        hidden_.push_back(g.previous_hidden_.data());
        for (int r = 0; r + 1 < parts[i].prompt_rows; ++r) hidden_.push_back(engine_.hidden(first + r));
      }
      if (g.was_read_ && !g.is_finished() && !g.on_device_) {
        known_ids_.push_back(g.last_);
        if (drafter_->needs_hidden()) hidden_.push_back(engine_.hidden(first + parts[i].prompt_rows - 1));
      }
    } else {
      // A text that has ended is kept as it stands in the trunk: without its last token, whose turn has not come.
      const size_t num_known = g.choices_.size() - (g.is_finished() ? 1 : 0);
      known_ids_.insert(known_ids_.end(), g.choices_.begin(),
                        g.choices_.begin() + static_cast<std::ptrdiff_t>(num_known));
      for (size_t r = 0; drafter_->needs_hidden() && r < num_known; ++r)
        hidden_.push_back(engine_.hidden(first + static_cast<int>(r)));
      if (g.is_finished() && drafter_->needs_hidden())
        std::copy_n(engine_.hidden(first + static_cast<int>(num_known)), g.previous_hidden_.size(),
                    g.previous_hidden_.data());
      if (num_known == 0) continue;
    }
    const auto produced = std::span(known_ids_).subspan(ids_begin);
    if (vocabulary_ && g.was_read_) vocabulary_->see(g.sequence_, produced);
    known_.push_back({&g.sequence_, &g.options_.sampling, produced, std::span(hidden_).subspan(hidden_begin),
                      g.planned_ > 0, /*at_once=*/g.on_device_ || (device_ != nullptr && !g.was_read_)});
  }
}

void Generator::follow_known(std::span<const Part> parts) {
  Stopwatch watch;
  const DraftTimes times = drafter_->follow(known_);
  const double ms = watch.lap_ms();
  bool with_prompts = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (!g.drafts_ || (g.is_finished() && !g.has_kept_state())) continue;
    stop_drafting_on_fault(g);
    DecodeStatistics& s = g.statistics_;
    if (parts[i].prompt_rows > 0) {
      with_prompts = true;
      s.prompt_ms += ms;
      s.prompt_mtp_ms += ms;
      if ((!g.was_read_ || g.is_finished()) && drafter_->needs_hidden()) {
        const int last = engine_.first_row(static_cast<int>(i)) + parts[i].prompt_rows - 1;
        std::copy_n(engine_.hidden(last), g.previous_hidden_.size(), g.previous_hidden_.data());
      }
    } else {
      s.refresh_ms += ms - times.first_ms;
      if (g.planned_ > 0) s.draft_ms += times.first_ms;
    }
  }
  if (!with_prompts && times.follow_sequences > 0) {
    controller_.cost().observe_refresh(times.follow_sequences, times.follow_ms);
    controller_.cost().observe_first_draft(times.follow_sequences, times.first_ms);
  }
}

// ---- the device's own cycle ----

void Generator::device_begin(Generation& g, TokenId first, int row) {
  device_->begin(g.sequence_.state_for_device(), g.options_.sampling, first, row);
  if (vocabulary_) vocabulary_->see(g.sequence_, std::span(&first, 1));
}

// All drafts of a device's window are made in one go, so their number is settled before: by the plan, and by how sure
// the MTP layer is of the first one, where that is known.
void Generator::plan_device_windows(std::span<const Part> parts) {
  batch_.clear();
  first_confidences_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    batch_.push_back({&g.history_, g.most_drafts(engine_.options().ctx_size), {}});
    const ForcedText& forced = g.options_.forced;
    first_confidences_.push_back(forced.reaches(g.sequence_.length() + 1)
                                     ? static_cast<float>(forced.acceptance)
                                     : device_->first_confidence(g.sequence_.state()));
  }
  DraftingBatch batch;
  batch.sequences = batch_;
  num_drafts_.assign(parts.size(), 0);
  controller_.plan(batch, num_drafts_);
  bool any_is_known = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    parts[i].generation->planned_ = num_drafts_[i];
    const bool is_known = num_drafts_[i] > 0 && first_confidences_[i] >= 0;
    any_is_known |= is_known;
    if (is_known) {
      batch_[i].confidences = std::span(first_confidences_).subspan(i, 1);
    } else {
      batch_[i].limit = num_drafts_[i];
    }
  }
  if (any_is_known) controller_.extend(batch, num_drafts_);
  for (size_t i = 0; i < parts.size(); ++i) {
    int& planned = parts[i].generation->planned_;
    num_drafts_[i] = planned == 0 || first_confidences_[i] < 0 ? planned : std::max(num_drafts_[i], 1);
    planned = 0;
  }
}

// The same cycle on the device, which is told the number of drafts and tells the tokens.
void Generator::device_step(std::span<const Part> parts, Step& step) {
  Stopwatch watch;
  plan_device_windows(parts);
  const int64_t vocab_size = engine_.model().config().vocab_size;
  device_windows_.clear();
  forced_ids_.clear();
  int num_rows = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    DraftWindow& window = g.window_;
    window.position = g.sequence_.length() + 1;
    window.drafts.assign(num_drafts_[i], 0);
    const size_t begin = forced_ids_.size();
    for (int d = 0; d < num_drafts_[i]; ++d) {
      const std::optional<TokenId> forced = g.options_.forced.draft(window.position + d, vocab_size);
      if (!forced) break;
      forced_ids_.push_back(*forced);
    }
    device_windows_.push_back(
        {&g.sequence_.state_for_device(), g.last_, num_drafts_[i], std::span(forced_ids_).subspan(begin)});
    num_rows += num_drafts_[i] + 1;
  }
  const DeviceCycle::Outcome& outcome = device_->run(device_windows_);
  // A pass that has to load its kernels first may take a hundred times as long as the next one.
  if (outcome.is_steady) observe_device(parts, outcome, num_rows);
  for (size_t i = 0; i < parts.size(); ++i) read_device_window(*parts[i].generation, outcome, outcome.windows[i]);
  step.num_windows = step.device_windows = static_cast<int>(parts.size());
  step.window_rows = num_rows;
  step.distinct_experts = outcome.distinct_experts;
  step.verify_ms = outcome.verify_ms;
  // What the host adds: waiting for the device, reading its answer, handing tokens on.
  const double rest = watch.lap_ms() - outcome.draft_ms - outcome.verify_ms - outcome.refresh_ms;
  for (const Part& part : parts) part.generation->statistics_.accept_ms += rest;
}

void Generator::observe_device(std::span<const Part> parts, const DeviceCycle::Outcome& outcome, int num_rows) {
  CostModel& cost = controller_.cost();
  cost.observe_window({static_cast<int>(parts.size()), num_rows}, outcome.distinct_experts, outcome.verify_ms);
  const auto with_more_than = [&](int drafts) {
    return static_cast<int>(std::count_if(num_drafts_.begin(), num_drafts_.end(), [=](int n) { return n > drafts; }));
  };
  if (with_more_than(0) == 0) return;
  cost.observe_first_draft(with_more_than(0), 0);  // it was made with the refresh before
  cost.observe_refresh(with_more_than(0), outcome.refresh_ms);
  const int num_steps = *std::max_element(num_drafts_.begin(), num_drafts_.end()) - 1;
  for (int i = 1; i <= num_steps; ++i) cost.observe_step(with_more_than(i), outcome.draft_ms / num_steps);
}

void Generator::read_device_window(Generation& g, const DeviceCycle::Outcome& outcome,
                                   const DeviceCycle::Verified& verified) {
  DraftWindow& window = g.window_;
  window.confidences = verified.confidences;
  const ForcedText& forced = g.options_.forced;
  for (size_t d = 0; d < window.confidences.size(); ++d) {
    if (forced.reaches(window.position + static_cast<int64_t>(d)))
      window.confidences[d] = static_cast<float>(forced.acceptance);
  }
  const size_t num_rows = window.drafts.size() + 1;
  DecodeStatistics& s = g.statistics_;
  s.verify_ms += outcome.verify_ms;
  s.verify_ms_by_rows[num_rows] += outcome.verify_ms;
  ++s.windows_by_rows[num_rows];
  s.distinct_experts_by_rows[num_rows] += outcome.distinct_experts;
  s.draft_ms += outcome.draft_ms;
  s.refresh_ms += outcome.refresh_ms;
  s.draft_step_ms += outcome.draft_ms;
  s.draft_steps += std::max<int64_t>(0, static_cast<int64_t>(num_rows) - 2);

  const auto produced = std::span(verified.choices).first(static_cast<size_t>(verified.num_accepted) + 1);
  int num_emitted = 0;
  for (bool going = true; going && num_emitted <= verified.num_accepted; ++num_emitted)
    going = emit(g, produced[num_emitted],
                 origin_of(num_emitted, verified.num_accepted, static_cast<int>(window.drafts.size())));
  g.count_window(verified.num_accepted, num_emitted);
  controller_.observe_acceptance(g.history_, window.confidences, std::min(verified.num_accepted, num_emitted));
  g.last_ = produced.back();
  if (vocabulary_) vocabulary_->see(g.sequence_, produced);
  if (!g.is_finished()) (void)may_go_on(g);
}

}  // namespace foretoken
