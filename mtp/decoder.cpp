#include "mtp/decoder.h"

#include <fmt/format.h>

#include <algorithm>

#include "kernels/base/error.h"

namespace foretoken {

GeneratorOptions DecodeOptions::generator() const {
  return {mtp > 0 && draft_mtp, mtp, controller, draft_vocab, mtp > 0 && draft_ngram};
}

GenerationOptions DecodeOptions::generation(int64_t prompt_tokens) const {
  GenerationOptions g;
  g.max_new_tokens = max_new_tokens;
  g.max_drafts = mtp;
  g.sampling = sampling;
  g.rules = rules;
  g.ignore_eos = ignore_eos;
  g.forced = {forced_continuation, prompt_tokens, forced_acceptance, forced_seed};
  g.on_token = on_token;
  g.on_logits = on_logits;
  g.all_prompt_logits = all_prompt_logits;
  return g;
}

void check_mtp(const Model& model, int mtp) {
  if (mtp < 0 || mtp > kMaxDraft)
    throw UsageError(fmt::format("--mtp {}: 0 to {} drafts are possible", mtp, kMaxDraft));
  if (mtp > 0 && !model.has_mtp()) {
    throw InputError(
        fmt::format("{}: --mtp {}: {}; it runs with --mtp 0 only", model.path(), mtp, model.mtp_absence()));
  }
}

void check_prompt_length(const Model& model, int64_t prompt_tokens, int64_t ctx_size) {
  if (prompt_tokens < ctx_size) return;
  const int64_t most = model.config().context_length;
  throw InputError(fmt::format("the prompt: {}; {}", no_room_in_context(prompt_tokens, ctx_size),
                               ctx_size < most
                                   ? fmt::format("raise --ctx-size (this model: up to {}) or shorten the prompt", most)
                                   : "that is all that this model was made for: shorten the prompt"));
}

DecodeResult decode(Session& session, std::span<const TokenId> prompt, const DecodeOptions& options) {
  if (options.draft_mtp) check_mtp(session.model(), options.mtp);
  FT_CHECK(!prompt.empty());
  FT_CHECK(options.mtp == 0 || session.options().max_window > options.mtp);
  FT_CHECK(options.mtp == 0 || !options.draft_mtp || session.options().with_mtp);
  check_prompt_length(session.model(), static_cast<int64_t>(prompt.size()), session.options().ctx_size);
  session.reset();
  Generation generation(session.sequence(), {prompt.begin(), prompt.end()},
                        options.generation(static_cast<int64_t>(prompt.size())));
  Generator generator(session.engine(), options.generator());
  try {
    while (!generation.is_finished()) {
      if (options.stop != nullptr && options.stop->load(std::memory_order_relaxed)) {
        generation.stop(StopReason::kInterrupted);
        break;
      }
      const auto chunk = std::min<int64_t>(generation.unread(), session.options().prompt_chunk);
      const Generator::Part part{&generation, static_cast<int>(chunk)};
      (void)generator.step({&part, 1});
      if (chunk > 0 && options.on_prompt) options.on_prompt(static_cast<int64_t>(prompt.size()) - generation.unread());
    }
  } catch (const Interrupted&) {
  }
  generator.leave(generation);
  if (generation.stop_reason() == StopReason::kFailed) throw InputError(generation.failure());
  return {generation.ids(), generation.stop_reason(), generation.statistics()};
}

}  // namespace foretoken
