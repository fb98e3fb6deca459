#include "tools/serve/answer_record.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace foretoken {

namespace {

double per_second(int64_t count, double ms) {
  return ms > 0 ? 1e3 * static_cast<double>(count) / ms : 0.0;
}

double each(double ms, int64_t count) {
  return count > 0 ? ms / static_cast<double>(count) : 0.0;
}

Json bytes_of(std::string_view text) {
  Json bytes = Json::array();
  for (const char c : text) bytes.push_back(static_cast<unsigned char>(c));
  return bytes;
}

}  // namespace

void AnswerRecord::add_parts(AnswerDelta delta) {
  const auto add = [&](AnswerPart part) {
    const bool goes_on = !parts.empty() && parts.back().kind == part.kind &&
                         (part.kind != AnswerPart::Kind::kCall || parts.back().call_index == part.call_index);
    std::string added = part.text;
    if (goes_on) {
      parts.back().text += part.text;
    } else {
      if (part.kind == AnswerPart::Kind::kCall) part.id = make_id("call_");
      parts.push_back(std::move(part));
    }
    changes.push_back({parts.size() - 1, !goes_on, std::move(added)});
  };
  const auto add_call = [&](AnswerDelta::Call& call) {
    add({AnswerPart::Kind::kCall, std::move(call.arguments), std::move(call.name), "", call.index});
  };
  // A call that had begun before ends before what else there is.
  auto next = delta.calls.begin();
  if (next != delta.calls.end() && !parts.empty() && parts.back().kind == AnswerPart::Kind::kCall &&
      parts.back().call_index == next->index)
    add_call(*next++);
  if (!delta.reasoning.empty()) add({AnswerPart::Kind::kThought, std::move(delta.reasoning), "", "", 0});
  if (!delta.content.empty()) add({AnswerPart::Kind::kText, std::move(delta.content), "", "", 0});
  for (; next != delta.calls.end(); ++next) add_call(*next);
}

bool AnswerRecord::has_calls() const {
  return std::any_of(parts.begin(), parts.end(),
                     [](const AnswerPart& part) { return part.kind == AnswerPart::Kind::kCall; });
}

std::string AnswerRecord::text_of(AnswerPart::Kind kind) const {
  std::string all;
  for (const AnswerPart& part : parts) {
    if (part.kind == kind) all += part.text;
  }
  return all;
}

void AnswerRecord::add(const AnswerEvent& event) {
  text += event.text;
  changes.clear();
  if (parser) {
    if (!event.text.empty()) add_parts(parser->push(event.text));
    if (event.kind == AnswerEvent::Kind::kEnd) add_parts(parser->finish());
    const bool is_thought = std::none_of(
        parts.begin(), parts.end(), [](const AnswerPart& part) { return part.kind != AnswerPart::Kind::kThought; });
    if (event.kind == AnswerEvent::Kind::kToken && !parts.empty() && is_thought) ++thought_tokens;
  }
  if (event.kind == AnswerEvent::Kind::kEnd) {
    end = event.end;
    prompt_tokens = end->prompt_tokens;
    cached_tokens = end->cached_tokens;
    return;
  }
  prompt_tokens = event.prompt_tokens;
  cached_tokens = event.cached_tokens;
  if (event.slot >= 0) slot = event.slot;
  if (event.kind == AnswerEvent::Kind::kPrompt) {
    prompt_read = event.prompt_read;
    prompt_ms = event.prompt_ms;
    return;
  }
  if (ids.empty()) first_token = event.made;
  last_token = event.made;
  ids.push_back(event.id);
  texts.push_back(event.text);
  if (!event.logprobs.empty()) logprobs.push_back(event.logprobs);
  const TokenOrigin& origin = event.origin;
  if (origin.index == 0) {
    ++windows;
    drafted += origin.num_drafts;
  }
  if (origin.kind != TokenOrigin::Kind::kDraft) return;
  ++accepted;
  const auto position = static_cast<size_t>(origin.index);
  accepted_by_position.resize(std::max(accepted_by_position.size(), position + 1));
  ++accepted_by_position[position];
}

bool AnswerRecord::ended_by_text() const {
  return end != nullptr && (end->reason == StopReason::kEndOfGeneration || !end->stopping_word.empty());
}

Json AnswerRecord::timings() const {
  const auto made = static_cast<int64_t>(ids.size());
  int64_t prompt_n = prompt_read - cached_tokens, decode_n = std::max<int64_t>(0, made - 1);
  double read_ms = prompt_ms;
  double decode_ms = std::chrono::duration<double, std::milli>(last_token - first_token).count();
  Json timings;
  if (end != nullptr) {
    const DecodeStatistics& s = end->statistics;
    prompt_n = s.prompt_tokens;
    read_ms = s.prompt_ms;
    decode_ms = s.decode_ms;
    decode_n = s.decode_tokens;
  }
  timings["cache_n"] = cached_tokens;
  timings["prompt_n"] = prompt_n;
  timings["prompt_ms"] = read_ms;
  timings["prompt_per_token_ms"] = each(read_ms, prompt_n);
  timings["prompt_per_second"] = per_second(prompt_n, read_ms);
  timings["predicted_n"] = made;
  timings["predicted_ms"] = decode_ms;
  timings["predicted_per_token_ms"] = each(decode_ms, decode_n);
  timings["predicted_per_second"] = per_second(decode_n, decode_ms);
  if (end == nullptr) {
    timings["draft_n"] = drafted;
    timings["draft_n_accepted"] = accepted;
    timings["accepted_by_position"] = accepted_by_position;
    return timings;
  }
  const DecodeStatistics& s = end->statistics;
  timings["draft_n"] = s.drafted;
  timings["draft_n_accepted"] = s.accepted;
  timings["verify_passes"] = s.verify_passes;
  timings["acceptance_length"] = s.acceptance_length();
  Json by_position = Json::array();
  for (size_t i = 0; i < s.drafted_by_position.size() && s.drafted_by_position[i] > 0; ++i)
    by_position.push_back(s.accepted_by_position[i]);
  timings["accepted_by_position"] = std::move(by_position);
  double distinct = 0;
  for (const double sum : s.distinct_experts_by_rows) distinct += sum;
  timings["distinct_experts"] = each(distinct, s.verify_passes);
  int64_t rows = 0;
  for (size_t n = 0; n < s.windows_by_rows.size(); ++n) rows += static_cast<int64_t>(n) * s.windows_by_rows[n];
  timings["batch_rows"] = each(static_cast<double>(rows), s.verify_passes);
  timings["queue_ms"] = end->queue_ms;
  return timings;
}

Json AnswerRecord::usage(const std::vector<AnswerRecord>& answers, int answers_a_prompt) {
  int64_t prompt = 0, cached = 0, made = 0, thought = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const AnswerRecord& answer = answers[i];
    // Answers to one prompt have read it once.
    if (i % static_cast<size_t>(answers_a_prompt) == 0) {
      prompt += answer.prompt_tokens;
      cached += answer.cached_tokens;
    }
    made += static_cast<int64_t>(answer.ids.size());
    thought += answer.thought_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", made},
          {"total_tokens", prompt + made},
          {"prompt_tokens_details", {{"cached_tokens", cached}}},
          {"completion_tokens_details", {{"reasoning_tokens", thought}}}};
}

Json describe_call(const AnswerPart& call) {
  return {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.text}}}};
}

std::string make_id(std::string_view prefix) {
  static constexpr std::string_view kLetters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  thread_local std::mt19937_64 generator{std::random_device{}()};
  std::uniform_int_distribution<size_t> pick(0, kLetters.size() - 1);
  std::string id(prefix);
  for (int i = 0; i < 24; ++i) id += kLetters[pick(generator)];
  return id;
}

Json describe_logprobs(const Tokenizer& tokenizer, const std::vector<TokenLogprob>& found, bool with_ids) {
  const auto describe = [&](const TokenLogprob& token) {
    const std::string_view piece = tokenizer.piece(token.id, true);
    Json entry;
    if (with_ids) entry["id"] = token.id;
    entry["token"] = piece;
    entry["bytes"] = bytes_of(piece);
    entry["logprob"] = std::isfinite(token.logprob) ? Json(token.logprob) : Json(-9999.0);
    return entry;
  };
  Json entry = describe(found.front());
  entry["top_logprobs"] = Json::array();
  for (size_t i = 1; i < found.size(); ++i) entry["top_logprobs"].push_back(describe(found[i]));
  return entry;
}

Json describe_origin(const TokenOrigin& origin) {
  using Kind = TokenOrigin::Kind;
  const char* kind = origin.kind == Kind::kDraft       ? "draft"
                     : origin.kind == Kind::kCorrected ? "corrected"
                     : origin.kind == Kind::kBonus     ? "bonus"
                                                       : "plain";
  Json described = {{"kind", kind}, {"drafts", origin.num_drafts}};
  if (origin.kind == Kind::kDraft) described["position"] = origin.index + 1;
  return described;
}

}  // namespace foretoken
