#include "tools/serve/answer.h"

#include <algorithm>

#include "tools/serve/logprobs.h"

namespace foretoken {

Answer::Answer(const Model& model, AnswerChannel& channel, int index, AnswerRequest request)
    : model_(model),
      channel_(channel),
      index_(index),
      asked_(std::move(request)),
      prompt_tokens_(static_cast<int64_t>(asked_.prompt.size())),
      stops_(asked_.stops) {}

void Answer::begin(Scheduler& scheduler) {
  GenerationOptions options;
  options.max_new_tokens = asked_.max_new_tokens;
  options.max_drafts = asked_.max_drafts;
  options.sampling = asked_.sampling;
  options.rules = std::move(asked_.rules);
  options.ignore_eos = asked_.ignore_eos;
  options.on_origin = [this](const TokenOrigin& origin) { origin_ = origin; };
  options.on_token = [this](TokenId id) { return on_token(id); };
  if (asked_.with_logprobs) options.on_logits = [this](int64_t, const float* logits) { on_logits(logits); };
  request_ = &scheduler.add(std::move(asked_.prompt), std::move(options), asked_.uses_cache);
}

void Answer::on_logits(const float* logits) {
  logits_.assign(logits, logits + model_.config().vocab_size);
}

bool Answer::on_token(TokenId id) {
  if (num_tokens_++ == 0) {
    was_read_ = true;
    report_prompt();
    first_token_ms_ = since_arrival_.elapsed_ms();
    since_first_token_ = Stopwatch();
  }
  AnswerEvent event;
  event.answer = index_;
  event.prompt_tokens = prompt_tokens_;
  event.cached_tokens = request_->cached_tokens();
  event.slot = request_->slot();
  event.id = id;
  const bool is_spelled = std::binary_search(asked_.spelled.begin(), asked_.spelled.end(), id);
  event.text = stops_.push(characters_.push(model_.tokenizer().piece(id, is_spelled)));
  event.origin = origin_;
  if (asked_.with_logprobs) event.logprobs = find_logprobs(logits_, id, asked_.num_logprobs);
  event.made = std::chrono::steady_clock::now();
  channel_.push(std::move(event));
  if (!stops_.found().empty()) return false;
  return asked_.max_predict_ms == 0 || since_first_token_.elapsed_ms() < asked_.max_predict_ms;
}

void Answer::note_begin() {
  if (left_queue_ || request_ == nullptr || request_->is_waiting()) return;
  queue_ms_ = since_arrival_.elapsed_ms();
  left_queue_ = true;
}

void Answer::report_prompt() {
  if (!left_queue_) return;
  const int64_t read = request_->prompt_read();
  if (read == reported_) return;
  reported_ = read;
  AnswerEvent event;
  event.kind = AnswerEvent::Kind::kPrompt;
  event.answer = index_;
  event.prompt_read = read;
  event.cached_tokens = request_->cached_tokens();
  event.prompt_tokens = prompt_tokens_;
  event.slot = request_->slot();
  event.prompt_ms = since_arrival_.elapsed_ms() - queue_ms_;
  channel_.push(std::move(event));
}

std::shared_ptr<const AnswerEnd> Answer::finish(AnswerEnd end) {
  end.prompt_tokens = prompt_tokens_;
  end.queue_ms = left_queue_ ? queue_ms_ : since_arrival_.elapsed_ms();
  AnswerEvent event;
  event.kind = AnswerEvent::Kind::kEnd;
  event.answer = index_;
  event.text = stops_.push(characters_.finish());
  event.text += stops_.finish();
  event.end = std::make_shared<const AnswerEnd>(std::move(end));
  auto result = event.end;
  channel_.push(std::move(event));
  return result;
}

std::shared_ptr<const AnswerEnd> Answer::end() {
  AnswerEnd end;
  end.reason = request_->stop_reason();
  end.stopping_word = stops_.found();
  if (end.reason == StopReason::kFailed) end.failure = request_->failure();
  end.statistics = request_->statistics();
  end.cached_tokens = request_->cached_tokens();
  return finish(std::move(end));
}

std::shared_ptr<const AnswerEnd> Answer::fail(StopReason reason, std::string failure) {
  AnswerEnd end;
  end.reason = reason;
  end.failure = std::move(failure);
  if (request_ != nullptr) {
    end.statistics = request_->statistics();
    end.cached_tokens = request_->cached_tokens();
  }
  return finish(std::move(end));
}

}  // namespace foretoken
