#pragma once

#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/chat/call_stream.h"

namespace foretoken {

/// How a model writes thoughts and calls of tools into its text.
///
///   kPlain    thoughts between <think> and </think>, no calls
///   kHermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen2.5, Qwen3
///   kQwenXml  <tool_call><function=NAME><parameter=KEY>value</parameter></function></tool_call>: Qwen3-Coder, Qwen3.5;
///             JSON as in kHermes is taken too
///   kGlm      <tool_call>NAME<arg_key>KEY</arg_key><arg_value>value</arg_value></tool_call>: GLM-4.5
///   kHarmony  <|channel|>NAME to=functions.NAME<|message|>...<|end|>: gpt-oss
enum class AnswerForm { kPlain, kHermes, kQwenXml, kGlm, kHarmony };

/// The form that a chat template teaches its model, from the marks in its source.
[[nodiscard]] AnswerForm detect_answer_form(std::string_view template_source);

/// The marks that an answer's form is made of, control tokens of many models: what AnswerParser has to see spelled out.
[[nodiscard]] std::span<const std::string_view> answer_marks(AnswerForm form);

/// Whether a rendered prompt ends within a thought: the template has opened <think> itself.
[[nodiscard]] bool prompt_opens_thought(std::string_view prompt);

/// What has become known of an answer.
struct AnswerDelta {
  struct Call {
    int index = 0;  // of the answer's calls
    std::string name;
    std::string arguments;  // what comes behind those that earlier deltas of this call had; JSON in all
  };
  std::string content, reasoning;
  std::vector<Call> calls;

  [[nodiscard]] bool empty() const { return content.empty() && reasoning.empty() && calls.empty(); }
};

/// Splits the text of an answer, as it is made, into content, thoughts and calls. However the text is cut into pieces,
/// the deltas come to the same. Marks that may be beginning are held back until it is known. A call of one of the tools
/// comes as it is written (CallStream), any other when it is whole; in all its arguments are valid JSON, of a call that
/// breaks off or goes wrong as far as they came. What looks like a call and is none stays content.
///
/// Feed it the text with special tokens spelled out (Tokenizer::piece(id, true)), but for those that end the answer.
/// White space around thoughts and calls is not part of the content.
class AnswerParser {
 public:
  struct Options {
    AnswerForm form = AnswerForm::kPlain;
    bool in_thought = false;       // prompt_opens_thought()
    bool parse_reasoning = true;   // false: thoughts stay in the content, with their marks
    bool parse_calls = true;       // false: calls stay in the content
    int most_calls = 0;            // what follows so many calls is dropped; 0: nothing is
    nlohmann::ordered_json tools;  // as requests have them: says which values are strings where a form does not
  };
  explicit AnswerParser(Options options);

  [[nodiscard]] AnswerDelta push(std::string_view text);
  /// What was held back. The text is over.
  [[nodiscard]] AnswerDelta finish();

 private:
  enum class State { kStart, kThought, kContent, kCall, kCallTail, kHeader, kMessage };

  [[nodiscard]] bool is_done() const { return options_.most_calls > 0 && num_calls_ >= options_.most_calls; }
  void run(AnswerDelta& delta, bool is_end);
  bool run_tagged(AnswerDelta& delta, bool is_end);
  bool run_harmony(AnswerDelta& delta, bool is_end);
  // Hands on text of the buffer up to a mark that may begin at its end.
  bool pass_until(std::string_view mark, bool is_end, std::string& out);
  void add_content(AnswerDelta& delta, std::string_view text);
  void add_reasoning(AnswerDelta& delta, std::string_view text);
  bool run_call(AnswerDelta& delta, bool is_end);
  bool run_call_tail(bool is_end);
  // Tells what has become certain of the call that is being read; false: it has to be read as a whole.
  bool tell_call(AnswerDelta& delta);
  void begin_part(State state);
  [[nodiscard]] size_t call_end() const;
  bool add_call(AnswerDelta& delta, std::string_view body);
  bool add_call(AnswerDelta& delta, const std::string& name, const nlohmann::ordered_json& arguments);
  bool parse_json_call(AnswerDelta& delta, std::string_view body);
  bool parse_xml_call(AnswerDelta& delta, std::string_view body);
  bool parse_glm_call(AnswerDelta& delta, std::string_view body);

  Options options_;
  State state_ = State::kStart;
  std::string buffer_;    // not decided yet
  std::string blanks_;    // white space of the current part that is handed on only if text follows
  bool at_begin_ = true;  // of the current part: white space here goes
  int num_calls_ = 0;
  std::shared_ptr<const nlohmann::ordered_json> tools_;
  std::optional<CallStream> call_;   // in kCall, and in a harmony message that is one
  size_t num_told_ = 0;              // of its arguments
  bool needs_brace_ = false;         // in kCallTail: the object around the arguments is open
  std::string channel_, recipient_;  // of a harmony message
};

/// Whether an answer under a grammar has a thought in front, which the grammar leaves free.
enum class ThoughtBefore {
  kNone,
  kOpened,  // the prompt has opened it
  kMayOpen  // the model may open one itself
};

/// A grammar (GBNF) of an answer that calls tools: `tool_name`, or any where it is empty; once, or with `several` once or
/// more (harmony: once, its calls end the answer). Throws InputError for a form without calls, a tool that is not there,
/// and schemas that are not supported.
[[nodiscard]] std::string tool_call_gbnf(AnswerForm form, const nlohmann::ordered_json& tools,
                                         std::string_view tool_name, bool several, ThoughtBefore thought);

/// A grammar (GBNF) of an answer whose content is one of `content_gbnf`, in the marks of the form.
[[nodiscard]] std::string content_gbnf(AnswerForm form, std::string_view content_gbnf, ThoughtBefore thought);

}  // namespace foretoken
