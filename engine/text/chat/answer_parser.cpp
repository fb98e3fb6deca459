#include "engine/text/chat/answer_parser.h"

#include <algorithm>

#include "engine/text/chat/marks.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kThinkBegin = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kChannel = "<|channel|>", kMessage = "<|message|>";
// What ends a harmony message.
constexpr std::string_view kMessageEnds[] = {"<|end|>", "<|call|>", "<|return|>", "<|start|>"};
// A header longer than this is none.
constexpr size_t kMostHeader = 512;

}  // namespace

AnswerForm detect_answer_form(std::string_view source) {
  const auto has = [&](std::string_view mark) { return source.find(mark) != std::string_view::npos; };
  if (has("<|channel|>") && has("<|message|>")) return AnswerForm::kHarmony;
  if (has("<arg_key>") && has(kCallBegin)) return AnswerForm::kGlm;
  if (has("<function=") && has(kCallBegin)) return AnswerForm::kQwenXml;
  if (has(kCallBegin)) return AnswerForm::kHermes;
  return AnswerForm::kPlain;
}

std::span<const std::string_view> answer_marks(AnswerForm form) {
  static constexpr std::string_view kTagged[] = {kThinkBegin, kThinkEnd,    kCallBegin,    kCallEnd,
                                                 "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"};
  static constexpr std::string_view kHarmony[] = {kChannel,   kMessage,     "<|constrain|>", "<|end|>",
                                                  "<|call|>", "<|return|>", "<|start|>"};
  return form == AnswerForm::kHarmony ? std::span<const std::string_view>(kHarmony) : kTagged;
}

bool prompt_opens_thought(std::string_view prompt) {
  const std::string_view end = trimmed(prompt);
  return end.ends_with(kThinkBegin);
}

AnswerParser::AnswerParser(Options options)
    : options_(std::move(options)), tools_(std::make_shared<const Json>(std::move(options_.tools))) {
  if (options_.in_thought && options_.parse_reasoning && options_.form != AnswerForm::kHarmony)
    state_ = State::kThought;
}

AnswerDelta AnswerParser::push(std::string_view text) {
  if (is_done()) return {};
  buffer_ += text;
  AnswerDelta delta;
  run(delta, false);
  return delta;
}

AnswerDelta AnswerParser::finish() {
  AnswerDelta delta;
  if (is_done()) return delta;
  run(delta, true);
  if (is_done()) return delta;
  // White space at the end of the content is its own.
  if (state_ == State::kContent && !at_begin_) delta.content += blanks_;
  blanks_.clear();
  return delta;
}

void AnswerParser::run(AnswerDelta& delta, bool is_end) {
  while (!is_done() && (options_.form == AnswerForm::kHarmony ? run_harmony(delta, is_end) : run_tagged(delta, is_end)))
    continue;
}

// White space is held back until something follows it; at a part's begin it goes.
void AnswerParser::add_content(AnswerDelta& delta, std::string_view text) {
  const size_t last = text.find_last_not_of(kSpace);
  if (last == std::string_view::npos) {
    if (!at_begin_) blanks_ += text;
    return;
  }
  if (at_begin_) text.remove_prefix(text.find_first_not_of(kSpace));
  at_begin_ = false;
  const size_t end = text.find_last_not_of(kSpace) + 1;
  delta.content += blanks_;
  delta.content += text.substr(0, end);
  blanks_ = text.substr(end);
}

void AnswerParser::add_reasoning(AnswerDelta& delta, std::string_view text) {
  AnswerDelta part;
  add_content(part, text);
  delta.reasoning += part.content;
}

bool AnswerParser::pass_until(std::string_view mark, bool is_end, std::string& out) {
  const size_t found = buffer_.find(mark);
  const bool is_found = found != std::string::npos;
  const size_t end = is_found ? found : is_end ? buffer_.size() : partial_mark(buffer_, mark);
  out = buffer_.substr(0, end);
  buffer_.erase(0, is_found ? end + mark.size() : end);
  return is_found;
}

// One step; false where nothing more can be decided.
bool AnswerParser::run_tagged(AnswerDelta& delta, bool is_end) {
  std::string text;
  switch (state_) {
    case State::kStart: {
      // A thought stands at the very beginning or nowhere.
      const size_t begin = std::min(buffer_.find_first_not_of(kSpace), buffer_.size());
      const std::string_view rest = std::string_view(buffer_).substr(begin);
      if (options_.parse_reasoning && !is_end && rest.size() < kThinkBegin.size() && may_begin(rest, kThinkBegin))
        return false;
      if (options_.parse_reasoning && rest.starts_with(kThinkBegin)) {
        buffer_.erase(0, begin + kThinkBegin.size());
        begin_part(State::kThought);
        return true;
      }
      if (buffer_.empty() && !is_end) return false;
      state_ = State::kContent;
      at_begin_ = false;
      return !buffer_.empty();
    }
    case State::kThought: {
      const bool is_over = pass_until(kThinkEnd, is_end, text);
      add_reasoning(delta, text);
      if (is_over) begin_part(State::kContent);
      return is_over;
    }
    case State::kContent: {
      if (options_.form == AnswerForm::kPlain || !options_.parse_calls) {
        add_content(delta, std::exchange(buffer_, ""));
        return false;
      }
      const bool is_call = pass_until(kCallBegin, is_end, text);
      add_content(delta, text);
      if (is_call) state_ = State::kCall;
      return is_call;
    }
    case State::kCall:
      return run_call(delta, is_end);
    case State::kCallTail:
      return run_call_tail(is_end);
    default:
      return false;
  }
}

void AnswerParser::begin_part(State state) {
  state_ = state;
  blanks_.clear();
  at_begin_ = true;
}

bool AnswerParser::tell_call(AnswerDelta& delta) {
  if (!call_->is_told()) return false;
  const std::string& arguments = call_->arguments();
  if (num_told_ == arguments.size()) return true;
  if (delta.calls.empty() || delta.calls.back().index != num_calls_)
    delta.calls.push_back({num_calls_, call_->name(), ""});
  delta.calls.back().arguments += arguments.substr(num_told_);
  num_told_ = arguments.size();
  return true;
}

bool AnswerParser::run_call(AnswerDelta& delta, bool is_end) {
  if (!call_) {
    const size_t first = buffer_.find_first_not_of(kSpace);
    if (first == std::string::npos && !is_end) return false;
    const bool is_json = first != std::string::npos && buffer_[first] == '{';
    using Form = CallStream::Form;
    call_.emplace(is_json || options_.form == AnswerForm::kHermes ? Form::kJsonCall
                  : options_.form == AnswerForm::kGlm             ? Form::kGlm
                                                                  : Form::kQwenXml,
                  is_json && options_.form == AnswerForm::kGlm ? std::make_shared<const Json>() : tools_);
    num_told_ = 0;
  }
  call_->read(buffer_);
  // What is missing at the end is no part of the content.
  if (is_end && call_->state() == CallStream::State::kOpen) buffer_.clear();
  if (is_end) call_->end();
  if (call_->state() == CallStream::State::kWaiting) return false;
  if (tell_call(delta)) {
    if (call_->state() == CallStream::State::kOpen) return false;
    ++num_calls_;
    buffer_.erase(0, std::min(buffer_.size(), call_->num_read()));
    needs_brace_ = call_->form() == CallStream::Form::kJsonCall && call_->state() == CallStream::State::kWhole;
    call_.reset();
    begin_part(State::kCallTail);
    return true;
  }
  // Read as a whole.
  const size_t end = call_end();
  if (end == std::string::npos && !is_end) return false;
  const std::string body = buffer_.substr(0, end);
  const bool is_closed = end != std::string::npos;
  buffer_.erase(0, is_closed ? end + kCallEnd.size() : buffer_.size());
  call_.reset();
  // GLM's name may have been cut off.
  if ((is_closed || options_.form != AnswerForm::kGlm) && add_call(delta, body)) {
    begin_part(State::kContent);
  } else {
    state_ = State::kContent;
    add_content(delta, std::string(kCallBegin) + body + std::string(is_closed ? kCallEnd : ""));
  }
  return !buffer_.empty();
}

// Behind the arguments of a call: what closes it. If that is missing, the content goes on here.
bool AnswerParser::run_call_tail(bool is_end) {
  buffer_.erase(0, std::min(buffer_.find_first_not_of(kSpace), buffer_.size()));
  if (buffer_.empty()) return false;
  if (needs_brace_ && buffer_[0] == '}') {
    needs_brace_ = false;
    buffer_.erase(0, 1);
    return true;
  }
  constexpr std::string_view kFunctionEnd = "</function>";
  for (const std::string_view mark : {kCallEnd, kFunctionEnd}) {
    if (buffer_.size() < mark.size() && may_begin(buffer_, mark)) {
      if (is_end) buffer_.clear();
      return false;
    }
    if (!buffer_.starts_with(mark)) continue;
    buffer_.erase(0, mark.size());
    if (mark == kCallEnd) begin_part(State::kContent);
    return true;
  }
  // Further members of the object around them say nothing.
  if (needs_brace_ && buffer_[0] == ',') {
    const size_t end = buffer_.find(kCallEnd);
    if (end == std::string::npos && !is_end) return false;
    buffer_.erase(0, end);
    needs_brace_ = false;
    return !buffer_.empty();
  }
  begin_part(State::kContent);
  return true;
}

// The closing mark of the call in the buffer. In JSON it does not count within a string.
size_t AnswerParser::call_end() const {
  const bool is_json = trimmed(buffer_).starts_with('{');
  const size_t first = buffer_.find(kCallEnd);
  if (!is_json || first == std::string::npos) return first;
  bool in_string = false;
  for (size_t i = 0; i < buffer_.size(); ++i) {
    if (in_string && buffer_[i] == '\\') {
      ++i;
    } else if (buffer_[i] == '"') {
      in_string = !in_string;
    } else if (!in_string && buffer_.compare(i, kCallEnd.size(), kCallEnd) == 0) {
      return i;
    }
  }
  return std::string::npos;
}

bool AnswerParser::add_call(AnswerDelta& delta, std::string_view body) {
  body = trimmed(body);
  if (body.starts_with('{')) return options_.form != AnswerForm::kGlm && parse_json_call(delta, body);
  if (options_.form == AnswerForm::kQwenXml) return parse_xml_call(delta, body);
  if (options_.form == AnswerForm::kGlm) return parse_glm_call(delta, body);
  return false;
}

bool AnswerParser::add_call(AnswerDelta& delta, const std::string& name, const Json& arguments) {
  if (name.empty() || !arguments.is_object()) return false;
  try {
    delta.calls.push_back({num_calls_, name, arguments.dump()});
  } catch (const Json::exception&) {  // bytes that are no UTF-8
    return false;
  }
  ++num_calls_;
  return true;
}

bool AnswerParser::parse_json_call(AnswerDelta& delta, std::string_view body) {
  const Json call = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return false;
  Json arguments = Json::object();
  for (const char* key : {"arguments", "parameters"}) {
    if (!call.contains(key)) continue;
    arguments = call[key];
    break;
  }
  if (arguments.is_string()) arguments = Json::parse(arguments.get<std::string>(), nullptr, false);
  return add_call(delta, call["name"].get<std::string>(), arguments);
}

bool AnswerParser::parse_xml_call(AnswerDelta& delta, std::string_view body) {
  constexpr std::string_view kFunction = "<function=", kFunctionEnd = "</function>";
  constexpr std::string_view kParameter = "<parameter=", kParameterEnd = "</parameter>";
  if (!body.starts_with(kFunction) || !body.ends_with(kFunctionEnd)) return false;
  body.remove_suffix(kFunctionEnd.size());
  const size_t name_end = body.find('>');
  if (name_end == std::string_view::npos) return false;
  const std::string name(trimmed(body.substr(kFunction.size(), name_end - kFunction.size())));
  body.remove_prefix(name_end + 1);
  Json arguments = Json::object();
  for (body = trimmed(body); !body.empty(); body = trimmed(body)) {
    if (!body.starts_with(kParameter)) return false;
    const size_t key_end = body.find('>');
    if (key_end == std::string_view::npos) return false;
    const std::string key(trimmed(body.substr(kParameter.size(), key_end - kParameter.size())));
    const size_t end = body.find(kParameterEnd, key_end);
    if (end == std::string_view::npos || key.empty()) return false;
    // The line ends next to the marks are theirs.
    std::string_view value = body.substr(key_end + 1, end - key_end - 1);
    if (value.starts_with('\n')) value.remove_prefix(1);
    if (value.ends_with('\n')) value.remove_suffix(1);
    arguments[key] = value_of_argument(*tools_, name, key, value);
    body.remove_prefix(end + kParameterEnd.size());
  }
  return add_call(delta, name, arguments);
}

bool AnswerParser::parse_glm_call(AnswerDelta& delta, std::string_view body) {
  constexpr std::string_view kKey = "<arg_key>", kKeyEnd = "</arg_key>", kValue = "<arg_value>",
                             kValueEnd = "</arg_value>";
  const size_t name_end = std::min(body.find(kKey), body.size());
  const std::string name(trimmed(body.substr(0, name_end)));
  if (name.find_first_of("<>{}\n\"") != std::string::npos) return false;
  Json arguments = Json::object();
  for (body = trimmed(body.substr(name_end)); !body.empty(); body = trimmed(body)) {
    const size_t key_end = body.find(kKeyEnd);
    if (!body.starts_with(kKey) || key_end == std::string_view::npos) return false;
    const std::string key(trimmed(body.substr(kKey.size(), key_end - kKey.size())));
    body = trimmed(body.substr(key_end + kKeyEnd.size()));
    const size_t value_end = body.find(kValueEnd);
    if (!body.starts_with(kValue) || value_end == std::string_view::npos || key.empty()) return false;
    arguments[key] = value_of_argument(*tools_, name, key, body.substr(kValue.size(), value_end - kValue.size()));
    body.remove_prefix(value_end + kValueEnd.size());
  }
  return add_call(delta, name, arguments);
}

bool AnswerParser::run_harmony(AnswerDelta& delta, bool is_end) {
  const auto begin_message = [&](std::string channel, std::string recipient) {
    state_ = State::kMessage;
    channel_ = std::move(channel);
    recipient_ = std::move(recipient);
    blanks_.clear();
    at_begin_ = channel_ == "analysis";
  };
  const bool is_thought = channel_ == "analysis" && options_.parse_reasoning;
  switch (state_) {
    case State::kStart:
      if (buffer_.empty()) return false;
      // "<|start|>assistant" has been written by the template; a text without a header is content.
      if (!may_begin(buffer_, kChannel) && !may_begin(buffer_, "<|start|>") && !buffer_.starts_with(' ')) {
        begin_message("final", "");
        return true;
      }
      state_ = State::kHeader;
      return true;
    case State::kHeader: {
      const size_t end = buffer_.find(kMessage);
      if (end == std::string::npos) {
        if (!is_end && buffer_.size() < kMostHeader) return false;
        const bool is_header =
            is_end && (may_begin(trimmed(buffer_), kChannel) || may_begin(trimmed(buffer_), "<|start|>"));
        if (is_header) {  // a header that was cut off says nothing
          buffer_.clear();
          return false;
        }
        begin_message("final", "");
        return !buffer_.empty();
      }
      const std::string header = buffer_.substr(0, end);
      buffer_.erase(0, end + kMessage.size());
      const size_t mark = header.find(kChannel);
      std::string channel, recipient;
      if (mark != std::string::npos) {
        const std::string_view rest = trimmed(std::string_view(header).substr(mark + kChannel.size()));
        channel = rest.substr(0, rest.find_first_of(" <\n"));
      }
      if (const size_t to = header.find("to="); to != std::string::npos) {
        const std::string_view rest = std::string_view(header).substr(to + 3);
        recipient = rest.substr(0, rest.find_first_of(" <\n"));
        if (recipient.starts_with("functions.")) recipient.erase(0, 10);
      }
      begin_message(channel.empty() ? "final" : channel, recipient);
      return true;
    }
    case State::kMessage: {
      // The first of the marks that end a message, or what may be one at the end.
      size_t end = std::string::npos, length = 0, safe = buffer_.size();
      for (const std::string_view mark : kMessageEnds) {
        const size_t found = buffer_.find(mark);
        if (found < end) {
          end = found;
          length = mark.size();
        }
        if (!is_end) safe = std::min(safe, partial_mark(buffer_, mark));
      }
      const bool is_over = end != std::string::npos;
      if (!recipient_.empty() && options_.parse_calls) {
        if (!call_) {
          call_.emplace(CallStream::Form::kArguments, tools_, recipient_);
          num_told_ = 0;
        }
        call_->read(std::string_view(buffer_).substr(0, is_over ? end : safe));
        const bool is_open = call_->state() == CallStream::State::kOpen;
        if (is_over || is_end) call_->end();
        const bool is_told = tell_call(delta);
        if (!is_over && !is_end) return false;
        // What is missing at the end is no part of the content.
        const size_t num_read = is_open ? std::min(end, buffer_.size()) : call_->num_read();
        call_.reset();
        if (is_told) {
          ++num_calls_;
          at_begin_ = true;
          const std::string_view rest =
              std::string_view(buffer_).substr(num_read, is_over ? end - num_read : std::string_view::npos);
          const bool is_cut_mark =
              !is_over && std::any_of(std::begin(kMessageEnds), std::end(kMessageEnds),
                                      [&](std::string_view mark) { return may_begin(trimmed(rest), mark); });
          if (!is_cut_mark) add_content(delta, rest);
        } else {
          const std::string body = buffer_.substr(0, end);
          const Json arguments = Json::parse(trimmed(body).empty() ? "{}" : body, nullptr, /*allow_exceptions=*/false);
          if (!add_call(delta, recipient_, arguments)) add_content(delta, body);
        }
        buffer_.erase(0, is_over ? end + length : buffer_.size());
      } else {
        const std::string text = buffer_.substr(0, is_over ? end : safe);
        buffer_.erase(0, is_over ? end + length : text.size());
        if (is_thought) {
          add_reasoning(delta, text);
        } else {
          delta.content += text;
        }
      }
      if (is_over) {
        state_ = State::kHeader;
        channel_.clear();
        recipient_.clear();
      }
      return is_over && !buffer_.empty();
    }
    default:
      return false;
  }
}

}  // namespace foretoken
