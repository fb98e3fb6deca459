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

}  // namespace

Generator::Generator(Engine& engine, const GeneratorOptions& options)
    : engine_(engine), options_(options), controller_(costs(engine, options), options.max_drafts, !options.controller) {
  FT_CHECK(options.max_drafts >= 0 && options.max_drafts <= kMaxDraft);
  FT_CHECK(options.max_drafts < engine.options().max_window);
  if (options.mtp || options.ngram) {
    std::vector<std::unique_ptr<Drafter>> drafters;
    if (options.ngram) drafters.push_back(std::make_unique<NgramDrafter>(engine));
    if (options.mtp) drafters.push_back(std::make_unique<MtpDrafter>(engine));
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
  if (!options.ngram && engine.options().parallel == 1) device_ = engine.device_cycle();
  const auto parallel = static_cast<size_t>(engine.options().parallel);
  const auto max_rows = static_cast<size_t>(engine.max_rows());
  inputs_.reserve(parallel);
  ids_.reserve(max_rows);
  logits_rows_.reserve(static_cast<size_t>(engine.logits_capacity()));
  drafting_.reserve(parallel);
  extending_.reserve(parallel);
  batch_.reserve(parallel);
  num_drafts_.reserve(parallel);
  known_.reserve(parallel);
  hidden_.reserve(max_rows + parallel);
  known_ids_.reserve(max_rows + parallel);
}

Generator::~Generator() = default;

void Generator::enter(Generation& generation) {
  generation.has_begun_ = true;
  generation.watch_ = Stopwatch();
  if (!drafter_) return;
  generation.previous_hidden_.assign(static_cast<size_t>(engine_.model().config().hidden_dim), 0.0f);
  if (!generation.options_.forced.continuation.empty())
    drafter_->force(generation.sequence_, generation.options_.forced);
  if (vocabulary_ && generation.drafts_) vocabulary_->see(generation.sequence_, generation.prompt_);
}

void Generator::leave(Generation& generation) {
  if (on_device_ == &generation) on_device_ = nullptr;
  if (drafter_) drafter_->leave(generation.sequence_);
  if (vocabulary_) vocabulary_->leave(generation.sequence_);
}

Generator::Step Generator::step(std::span<const Part> parts) {
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    FT_CHECK(!g.is_finished());
    FT_CHECK(g.was_read_ ? part.prompt_rows == 0 : part.prompt_rows > 0 && part.prompt_rows <= g.unread());
    if (!g.has_begun_) enter(g);
  }
  if (parts.size() == 1 && on_device_ != nullptr && parts[0].generation == on_device_) return device_step(*on_device_);
  try {
    Stopwatch whole;
    draft(parts);
    Stopwatch watch;
    forward(parts);
    const double trunk_ms = watch.lap_ms();
    choose(parts);
    Step step;
    for (const Part& part : parts) {
      step.num_windows += part.prompt_rows == 0 ? 1 : 0;
      step.prompt_rows += part.prompt_rows;
      if (part.prompt_rows == 0) step.window_rows += static_cast<int>(part.generation->window_.drafts.size()) + 1;
    }
    step.distinct_experts = engine_.distinct_experts();
    step.verify_ms = trunk_ms + watch.lap_ms();
    const PassShape shape{static_cast<int>(parts.size()), step.window_rows + step.prompt_rows};
    if (step.prompt_rows == 0) {
      controller_.cost().observe_window(shape, step.distinct_experts, step.verify_ms);
    } else if (engine_.options().device == Device::kCpu) {
      // On a device the first passes load their kernels, and nobody says which.
      controller_.cost().observe_prompt(shape, step.distinct_experts, trunk_ms);
    }
    accept_windows(parts, step);
    end_prompts(parts, step.verify_ms);
    refresh(parts);
    step.whole_ms = whole.lap_ms();
    return step;
  } catch (const Interrupted&) {
    for (const Part& part : parts) part.generation->stop(StopReason::kInterrupted);
    throw;
  }
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
      inputs_.push_back(
          {&g.sequence_,
           g.prompt().subspan(static_cast<size_t>(g.sequence_.length()), static_cast<size_t>(part.prompt_rows)),
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
      g.choices_[r] = choose_token(engine_.options().isa, engine_.logits(index), engine_.model().config().vocab_size,
                                   g.options_.sampling, position + static_cast<int64_t>(r));
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

bool Generator::emit(Generation& g, TokenId id) {
  return g.emit(id, engine_.model().tokenizer().is_end_of_generation(id));
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
      if (ends_without_choice(g, g.choices_[static_cast<size_t>(num_emitted)])) break;
      going = emit(g, g.choices_[static_cast<size_t>(num_emitted)]);
    }
    // What the pass computed beyond is taken back: the KV length moves to the accepted end, and the recurrent state,
    // which the pass left behind the window, is replayed over the accepted rows by the next one.
    if (num_emitted > 0) {
      g.sequence_.commit(num_emitted);
      g.last_ = g.choices_[static_cast<size_t>(num_emitted) - 1];
    }
    g.choices_.resize(static_cast<size_t>(num_emitted));
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
    if (g.options_.max_new_tokens > 0) (void)emit(g, g.last_);
    if (!g.is_finished()) (void)may_go_on(g);
  }
}

// ---- refresh ----

// The drafter learns of the known tokens; first it is settled who drafts in the next step.
void Generator::refresh(std::span<const Part> parts) {
  if (device_ != nullptr && parts.size() == 1 && parts[0].prompt_rows > 0 && parts[0].generation->was_read_ &&
      !parts[0].generation->options_.on_logits && !parts[0].generation->ruled_ &&
      DeviceCycle::supports(parts[0].generation->options_.sampling)) {
    on_device_ = parts[0].generation;
  }
  if (drafter_) {
    plan_drafts(parts);
    gather_known(parts);
    if (!known_.empty()) follow_known(parts);
  }
  if (on_device_ != nullptr && parts[0].generation == on_device_ && !on_device_->is_finished()) {
    const int last_row = parts[0].prompt_rows - 1;
    device_begin(*on_device_, on_device_->last_, last_row);
  }
}

// Drafts that each text is likely to get in its next window.
void Generator::plan_drafts(std::span<const Part> parts) {
  drafting_.clear();
  for (const Part& part : parts) {
    Generation& g = *part.generation;
    g.planned_ = 0;
    if (!g.was_read_ || g.is_finished() || !g.drafts_ || &g == on_device_) continue;
    g.planned_ = 1;  // may draft, as far as batch_of is concerned
    g.window_.confidences.clear();
    drafting_.push_back(&g);
  }
  if (!drafting_.empty()) {
    num_drafts_.assign(drafting_.size(), 0);
    controller_.plan(batch_of(drafting_, {}), num_drafts_);
    for (size_t i = 0; i < drafting_.size(); ++i) drafting_[i]->planned_ = num_drafts_[i];
  }
}

// What has become known in this step, with the hidden row before each token.
void Generator::gather_known(std::span<const Part> parts) {
  known_.clear();
  known_ids_.clear();
  hidden_.clear();
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (g.is_finished() || !g.drafts_) continue;
    const int first = engine_.first_row(static_cast<int>(i));
    const size_t ids_begin = known_ids_.size(), hidden_begin = hidden_.size();
    if (parts[i].prompt_rows > 0) {
      const auto chunk = g.prompt().subspan(static_cast<size_t>(g.sequence_.length() - parts[i].prompt_rows),
                                            static_cast<size_t>(parts[i].prompt_rows));
      known_ids_.insert(known_ids_.end(), chunk.begin(), chunk.end());
      if (drafter_->needs_hidden()) {
        hidden_.push_back(g.previous_hidden_.data());
        for (int r = 0; r + 1 < parts[i].prompt_rows; ++r) hidden_.push_back(engine_.hidden(first + r));
      }
      if (g.was_read_ && &g != on_device_) {
        known_ids_.push_back(g.last_);
        if (drafter_->needs_hidden()) hidden_.push_back(engine_.hidden(first + parts[i].prompt_rows - 1));
      }
    } else {
      known_ids_.insert(known_ids_.end(), g.choices_.begin(), g.choices_.end());
      for (size_t r = 0; drafter_->needs_hidden() && r < g.choices_.size(); ++r)
        hidden_.push_back(engine_.hidden(first + static_cast<int>(r)));
    }
    const auto produced = std::span(known_ids_).subspan(ids_begin);
    if (vocabulary_ && g.was_read_) vocabulary_->see(g.sequence_, produced);
    known_.push_back({&g.sequence_, &g.options_.sampling, produced, std::span(hidden_).subspan(hidden_begin),
                      g.planned_ > 0, /*at_once=*/&g == on_device_ || (device_ != nullptr && !g.was_read_)});
  }
}

void Generator::follow_known(std::span<const Part> parts) {
  Stopwatch watch;
  const DraftTimes times = drafter_->follow(known_);
  const double ms = watch.lap_ms();
  bool with_prompts = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    Generation& g = *parts[i].generation;
    if (!g.drafts_ || g.is_finished()) continue;
    stop_drafting_on_fault(g);
    DecodeStatistics& s = g.statistics_;
    if (parts[i].prompt_rows > 0) {
      with_prompts = true;
      s.prompt_ms += ms;
      s.prompt_mtp_ms += ms;
      if (!g.was_read_ && drafter_->needs_hidden()) {
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
int Generator::plan_device_window(const Generation& g, int limit) {
  const int planned = controller_.plan(limit);
  const float confidence = device_->first_confidence(g.sequence_.state());
  return planned == 0 || confidence < 0 ? planned : controller_.plan_after_first(confidence, limit);
}

// The same cycle on the device, which is told the number of drafts and tells the tokens.
Generator::Step Generator::device_step(Generation& g) {
  DecodeStatistics& s = g.statistics_;
  Stopwatch watch;
  DraftWindow& window = g.window_;
  window.position = g.sequence_.length() + 1;
  const int num_drafts = plan_device_window(g, g.most_drafts(engine_.options().ctx_size));
  const int64_t vocab_size = engine_.model().config().vocab_size;
  known_ids_.clear();
  for (int i = 0; i < num_drafts; ++i) {
    const std::optional<TokenId> forced = g.options_.forced.draft(window.position + i, vocab_size);
    if (!forced) break;
    known_ids_.push_back(*forced);
  }
  const DeviceCycle::Window device_window{&g.sequence_.state_for_device(), g.last_, num_drafts, known_ids_};
  const DeviceCycle::Outcome& outcome = device_->run({&device_window, 1});
  const DeviceCycle::Verified& verified = outcome.windows[0];
  window.drafts.assign(static_cast<size_t>(num_drafts), 0);
  window.confidences = verified.confidences;
  const auto num_rows = static_cast<size_t>(num_drafts) + 1;
  s.verify_ms += outcome.verify_ms;
  s.verify_ms_by_rows[num_rows] += outcome.verify_ms;
  ++s.windows_by_rows[num_rows];
  s.distinct_experts_by_rows[num_rows] += outcome.distinct_experts;
  s.draft_ms += outcome.draft_ms;
  s.refresh_ms += outcome.refresh_ms;
  s.draft_step_ms += outcome.draft_ms;
  s.draft_steps += std::max(0, num_drafts - 1);
  // A pass that has to load its kernels first may take a hundred times as long as the next one.
  if (outcome.is_steady) {
    controller_.observe_verify(static_cast<int>(num_rows), outcome.distinct_experts, outcome.verify_ms);
    if (num_drafts > 0) {
      controller_.observe_draft(/*is_first=*/true, 0);  // it was made with the refresh before
      controller_.observe_refresh(outcome.refresh_ms);
    }
    for (int i = 1; i < num_drafts; ++i) controller_.observe_draft(false, outcome.draft_ms / (num_drafts - 1));
  }

  const auto produced = std::span(verified.choices).first(static_cast<size_t>(verified.num_accepted) + 1);
  int num_emitted = 0;
  for (bool going = true; going && num_emitted <= verified.num_accepted; ++num_emitted)
    going = emit(g, produced[static_cast<size_t>(num_emitted)]);
  g.count_window(verified.num_accepted, num_emitted);
  controller_.observe_acceptance(window.confidences, std::min(verified.num_accepted, num_emitted));
  g.last_ = produced.back();
  if (vocabulary_) vocabulary_->see(g.sequence_, produced);
  if (!g.is_finished()) (void)may_go_on(g);
  Step step;
  step.num_windows = 1;
  step.window_rows = num_drafts + 1;
  step.distinct_experts = outcome.distinct_experts;
  step.verify_ms = outcome.verify_ms;
  step.whole_ms = watch.lap_ms();
  // What the host adds: waiting for the device, reading its answer, handing tokens on.
  s.accept_ms += step.whole_ms - outcome.draft_ms - outcome.verify_ms - outcome.refresh_ms;
  return step;
}

}  // namespace foretoken
