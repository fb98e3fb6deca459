#pragma once

#include <algorithm>
#include <memory>
#include <string_view>
#include <vector>

#include "kernels/base/error.h"
#include "mtp/generator.h"
#include "tests/engine/model/random_model.h"
#include "tests/mtp/transcript.h"

// One text among others, and one that is saved, restored and copied on its way.

namespace foretoken::test {

/// Who else is in the passes of a text, and what becomes of it between them.
///
///   kTwo, kSeven  others of other lengths, who join and leave in mid-text: their prompt chunks stand beside its
///                 windows, and its prompt chunks beside theirs
///   kSaved        in its prompt and twice in mid-text it is saved and taken up in another engine, with other threads,
///                 another expert core and other widths of windows and chunks, beside another text
///   kCopied       as kSaved, by copies in the same engine; each source goes on beside its copy
enum class Neighbours { kAlone, kTwo, kSeven, kSaved, kCopied };

inline constexpr Neighbours kAllNeighbours[] = {Neighbours::kAlone, Neighbours::kTwo, Neighbours::kSeven,
                                                Neighbours::kSaved, Neighbours::kCopied};

inline std::string_view name(Neighbours neighbours) {
  constexpr std::string_view kNames[] = {"alone", "beside 2", "beside 7", "saved", "copied"};
  return kNames[static_cast<size_t>(neighbours)];
}

/// Writes down what a generation reports, from its beginning or from the commit point of another one on.
class Scribe {
 public:
  explicit Scribe(int64_t vocab_size) { transcript_.vocab_size = vocab_size; }

  /// Not copied with the options: the scribe has to stay where it is.
  void attach(GenerationOptions& options) {
    options.all_prompt_logits = true;
    options.on_logits = [this](int64_t position, const float* logits) {
      transcript_.in_order = transcript_.in_order && position == next_++;
      transcript_.logits.insert(transcript_.logits.end(), logits, logits + transcript_.vocab_size);
    };
  }
  [[nodiscard]] Transcript of(const Generation& generation) const {
    Transcript transcript = transcript_;
    transcript.result = {generation.ids(), generation.stop_reason(), generation.statistics()};
    return transcript;
  }

 private:
  Transcript transcript_;
  int64_t next_ = 0;
};

/// A text on its way: what it runs in, and who writes it down.
struct Running {
  std::unique_ptr<Sequence> sequence;
  std::unique_ptr<Generation> generation;
  std::unique_ptr<Scribe> scribe;

  void reserve(const GenerationOptions& options, int64_t ctx_size) const {
    const auto prompt = static_cast<int64_t>(generation->prompt().size());
    FT_CHECK(sequence->reserve(Generation::positions_needed(prompt, options.max_new_tokens, ctx_size)));
  }
};

/// The others. Each place is taken by one text after the other: its length, drafts and sampling follow from its number
/// alone. Every third leaves in mid-text.
class NeighbourTexts {
 public:
  NeighbourTexts(Generator& generator, int num, int max_drafts)
      : generator_(generator), max_drafts_(max_drafts), places_(static_cast<size_t>(num)) {}
  ~NeighbourTexts() {
    for (const Running& place : places_) {
      if (place.generation) generator_.leave(*place.generation);
    }
  }

  /// Their parts in the coming step; a prompt chunk has no more rows than a window may have.
  void add_parts(std::vector<Generator::Part>& parts) {
    for (size_t i = 0; i < places_.size(); ++i) {
      // Places fill up one after the other, and stay empty for a step behind each text.
      if (!places_[i].generation && static_cast<int>(i) <= num_steps_) join(places_[i]);
      if (!places_[i].generation) continue;
      Generation& g = *places_[i].generation;
      const int64_t rows = std::min<int64_t>({g.unread(), max_drafts_ + 1, 1 + g.sequence().state().slot});
      parts.push_back({&g, static_cast<int>(rows)});
    }
    ++num_steps_;
  }

  /// Who is finished leaves.
  void after_step() {
    for (Running& place : places_) {
      if (!place.generation) continue;
      Generation& g = *place.generation;
      if (g.ids().size() >= 3 && g.prompt().size() % 3 == 0) g.stop(StopReason::kInterrupted);
      if (!g.is_finished()) continue;
      generator_.leave(g);
      place.generation.reset();
      place.sequence.reset();
    }
  }

 private:
  void join(Running& place) {
    const int number = num_joined_++;
    Engine& engine = generator_.engine();
    const int64_t vocab_size = engine.model().config().vocab_size;
    const int64_t room = engine.options().ctx_size - 16;
    const auto prompt_tokens = static_cast<int>(std::min<int64_t>(1 + (number * 13 + 4) % 29, room));
    GenerationOptions options;
    options.max_new_tokens = 2 + number * 7 % 11;
    options.ignore_eos = true;
    options.max_drafts = max_drafts_ == 0 ? 0 : number % (max_drafts_ + 1);
    if (number % 2 == 1) {
      options.sampling.temperature = 1.0f;
      options.sampling.seed = static_cast<uint64_t>(number);
    }
    place.sequence = std::make_unique<Sequence>(engine);
    place.generation = std::make_unique<Generation>(
        *place.sequence, random_ids(prompt_tokens, vocab_size, 900 + static_cast<uint64_t>(number)), options);
    place.reserve(options, engine.options().ctx_size);
  }

  Generator& generator_;
  const int max_drafts_;
  std::vector<Running> places_;
  int num_joined_ = 0, num_steps_ = 0;
};

/// A text, and copies of it, on their way through one engine after the other.
class Journey {
 public:
  Journey(const Model& model, SessionOptions session, std::span<const TokenId> prompt, const DecodeOptions& options,
          Neighbours neighbours)
      : model_(model),
        options_(options.generation(static_cast<int64_t>(prompt.size()))),
        generator_options_(options.generator()),
        neighbours_(neighbours) {
    session.with_mtp = options.mtp > 0;
    session.max_window = options.mtp + 1;
    num_others_ = neighbours == Neighbours::kTwo ? 2 : neighbours == Neighbours::kSeven ? 7 : 1;
    session.parallel = num_others_ + (neighbours == Neighbours::kCopied ? 4 : 1);
    move_to(session);
    // The others are there first.
    for (int i = 0; i < 3; ++i) step();
    Running running{std::make_unique<Sequence>(*engine_), nullptr, std::make_unique<Scribe>(vocab_size())};
    running.generation = std::make_unique<Generation>(
        *running.sequence, std::vector<TokenId>(prompt.begin(), prompt.end()), options_of(running));
    running.reserve(options_, session.ctx_size);
    running_.push_back(std::move(running));
  }
  ~Journey() {
    for (const Running& running : running_) generator_->leave(*running.generation);
  }
  Journey(const Journey&) = delete;
  Journey& operator=(const Journey&) = delete;

  /// The whole text as it came out, of each copy.
  std::vector<Transcript> run() {
    const int64_t third = std::max<int64_t>(1, options_.max_new_tokens / 3);
    // Half-way through the prompt, as far as its chunks let it; after a third of the new tokens, and after two.
    for (const int64_t tokens : {int64_t{0}, third, 2 * third}) {
      while (!running_.empty() && !has_come_to(*running_.back().generation, tokens)) step();
      if (running_.empty() || neighbours_ < Neighbours::kSaved) break;
      neighbours_ == Neighbours::kSaved ? save_and_restore() : copy();
    }
    while (!running_.empty()) step();
    return std::move(done_);
  }

 private:
  [[nodiscard]] int64_t vocab_size() const { return model_.config().vocab_size; }

  [[nodiscard]] static bool has_come_to(const Generation& g, int64_t new_tokens) {
    if (new_tokens == 0) return 2 * g.sequence().length() >= static_cast<int64_t>(g.prompt().size());
    return static_cast<int64_t>(g.ids().size()) >= new_tokens;
  }

  GenerationOptions options_of(const Running& running) {
    GenerationOptions options = options_;
    running.scribe->attach(options);
    return options;
  }

  void move_to(const SessionOptions& session) {
    others_.reset();
    generator_.reset();
    engine_ = std::make_unique<Engine>(model_, session);
    generator_ = std::make_unique<Generator>(*engine_, generator_options_);
    others_ = std::make_unique<NeighbourTexts>(*generator_, num_others_, options_.max_drafts);
  }

  void step() {
    std::vector<Generator::Part> parts;
    const size_t middle = running_.size() / 2;
    for (size_t i = 0; i < middle; ++i) parts.push_back(part_of(*running_[i].generation));
    others_->add_parts(parts);
    for (size_t i = middle; i < running_.size(); ++i) parts.push_back(part_of(*running_[i].generation));
    if (parts.empty()) return;
    (void)generator_->step(parts);
    others_->after_step();
    std::erase_if(running_, [&](Running& running) {
      if (!running.generation->is_finished()) return false;
      generator_->leave(*running.generation);
      done_.push_back(running.scribe->of(*running.generation));
      return true;
    });
  }

  // Copies read their prompts together: each has its share of the rows.
  [[nodiscard]] Generator::Part part_of(Generation& g) const {
    const int64_t rows = std::max<int64_t>(1, engine_->options().prompt_chunk / static_cast<int64_t>(running_.size()));
    return {&g, static_cast<int>(std::min(g.unread(), rows))};
  }

  void save_and_restore() {
    Running running = std::move(running_.back());
    running_.pop_back();
    const std::vector<std::byte> saved = generator_->save(*running.generation);
    generator_->leave(*running.generation);
    running.generation.reset();
    running.sequence.reset();
    SessionOptions session = engine_->options();
    session.threads = 1 + session.threads % 3;
    session.prompt_chunk = session.prompt_chunk == 5 ? 11 : 5;
    session.max_window = session.max_window == options_.max_drafts + 1 ? options_.max_drafts + 3 : session.max_window;
    session.parallel = session.parallel == 2 ? 3 : 2;
    session.moe_verify = session.moe_verify == MoeVerify::kGrouped ? MoeVerify::kPerToken : MoeVerify::kGrouped;
    move_to(session);
    step();  // so that it comes into another slot than the first
    running.sequence = std::make_unique<Sequence>(*engine_);
    running.generation = generator_->restore(*running.sequence, saved, options_of(running));
    running.reserve(options_, session.ctx_size);
    running_.push_back(std::move(running));
  }

  void copy() {
    const Running& source = running_.back();
    Running running{std::make_unique<Sequence>(*engine_), nullptr, std::make_unique<Scribe>(*source.scribe)};
    running.generation = generator_->copy(*source.generation, *running.sequence, options_of(running));
    FT_CHECK(running.generation != nullptr);
    running.reserve(options_, engine_->options().ctx_size);
    running_.push_back(std::move(running));
  }

  const Model& model_;
  const GenerationOptions options_;
  const GeneratorOptions generator_options_;
  const Neighbours neighbours_;
  int num_others_ = 0;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Generator> generator_;
  std::unique_ptr<NeighbourTexts> others_;
  std::vector<Running> running_;  // the newest copy last
  std::vector<Transcript> done_;
};

/// Decodes the text in this company; all its copies, each from the text's beginning.
inline std::vector<Transcript> transcribe_among(const Model& model, const SessionOptions& session,
                                                std::span<const TokenId> prompt, const DecodeOptions& options,
                                                Neighbours neighbours) {
  if (neighbours == Neighbours::kAlone) return {transcribe(model, session, prompt, options)};
  return Journey(model, session, prompt, options, neighbours).run();
}

}  // namespace foretoken::test
