#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>

#include "engine/text/chat/json_stream.h"

namespace foretoken {

/// The name and arguments of one call of a tool, told while the model writes it. Told is a call of a tool that is known
/// by its name, from where the first of its arguments has a value on; whatever comes then, what was told can be ended as
/// valid JSON. Everything else (other orders of members, tools that nobody knows) is left to be read as a whole.
///
/// What is told depends on the text alone and not on how it was cut into pieces.
class CallStream {
 public:
  enum class Form {
    kJsonCall,   // {"name": "NAME", "arguments": {...}}
    kArguments,  // {...}, with the name known
    kQwenXml,    // <function=NAME><parameter=KEY>value</parameter>...</function>
    kGlm         // NAME<arg_key>KEY</arg_key><arg_value>value</arg_value>...
  };
  enum class State {
    kWaiting,  // not known yet
    kNone,     // nothing that can be told as it comes
    kOpen,     // name() and the beginning of arguments() are certain
    kWhole,    // and the rest of them too
    kBroken    // what followed does not go on with them; they have been ended
  };

  /// `tools`: as requests have them. `name`: the tool of kArguments.
  CallStream(Form form, std::shared_ptr<const nlohmann::ordered_json> tools, std::string name = {});

  /// Reads on in the call's text, which begins behind its opening mark. `body` is what was there before, and more.
  void read(std::string_view body);
  /// No more comes: what is open is ended.
  void end();

  [[nodiscard]] Form form() const { return form_; }
  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool is_told() const {
    return state_ == State::kOpen || state_ == State::kWhole || state_ == State::kBroken;
  }
  [[nodiscard]] const std::string& name() const { return name_; }
  /// JSON, as far as it is certain; whole in kWhole and kBroken.
  [[nodiscard]] const std::string& arguments() const { return arguments_; }
  /// Bytes of the body up to where they end, or break.
  [[nodiscard]] size_t num_read() const { return at_; }

 private:
  enum class Part { kHead, kJson, kKey, kText, kOther };
  enum class Found { kNo, kMaybe, kYes };

  bool step(std::string_view body);
  void give_up();
  [[nodiscard]] Found read_json_head(std::string_view body);
  [[nodiscard]] Found read_bare_head(std::string_view body);
  bool read_json(std::string_view body);
  bool read_key(std::string_view body);
  bool read_text(std::string_view body);
  bool read_other(std::string_view body);
  void begin_argument();

  Form form_;
  std::shared_ptr<const nlohmann::ordered_json> tools_;
  State state_ = State::kWaiting;
  Part part_ = Part::kHead;
  std::string name_, arguments_;
  size_t at_ = 0;
  size_t json_begin_ = 0, key_begin_ = 0;  // of the arguments, of the argument
  JsonStream json_;
  // Of bare text:
  std::string key_;
  std::set<std::string> keys_;  // that have been told
  bool at_text_ = false;        // in front of a string's first character
  bool in_text_ = false;        // a string is open
};

/// Whether one of the tools has this name.
[[nodiscard]] bool has_tool(const nlohmann::ordered_json& tools, std::string_view name);

/// Whether the argument stands as bare text and is a string: its schema says so, or says nothing.
[[nodiscard]] bool is_text_argument(const nlohmann::ordered_json& tools, std::string_view tool, const std::string& key);

/// The value of an argument that stands as bare text: JSON where its schema asks for something else than a string and it
/// is JSON, else the text.
[[nodiscard]] nlohmann::ordered_json value_of_argument(const nlohmann::ordered_json& tools, std::string_view tool,
                                                       const std::string& key, std::string_view text);

}  // namespace foretoken
