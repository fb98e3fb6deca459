#include <fmt/format.h>

#include <algorithm>

#include "engine/text/chat/answer_parser.h"
#include "engine/text/grammar/grammar.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

std::string literal(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out + "\"";
}

// A rule for texts without "</" and the next two letters of a closing mark.
std::string text_rule(const std::string& name, char first, char second) {
  const std::string mark = name + "-mark";
  return fmt::format(
      "{0} ::= ([^<] | {1})*\n{1} ::= \"<\" ([^/<] | \"/\" [^{2}<] | \"/{2}\" [^{3}<] | {1} | \"/\" {1} | \"/{2}\" "
      "{1})\n",
      name, mark, first, second);
}

// A grammar whose rules have their names behind `prefix`.
std::string with_prefix(const std::string& gbnf, const std::string& prefix) {
  std::string renamed;
  // Names stand where no string or class does.
  bool in_string = false, in_class = false;
  for (size_t i = 0; i < gbnf.size(); ++i) {
    const char c = gbnf[i];
    const auto is_name = [](char x) { return (x >= 'a' && x <= 'z') || (x >= '0' && x <= '9') || x == '-'; };
    if ((in_string || in_class) && c == '\\') {
      renamed += gbnf.substr(i, 2);
      ++i;
      continue;
    }
    if (!in_class && c == '"') in_string = !in_string;
    if (!in_string && (c == '[' || c == ']')) in_class = c == '[';
    const bool starts = !in_string && !in_class && c >= 'a' && c <= 'z' && (i == 0 || !is_name(gbnf[i - 1]));
    if (starts) renamed += prefix;
    renamed += c;
  }
  return renamed;
}

// What may stand before an answer that a grammar rules, as the beginning of its root rule; the rules it needs.
std::string thought_before(AnswerForm form, ThoughtBefore thought, std::string& rules) {
  if (thought == ThoughtBefore::kNone) return {};
  if (form == AnswerForm::kHarmony) {
    rules += "thought-text ::= ([^<] | \"<\"+ [^<|])*\n";
    return "(\"<|channel|>analysis<|message|>\" thought-text \"<|end|><|start|>assistant\")? ";
  }
  rules += text_rule("thought-text", 't', 'h');
  const std::string rest = "thought-text \"</think>\" \"\\n\"{0,2}";
  return thought == ThoughtBefore::kOpened ? rest + " " : "(\"<think>\" " + rest + ")? ";
}

struct Tool {
  std::string name;
  Json parameters;
};

std::vector<Tool> tools_named(const Json& tools, std::string_view wanted) {
  std::vector<Tool> out;
  for (const Json& entry : tools.is_array() ? tools : Json::array()) {
    const Json& function = entry.is_object() && entry.contains("function") ? entry["function"] : entry;
    if (!function.is_object() || !function.contains("name") || !function["name"].is_string())
      throw InputError("tools: a tool has no name");
    Tool tool{function["name"].get<std::string>(), Json{{"type", "object"}}};
    for (const char* key : {"parameters", "input_schema"}) {
      if (function.contains(key) && !function[key].is_null()) tool.parameters = function[key];
    }
    // Arguments are an object, whatever else their schema leaves open.
    if (tool.parameters.is_object() && tool.parameters.empty()) tool.parameters = Json{{"type", "object"}};
    if (wanted.empty() || tool.name == wanted) out.push_back(std::move(tool));
  }
  if (out.empty())
    throw InputError(wanted.empty() ? "tools: there are none to be called"
                                    : fmt::format("tools: there is no tool \"{}\"", printable(wanted)));
  return out;
}

// A call as bare text: the marks around each argument, in the order of the schema.
struct Marks {
  std::string begin, key_begin, key_end, value_end, end;
};

std::string bare_call(const Tool& tool, size_t index, const Marks& marks, std::string& rules) {
  const Json properties = tool.parameters.is_object() && tool.parameters.contains("properties")
                              ? tool.parameters["properties"]
                              : Json::object();
  std::string out = literal(fmt::format(fmt::runtime(marks.begin), tool.name));
  size_t number = 0;
  for (const auto& [key, schema] : properties.items()) {
    std::string value = "bare-text";
    if (!(schema.is_object() && schema.contains("type") && schema["type"] == "string" && !schema.contains("enum"))) {
      // Its own rules, under names of their own; references are looked up from the tool's whole schema.
      Json own = schema;
      for (const char* definitions : {"$defs", "definitions"}) {
        if (own.is_object() && tool.parameters.contains(definitions)) own[definitions] = tool.parameters[definitions];
      }
      const std::string prefix = fmt::format("t{}-{}-", index, number);
      const bool is_text =
          schema.is_object() && schema.contains("enum") && schema.contains("type") && schema["type"] == "string";
      if (is_text) {
        value.clear();
        for (const Json& one : schema["enum"]) {
          if (one.is_string()) value += (value.empty() ? "(" : " | ") + literal(one.get<std::string>());
        }
        value += ")";
      } else {
        rules += with_prefix(json_schema_to_gbnf(own), prefix);
        value = prefix + "root";
      }
    }
    ++number;
    const bool required = tool.parameters.contains("required") && tool.parameters["required"].is_array() &&
                          std::find(tool.parameters["required"].begin(), tool.parameters["required"].end(), key) !=
                              tool.parameters["required"].end();
    const std::string one =
        fmt::format("{} {} {}", literal(marks.key_begin + key + marks.key_end), value, literal(marks.value_end));
    out += required ? " " + one : " (" + one + ")?";
  }
  return out + " " + literal(marks.end);
}

}  // namespace

std::string tool_call_gbnf(AnswerForm form, const Json& tools, std::string_view tool_name, bool several,
                           ThoughtBefore thought) {
  const std::vector<Tool> wanted = tools_named(tools, tool_name);
  std::string rules, call;
  if (form == AnswerForm::kHermes) {
    Json any = Json::array();
    for (const Tool& tool : wanted) {
      // References within a tool's schema begin at its root.
      if (tool.parameters.dump().find("\"$ref\"") != std::string::npos)
        throw InputError(fmt::format("tools: \"$ref\" in the schema of \"{}\" is not supported where a call is forced",
                                     printable(tool.name)));
      any.push_back({{"type", "object"},
                     {"properties", {{"name", {{"const", tool.name}}}, {"arguments", tool.parameters}}},
                     {"required", {"name", "arguments"}},
                     {"additionalProperties", false}});
    }
    rules = with_prefix(json_schema_to_gbnf(Json{{"anyOf", any}}), "t-");
    call = "\"<tool_call>\\n\" t-root \"\\n</tool_call>\"";
  } else if (form == AnswerForm::kQwenXml || form == AnswerForm::kGlm) {
    const Marks xml{"<tool_call>\n<function={}>\n", "<parameter=", ">\n", "\n</parameter>\n",
                    "</function>\n</tool_call>"};
    const Marks glm{"<tool_call>{}\n", "<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"};
    for (size_t i = 0; i < wanted.size(); ++i)
      call += (i == 0 ? "" : " | ") + bare_call(wanted[i], i, form == AnswerForm::kGlm ? glm : xml, rules);
    rules += form == AnswerForm::kGlm ? text_rule("bare-text", 'a', 'r') : text_rule("bare-text", 'p', 'a');
  } else if (form == AnswerForm::kHarmony) {
    for (size_t i = 0; i < wanted.size(); ++i) {
      const std::string prefix = fmt::format("t{}-", i);
      call += (i == 0 ? "" : " | ") + literal(fmt::format("{} <|constrain|>json<|message|>", wanted[i].name)) + " " +
              prefix + "root";
      rules += with_prefix(json_schema_to_gbnf(wanted[i].parameters), prefix);
    }
    call = literal("<|channel|>commentary to=functions.") + " (" + call + ")";
    several = false;
  } else {
    throw InputError("tools: this model's chat template has no form of calls that can be forced");
  }
  const std::string before = thought_before(form, thought, rules);
  return fmt::format("root ::= {}{}\ncall ::= {}\n{}\n", before, several ? "call (\"\\n\" call)*" : "call", call,
                     rules);
}

std::string content_gbnf(AnswerForm form, std::string_view content_gbnf, ThoughtBefore thought) {
  std::string rules = with_prefix(std::string(content_gbnf), "content-");
  const std::string before = thought_before(form, thought, rules);
  const char* mark = form == AnswerForm::kHarmony ? "\"<|channel|>final<|message|>\" " : "";
  return fmt::format("root ::= {}{}content-root\n{}\n", before, mark, rules);
}

}  // namespace foretoken
