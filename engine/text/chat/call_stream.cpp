#include "engine/text/chat/call_stream.h"

#include <algorithm>

#include "engine/text/chat/marks.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

/// The marks of a form whose arguments stand as bare text.
struct Marks {
  std::string_view key_begin, key_end, value_begin, value_end, end;
};
constexpr Marks kXml = {"<parameter=", ">", "", "</parameter>", "</function>"};
constexpr Marks kGlm = {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", kCallEnd};

size_t skip_space(std::string_view text, size_t at) {
  return std::min(text.find_first_not_of(kSpace, at), text.size());
}

const Json* find_tool(const Json& tools, std::string_view name) {
  if (!tools.is_array()) return nullptr;
  for (const Json& entry : tools) {
    if (!entry.is_object()) continue;
    const Json& function = entry.contains("function") ? entry["function"] : entry;
    if (function.is_object() && function.contains("name") && function["name"] == std::string(name)) return &function;
  }
  return nullptr;
}

// The schema of one argument; nullptr: there is none.
const Json* find_property(const Json& tools, std::string_view tool, const std::string& key) {
  const Json* function = find_tool(tools, tool);
  if (function == nullptr) return nullptr;
  const char* schema = function->contains("parameters") ? "parameters" : "input_schema";
  if (!function->contains(schema) || !(*function)[schema].is_object() || !(*function)[schema].contains("properties"))
    return nullptr;
  const Json& properties = (*function)[schema]["properties"];
  if (!properties.is_object() || !properties.contains(key) || !properties[key].is_object()) return nullptr;
  return &properties[key];
}

}  // namespace

bool has_tool(const Json& tools, std::string_view name) {
  return find_tool(tools, name) != nullptr;
}

bool is_text_argument(const Json& tools, std::string_view tool, const std::string& key) {
  const Json* property = find_property(tools, tool, key);
  if (property == nullptr) return true;
  if (!property->contains("type")) return false;
  const Json& type = (*property)["type"];
  return type == "string" || (type.is_array() && std::find(type.begin(), type.end(), "string") != type.end());
}

Json value_of_argument(const Json& tools, std::string_view tool, const std::string& key, std::string_view text) {
  if (is_text_argument(tools, tool, key)) return std::string(text);
  const std::string_view word = trimmed(text);
  Json value = Json::parse(word, nullptr, /*allow_exceptions=*/false);
  if (!value.is_discarded()) return value;
  if (word == "True") return true;
  if (word == "False") return false;
  if (word == "None") return nullptr;
  return std::string(text);
}

CallStream::CallStream(Form form, std::shared_ptr<const Json> tools, std::string name)
    : form_(form), tools_(std::move(tools)), name_(std::move(name)) {
  if (form_ != Form::kArguments) return;
  part_ = Part::kJson;
  if (!has_tool(*tools_, name_)) state_ = State::kNone;
}

void CallStream::read(std::string_view body) {
  while ((state_ == State::kWaiting || state_ == State::kOpen) && step(body)) continue;
}

// One step; false where nothing more can be decided.
bool CallStream::step(std::string_view body) {
  switch (part_) {
    case Part::kHead: {
      const Found found = form_ == Form::kJsonCall ? read_json_head(body) : read_bare_head(body);
      if (found == Found::kMaybe) return false;
      if (found == Found::kNo || !has_tool(*tools_, name_)) {
        state_ = State::kNone;
      } else {
        part_ = form_ == Form::kJsonCall ? Part::kJson : Part::kKey;
      }
      return true;
    }
    case Part::kJson:
      return read_json(body);
    case Part::kKey:
      return read_key(body);
    case Part::kText:
      return read_text(body);
    case Part::kOther:
      return read_other(body);
  }
  return false;
}

// What was told stands; what was not is read as a whole.
void CallStream::give_up() {
  if (state_ == State::kWaiting) {
    state_ = State::kNone;
    return;
  }
  if (form_ == Form::kJsonCall || form_ == Form::kArguments) {
    json_.close(arguments_);
    at_ = json_begin_ + json_.num_told();
  } else {
    arguments_ += in_text_ ? "\"}" : "}";
  }
  state_ = State::kBroken;
}

void CallStream::end() {
  if (state_ == State::kWaiting || state_ == State::kOpen) give_up();
}

// {"name": "NAME", "arguments": with the object's begin behind it.
CallStream::Found CallStream::read_json_head(std::string_view body) {
  size_t at = 0;
  const auto take = [&](std::string_view what) {
    at = skip_space(body, at);
    const std::string_view rest = body.substr(at);
    if (!may_begin(rest, what)) return Found::kNo;
    if (rest.size() < what.size()) return Found::kMaybe;
    at += what.size();
    return Found::kYes;
  };
  for (const std::string_view what : {"{", "\"name\"", ":", "\""}) {
    if (const Found found = take(what); found != Found::kYes) return found;
  }
  const size_t name_end = body.find_first_of("\"\\\n", at);
  if (name_end == std::string_view::npos) return Found::kMaybe;
  if (body[name_end] != '"') return Found::kNo;
  const std::string_view name = body.substr(at, name_end - at);
  at = name_end + 1;
  if (const Found found = take(","); found != Found::kYes) return found;
  const size_t before_key = at;
  Found found = take("\"arguments\"");
  if (found == Found::kNo) {
    at = before_key;
    found = take("\"parameters\"");
  }
  if (found != Found::kYes) return found;
  if (found = take(":"); found != Found::kYes) return found;
  at = skip_space(body, at);
  if (at == body.size()) return Found::kMaybe;
  if (body[at] != '{') return Found::kNo;
  name_ = name;
  at_ = json_begin_ = at;
  return Found::kYes;
}

CallStream::Found CallStream::read_bare_head(std::string_view body) {
  const size_t begin = skip_space(body, 0);
  const std::string_view text = body.substr(begin);
  if (form_ == Form::kQwenXml) {
    constexpr std::string_view kFunction = "<function=";
    if (!may_begin(text, kFunction)) return Found::kNo;
    const size_t end = text.find('>');
    if (end == std::string_view::npos) return Found::kMaybe;
    name_ = trimmed(text.substr(kFunction.size(), end - kFunction.size()));
    at_ = begin + end + 1;
    return Found::kYes;
  }
  const size_t end = text.find('<');
  if (end == std::string_view::npos) return Found::kMaybe;
  name_ = trimmed(text.substr(0, end));
  at_ = begin + end;
  return Found::kYes;
}

bool CallStream::read_json(std::string_view body) {
  at_ += json_.push(body.substr(at_), arguments_);
  if (json_.has_begun()) state_ = State::kOpen;
  if (json_.state() == JsonStream::State::kWhole) state_ = State::kWhole;
  if (json_.state() == JsonStream::State::kFailed) give_up();
  return false;
}

void CallStream::begin_argument() {
  arguments_ += arguments_.empty() ? "{" : ",";
  arguments_ += Json(key_).dump(-1, ' ', false, Json::error_handler_t::replace) + ":";
  keys_.insert(key_);
  state_ = State::kOpen;
}

// In front of an argument, or of the end.
bool CallStream::read_key(std::string_view body) {
  const Marks& marks = form_ == Form::kGlm ? kGlm : kXml;
  const size_t begin = skip_space(body, at_);
  const std::string_view rest = body.substr(begin);
  const auto refuse = [&] {
    at_ = begin;
    give_up();
    return false;
  };
  // The mark that ends the call is read by who has read the one that begins it.
  const bool is_over = rest.starts_with(kCallEnd) || rest.starts_with(marks.end);
  if (is_over && state_ == State::kOpen) {
    at_ = begin + (rest.starts_with(kCallEnd) ? 0 : marks.end.size());
    arguments_ += '}';
    state_ = State::kWhole;
    return false;
  }
  if (!rest.starts_with(marks.key_begin)) {
    const bool may_be = may_begin(rest, marks.key_begin) || may_begin(rest, marks.end) || may_begin(rest, kCallEnd);
    return may_be && !is_over ? false : refuse();
  }
  const size_t key_end = rest.find(marks.key_end, marks.key_begin.size());
  const bool has_end = key_end != std::string_view::npos;
  const std::string_view key =
      rest.substr(0, has_end ? key_end : partial_mark(rest, marks.key_end)).substr(marks.key_begin.size());
  if (key.find('<') != std::string_view::npos) return refuse();  // a mark is no part of a key
  if (!has_end) return false;
  if (trimmed(key).empty()) return refuse();
  size_t value = key_end + marks.key_end.size();
  if (!marks.value_begin.empty()) {
    value = skip_space(rest, value);
    if (!may_begin(rest.substr(value), marks.value_begin)) return refuse();
    if (rest.size() - value < marks.value_begin.size()) return false;
    value += marks.value_begin.size();
  }
  key_ = trimmed(key);
  key_begin_ = begin;
  at_ = begin + value;
  part_ = is_text_argument(*tools_, name_, key_) && !keys_.contains(key_) ? Part::kText : Part::kOther;
  at_text_ = true;
  return true;
}

// A string's characters, as far as they are known to be its own.
bool CallStream::read_text(std::string_view body) {
  const Marks& marks = form_ == Form::kGlm ? kGlm : kXml;
  const std::string_view rest = body.substr(at_);
  // The line ends next to XML's marks are theirs.
  if (form_ == Form::kQwenXml && at_text_) {
    if (rest.empty()) return false;
    at_text_ = false;
    if (rest[0] == '\n') ++at_;
    return true;
  }
  const size_t closed = rest.find(marks.value_end), over = rest.find(kCallEnd);
  const bool is_over = over < closed, is_closed = closed < over;
  std::string_view text =
      rest.substr(0, std::min({closed, over, partial_mark(rest, marks.value_end), partial_mark(rest, kCallEnd)}));
  // The function's end in front of the call's is none of the value's, which has lost its own.
  if (form_ == Form::kQwenXml && !is_closed) {
    const std::string_view before = text.substr(0, text.find_last_not_of(kSpace) + 1);
    if (before.ends_with(marks.end)) {
      text = before.substr(0, before.size() - marks.end.size());
    } else if (!is_over) {
      text = text.substr(0, partial_mark(text, marks.end));
    }
  }
  const size_t end = at_ + text.size();
  if (form_ == Form::kQwenXml && text.ends_with('\n')) text.remove_suffix(1);
  if (!in_text_ && text.empty() && is_over) {  // a value without an end
    at_ = key_begin_;
    give_up();
    return false;
  }
  if (!in_text_ && text.empty() && !is_closed) return false;
  if (!in_text_) {
    begin_argument();
    arguments_ += '"';
    in_text_ = true;
  }
  append_json_text(text, arguments_);
  if (is_over) {
    at_ = end;
    give_up();
    return false;
  }
  if (!is_closed) {
    at_ += text.size();
    return false;
  }
  arguments_ += '"';
  in_text_ = false;
  at_ = end + marks.value_end.size();
  part_ = Part::kKey;
  return true;
}

// A value that is no string is told when it is whole. What stands twice is told once.
bool CallStream::read_other(std::string_view body) {
  const Marks& marks = form_ == Form::kGlm ? kGlm : kXml;
  const std::string_view rest = body.substr(at_);
  const size_t closed = rest.find(marks.value_end), over = rest.find(kCallEnd);
  if (over < closed) {
    at_ = key_begin_;
    give_up();
    return false;
  }
  if (closed == std::string_view::npos) return false;
  std::string_view text = rest.substr(0, closed);
  if (form_ == Form::kQwenXml && text.starts_with('\n')) text.remove_prefix(1);
  if (form_ == Form::kQwenXml && text.ends_with('\n')) text.remove_suffix(1);
  if (!keys_.contains(key_)) {
    begin_argument();
    arguments_ += value_of_argument(*tools_, name_, key_, text).dump(-1, ' ', false, Json::error_handler_t::replace);
  }
  at_ += closed + marks.value_end.size();
  part_ = Part::kKey;
  return true;
}

}  // namespace foretoken
