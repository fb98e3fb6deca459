#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/device_cycle.h"
#include "engine/engine.h"
#include "mtp/controller.h"
#include "mtp/draft_vocabulary.h"
#include "mtp/drafter.h"
#include "mtp/forced_drafter.h"
#include "mtp/generation.h"
#include "mtp/text_checkpoint.h"

namespace foretoken {

class MtpDrafter;

struct GeneratorOptions {
  bool mtp = false;        // the MTP layer drafts. REQUIRES: engine.options().with_mtp
  int max_drafts = 0;      // that any generation may ask for: the controller's bound. 0 .. kMaxDraft
  bool controller = true;  // let the controller choose shorter drafts, down to 0
  // Head rows that drafts read (low ids; special and seen ones are added); 0: all; kAutoDraftVocab: auto_draft_vocab().
  int64_t draft_vocab = kAutoDraftVocab;
  bool ngram = false;  // the text's own past drafts, before the MTP layer where both do
};

/// What the drafters of these options take of the host's memory, for an engine of these options.
[[nodiscard]] size_t drafter_bytes(const ModelConfig& config, const SessionOptions& engine,
                                   const GeneratorOptions& options);

/// Moves any number of generations over one engine on, a step at a time: draft, verify, accept, commit, refresh, for
/// all of them together in as few passes as there are stages. The ids and every logit of a generation are the same
/// whoever else is in its steps, and for all values of the options.
class Generator {
 public:
  Generator(Engine& engine, const GeneratorOptions& options);
  ~Generator();

  /// One generation's part in a step: its window, or so many tokens of its prompt.
  struct Part {
    Generation* generation = nullptr;
    int prompt_rows = 0;  // 0: a window. REQUIRES: > 0 exactly while the prompt is not read, <= unread()
  };

  /// What a step did.
  struct Step {
    int num_windows = 0, window_rows = 0, prompt_rows = 0;
    int device_windows = 0;       // of the windows, those in a cycle of the device's own
    double distinct_experts = 0;  // U of the pass
    double verify_ms = 0;         // the pass with its head and choices
    double whole_ms = 0;
  };

  /// Runs one step. Generations that finish in it have given their last token. A generation enters with the first step
  /// that it has a part in; leave() has to be called when it is finished or given up, before its sequence goes.
  /// REQUIRES: nobody twice, nobody finished; rows of all parts <= engine.max_rows(), where a window has
  /// max_drafts + 1; sequences have their pages. Throws Interrupted if the engine was asked to stop; all generations of
  /// the step are then finished. other_prompt_tokens: tokens of further prompts, known to the caller, that will be read
  /// in later steps beside these texts; what they cost drafts depends on it, and nothing else.
  Step step(std::span<const Part> parts, int64_t other_prompt_tokens = 0);

  void leave(Generation& generation);

  // A generation between two steps can be saved, and taken up again by any generator over the same model and KV type,
  // with the MTP layer in its engine or without it in both: with any number of threads and drafts, in any company. The
  // ids and logits that follow are those that would have followed. Statistics begin anew. Where a device runs a text's
  // cycles by itself, the text that was taken up goes on by the host's steps. REQUIRES: it is not finished.

  /// Text, state of the sequence and of the drafter as bytes, with a checksum over all.
  [[nodiscard]] std::vector<std::byte> save(Generation& generation);
  /// Takes a saved generation up in `sequence`, which is empty, and enters it. `options` is what is asked of the whole
  /// text: tokens made before count as new ones, and another sampling holds from the next token on. Pages for what is
  /// to come are still to be reserved. The generation may come back finished, where nothing more was asked for. Throws
  /// InputError if the bytes are not of save() over this model and KV type, or damaged, or if the text finds no room in
  /// the context or the free pages, or is not what the grammar of `options` allows; the sequence is empty then.
  [[nodiscard]] std::unique_ptr<Generation> restore(Sequence& sequence, std::span<const std::byte> saved,
                                                    GenerationOptions options);
  /// The same without bytes, within this generator: full pages are shared. nullptr if there are not enough free ones.
  [[nodiscard]] std::unique_ptr<Generation> copy(Generation& from, Sequence& sequence, GenerationOptions options);

  // The state of a text, for others that begin with the same tokens: of one whose prompt is being read, or of one that
  // has_kept_state(). What follows has the bits that it has without.

  /// nullptr where a device runs the text's cycles by itself. REQUIRES: as above, before leave().
  [[nodiscard]] std::unique_ptr<TextCheckpoint> checkpoint(Generation& generation);
  /// A generation that takes the checkpoint up in `sequence`, which is empty, and enters it. nullptr if there are not
  /// enough free pages. REQUIRES: the prompt begins with the checkpoint's tokens and is longer; it has a drafter's part
  /// if options.max_drafts > 0.
  [[nodiscard]] std::unique_ptr<Generation> resume(const TextCheckpoint& checkpoint, Sequence& sequence,
                                                   std::vector<TokenId> prompt, GenerationOptions options);

  [[nodiscard]] DraftController& controller() { return controller_; }
  [[nodiscard]] Engine& engine() { return engine_; }

 private:
  void enter(Generation& generation);
  void prepare_to_save(Generation& generation);
  void take_up(Generation& generation, std::vector<TokenId> ids);
  void host_step(std::span<const Part> parts, Step& step);
  void draft(std::span<const Part> parts);
  void forward(std::span<const Part> parts);
  void choose(std::span<const Part> parts);
  void choose_by_rules(Generation& generation, int first_index, int64_t position);
  void accept_windows(std::span<const Part> parts, const Step& step);
  void end_prompts(std::span<const Part> parts, double pass_ms);
  void refresh(std::span<const Part> parts);
  void plan_drafts(std::span<const Part> parts);
  void gather_known(std::span<const Part> parts);
  void follow_known(std::span<const Part> parts);
  void report_prompt_logits(std::span<const Part> parts);
  [[nodiscard]] bool may_go_on(Generation& generation) const;
  bool emit(Generation& generation, TokenId id, const TokenOrigin& origin);
  bool ends_without_choice(Generation& generation, TokenId choice);
  void stop_drafting_on_fault(Generation& generation);
  bool rows_are_finite(Generation& generation, int first_row, int num_rows);
  [[nodiscard]] DraftingBatch batch_of(std::span<Generation* const> generations, std::span<const Part> parts);

  // The device's own cycle.
  void device_begin(Generation& generation, TokenId first, int row);
  void device_step(std::span<const Part> parts, Step& step);
  void plan_device_windows(std::span<const Part> parts);
  void read_device_window(Generation& generation, const DeviceCycle::Outcome& outcome,
                          const DeviceCycle::Verified& verified);
  void observe_device(std::span<const Part> parts, const DeviceCycle::Outcome& outcome, int num_rows);

  Engine& engine_;
  const GeneratorOptions options_;
  DraftController controller_;
  std::unique_ptr<Drafter> source_;       // nullptr: nobody drafts
  std::optional<ForcedDrafter> drafter_;  // over source_
  MtpDrafter* mtp_ = nullptr;             // if it is the source alone
  std::optional<DraftVocabulary> vocabulary_;
  DeviceCycle* device_ = nullptr;

  // Of the running step.
  int64_t prompt_tokens_left_ = 0;  // behind it
  std::vector<Part> host_parts_, device_parts_;
  std::vector<DeviceCycle::Window> device_windows_;
  std::vector<TokenId> forced_ids_;
  std::vector<float> first_confidences_;
  std::vector<Engine::Input> inputs_;
  std::vector<TokenId> ids_;
  std::vector<int32_t> logits_rows_;
  std::vector<Generation*> drafting_;
  std::vector<DraftWindow*> extending_;
  std::vector<DraftingSequence> batch_;
  std::vector<int> num_drafts_;
  std::vector<KnownTokens> known_;
  std::vector<const float*> hidden_;
  std::vector<TokenId> known_ids_;
};

}  // namespace foretoken
