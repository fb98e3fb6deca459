#include "tools/serve/chat_request.h"

#include <fmt/format.h>

#include "kernels/base/error.h"
#include "tools/serve/api_error.h"

namespace foretoken {

namespace {

using ToolUse = ChatRequest::ToolUse;

// Variables of the template that requests have as fields of their own too.
void parse_template_fields(const Fields& fields, ChatRequest& chat) {
  if (const Json* kwargs = fields.object("chat_template_kwargs")) chat.kwargs = *kwargs;
  if (const auto thinks = fields.boolean("enable_thinking")) chat.kwargs["enable_thinking"] = *thinks;
  chat.opens_answer = fields.boolean("add_generation_prompt").value_or(true);
  if (fields.boolean("continue_final_message").value_or(false)) {
    if (fields.has("add_generation_prompt") && chat.opens_answer)
      fields.fail("continue_final_message", "the final message is continued or an answer is begun, not both");
    chat.opens_answer = false;
    chat.continues_answer = true;
  }
}

void parse_effort(const Fields& fields, std::string_view name, ChatRequest& chat) {
  const auto effort = fields.text(name);
  if (!effort) return;
  if (*effort == "none") {
    chat.kwargs["enable_thinking"] = false;
  } else {
    chat.kwargs["reasoning_effort"] = *effort;
  }
}

void check_final_message(const Fields& fields, const ChatRequest& chat) {
  if (chat.continues_answer && chat.messages.back()["role"] != "assistant")
    fields.fail("continue_final_message", "the last message is not the assistant's");
}

void force(const Fields& fields, ChatRequest& chat, const std::string& tool) {
  chat.tool_use = ToolUse::kRequired;
  chat.forced_tool = tool;
  if (chat.tools.empty()) fields.fail("tool_choice", "there are no tools to be called");
  for (const Json& known : chat.tools) {
    if (tool.empty() || known["function"]["name"] == tool) return;
  }
  fields.fail("tool_choice", fmt::format("there is no tool \"{}\"", tool));
}

void parse_tool_word(const Fields& fields, const std::string& choice, ChatRequest& chat) {
  if (choice == "none") {
    chat.tool_use = ToolUse::kNone;
  } else if (choice == "required" || choice == "any") {
    force(fields, chat, "");
  } else if (choice != "auto") {
    fields.fail("tool_choice", fmt::format("\"{}\" is none of auto, none, required, and no tool", choice));
  }
}

// OpenAI's: a word, or {"type": "function", "function": {"name"}}; Responses have the name beside the type.
void parse_tool_choice(const Fields& fields, ChatRequest& chat) {
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return;
  if (choice->is_string()) {
    parse_tool_word(fields, choice->get<std::string>(), chat);
    return;
  }
  if (!choice->is_object()) fields.fail("tool_choice", "expected a word or an object");
  const Fields inner(*choice, "tool_choice");
  const std::string type = inner.text("type").value_or("function");
  if (type != "function") throw not_supported(fmt::format("\"tool_choice.type\": \"{}\" is not served here", type));
  const Json* function = inner.object("function");
  const auto name = (function == nullptr ? inner : Fields(*function, "tool_choice.function")).text("name");
  if (!name || name->empty()) inner.fail("function.name", "is missing");
  force(fields, chat, *name);
}

Json parse_flat_tools(const Fields& fields, const char* type_name, const char* schema_name) {
  Json tools = Json::array();
  const Json* given = fields.array("tools");
  for (size_t i = 0; given != nullptr && i < given->size(); ++i) {
    const Fields tool((*given)[i], fmt::format("tools[{}]", i));
    const std::string type = tool.text("type").value_or(type_name);
    if (type != type_name) throw not_supported(fmt::format("\"tools[{}].type\": \"{}\" is not served here", i, type));
    Json function = {{"name", tool.text("name").value_or("")}};
    if (const auto description = tool.text("description")) function["description"] = *description;
    if (const Json* schema = tool.object(schema_name)) function["parameters"] = *schema;
    tools.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return check_tools(tools);
}

// ---- Anthropic ----

/// A content block's text for a template. What a tool has returned may itself be blocks.
void add_block(const Json& block, const std::string& name, Json& message, Json& tool_results) {
  const Fields fields(block, name);
  const std::string type = fields.text("type").value_or("");
  if (type == "text") {
    message["content"].get_ref<std::string&>() += fields.text("text").value_or("");
  } else if (type == "thinking") {
    const std::string before = message.value("reasoning_content", "");
    message["reasoning_content"] = before + fields.text("thinking").value_or("");
  } else if (type == "tool_use") {
    const Json* input = fields.object("input");
    message["tool_calls"].push_back(
        {{"id", fields.text("id").value_or("")},
         {"type", "function"},
         {"function",
          {{"name", fields.text("name").value_or("")}, {"arguments", input == nullptr ? Json::object() : *input}}}});
  } else if (type == "tool_result") {
    const Json* content = fields.find("content");
    tool_results.push_back({{"role", "tool"},
                            {"tool_call_id", fields.text("tool_use_id").value_or("")},
                            {"content", content == nullptr ? "" : text_of_content(*content, name + ".content")}});
  } else if (type != "redacted_thinking") {
    throw not_supported(fmt::format("\"{}\": content of type \"{}\" is not served here", name, type));
  }
}

void add_message(const Json& message, const std::string& name, Json& messages) {
  const Fields fields(message, name);
  const std::string role = fields.text("role").value_or("");
  if (role != "user" && role != "assistant")
    fields.fail("role", fmt::format("\"{}\" is none of user, assistant", role));
  const Json* content = fields.find("content");
  if (content == nullptr) fields.fail("content", "is missing");
  Json turn = {{"role", role}, {"content", ""}};
  Json tool_results = Json::array();
  if (content->is_string()) {
    turn["content"] = *content;
  } else if (content->is_array()) {
    for (size_t i = 0; i < content->size(); ++i)
      add_block((*content)[i], fmt::format("{}.content[{}]", name, i), turn, tool_results);
  } else {
    fields.fail("content", "expected a string or an array of blocks");
  }
  // Results are turns of their own, before what the user says to them.
  const bool says_nothing =
      turn["content"] == "" && !turn.contains("tool_calls") && !turn.contains("reasoning_content");
  const bool has_results = !tool_results.empty();
  for (Json& result : tool_results) messages.push_back(std::move(result));
  if (!says_nothing || !has_results) messages.push_back(std::move(turn));
}

void parse_anthropic_tool_choice(const Fields& fields, ChatRequest& chat) {
  const Json* choice = fields.object("tool_choice");
  if (choice == nullptr) return;
  const Fields inner(*choice, "tool_choice");
  chat.parallel_calls = !inner.boolean("disable_parallel_tool_use").value_or(false);
  const std::string type = inner.text("type").value_or("auto");
  if (type != "tool") {
    parse_tool_word(fields, type, chat);
    return;
  }
  const auto name = inner.text("name");
  if (!name || name->empty()) inner.fail("name", "is missing");
  force(fields, chat, *name);
}

// ---- Responses ----

/// The assistant's last message, to which a further item of the same turn belongs; a new one otherwise.
Json& assistant_turn(Json& messages) {
  if (messages.empty() || messages.back()["role"] != "assistant")
    messages.push_back({{"role", "assistant"}, {"content", ""}});
  return messages.back();
}

std::string text_of_reasoning(const Fields& fields) {
  std::string text;
  for (const char* name : {"content", "summary"}) {
    const Json* parts = fields.array(name);
    for (size_t i = 0; parts != nullptr && i < parts->size(); ++i)
      text += Fields((*parts)[i], fmt::format("{}[{}]", fields.named(name), i)).text("text").value_or("");
    if (!text.empty()) break;
  }
  return text;
}

void add_item(const Json& item, const std::string& name, Json& messages) {
  const Fields fields(item, name);
  const std::string type = fields.text("type").value_or("message");
  if (type == "message") {
    const std::string role = fields.text("role").value_or("");
    const Json* content = fields.find("content");
    const std::string text = content == nullptr ? "" : text_of_content(*content, name + ".content");
    // After its thoughts the assistant's text is of the same turn.
    if (role == "assistant" && !messages.empty() && messages.back()["role"] == "assistant" &&
        messages.back()["content"] == "" && !messages.back().contains("tool_calls")) {
      messages.back()["content"] = text;
    } else {
      messages.push_back({{"role", role}, {"content", text}});
    }
  } else if (type == "function_call") {
    assistant_turn(messages)["tool_calls"].push_back(
        {{"id", fields.text("call_id").value_or("")},
         {"type", "function"},
         {"function",
          {{"name", fields.text("name").value_or("")}, {"arguments", fields.text("arguments").value_or("{}")}}}});
  } else if (type == "function_call_output") {
    const Json* output = fields.find("output");
    messages.push_back({{"role", "tool"},
                        {"tool_call_id", fields.text("call_id").value_or("")},
                        {"content", output == nullptr ? "" : text_of_content(*output, name + ".output")}});
  } else if (type == "reasoning") {
    if (const std::string text = text_of_reasoning(fields); !text.empty())
      messages.push_back({{"role", "assistant"}, {"content", ""}, {"reasoning_content", text}});
  } else {
    throw not_supported(fmt::format("\"{}\": an item of type \"{}\" is not served here", name, type));
  }
}

}  // namespace

Json check_tools(const Json& tools) {
  if (!tools.is_array()) throw invalid_request("\"tools\": expected an array");
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string name = fmt::format("tools[{}]", i);
    const Fields tool(tools[i], name);
    const std::string type = tool.text("type").value_or("function");
    if (type != "function") throw not_supported(fmt::format("\"{}.type\": \"{}\" is not served here", name, type));
    const Json* function = tool.object("function");
    if (function == nullptr) tool.fail("function", "is missing");
    const Fields inner(*function, name + ".function");
    const std::string called = inner.text("name").value_or("");
    if (called.empty()) inner.fail("name", "is missing");
    if (called.size() > 256 || called.find_first_of("<>{}\"\\ \t\r\n") != std::string::npos)
      inner.fail("name", "a name has no blanks, quotes or brackets, and 256 bytes at most");
    (void)inner.text("description");
    (void)inner.object("parameters");
  }
  return tools;
}

ChatRequest parse_openai_chat(const Fields& fields, const ChatDefaults& defaults) {
  ChatRequest chat;
  for (const char* name : {"functions", "function_call"}) {
    if (fields.has(name)) throw not_supported(fmt::format("\"{}\" is not served here; \"tools\" is", name));
  }
  parse_template_fields(fields, chat);
  parse_effort(fields, "reasoning_effort", chat);
  chat.parse_reasoning = defaults.parse_reasoning;
  if (const auto format = fields.text("reasoning_format")) {
    if (*format != "none" && *format != "auto" && *format != "deepseek")
      fields.fail("reasoning_format", fmt::format("\"{}\" is none of none, auto, deepseek", *format));
    chat.parse_reasoning = *format != "none";
  }
  const Json* messages = fields.find("messages");
  if (messages == nullptr) throw invalid_request("\"messages\" is missing");
  chat.messages = check_messages(*messages);
  check_final_message(fields, chat);
  if (const Json* tools = fields.array("tools")) chat.tools = check_tools(*tools);
  parse_tool_choice(fields, chat);
  chat.parallel_calls = fields.boolean("parallel_tool_calls").value_or(true);
  return chat;
}

ChatRequest parse_anthropic_chat(const Fields& fields, const ChatDefaults& defaults) {
  ChatRequest chat;
  parse_template_fields(fields, chat);
  chat.parse_reasoning = defaults.parse_reasoning;
  if (const Json* thinking = fields.object("thinking")) {
    const Fields inner(*thinking, "thinking");
    const std::string type = inner.text("type").value_or("");
    if (type != "enabled" && type != "disabled" && type != "adaptive")
      inner.fail("type", fmt::format("\"{}\" is none of enabled, disabled, adaptive", type));
    (void)inner.integer("budget_tokens", 0, INT32_MAX);
    chat.kwargs["enable_thinking"] = type != "disabled";
  }
  Json messages = Json::array();
  if (const Json* system = fields.find("system"); system != nullptr)
    messages.push_back({{"role", "system"}, {"content", text_of_content(*system, "system")}});
  const Json* given = fields.array("messages");
  if (given == nullptr || given->empty()) fields.fail("messages", "expected an array of messages");
  for (size_t i = 0; i < given->size(); ++i) add_message((*given)[i], fmt::format("messages[{}]", i), messages);
  chat.messages = check_messages(messages);
  // A last message of the assistant's is the beginning of its answer, as this API has it.
  const Json& last = chat.messages.back();
  if (last["role"] == "assistant" && !last.contains("tool_calls") && last["content"] != "") {
    chat.opens_answer = false;
    chat.continues_answer = true;
  }
  check_final_message(fields, chat);
  chat.tools = parse_flat_tools(fields, "custom", "input_schema");
  parse_anthropic_tool_choice(fields, chat);
  return chat;
}

ChatRequest parse_responses_chat(const Fields& fields, const ChatDefaults& defaults) {
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (fields.has(name)) throw not_supported(fmt::format("\"{}\" is not served here: nothing is stored", name));
  }
  if (fields.boolean("background").value_or(false)) throw not_supported("\"background\" is not served here");
  ChatRequest chat;
  parse_template_fields(fields, chat);
  chat.parse_reasoning = defaults.parse_reasoning;
  if (const Json* reasoning = fields.object("reasoning")) parse_effort(Fields(*reasoning, "reasoning"), "effort", chat);
  Json messages = Json::array();
  if (const auto instructions = fields.text("instructions"))
    messages.push_back({{"role", "system"}, {"content", *instructions}});
  const Json* input = fields.find("input");
  if (input == nullptr) fields.fail("input", "is missing");
  if (input->is_string()) {
    messages.push_back({{"role", "user"}, {"content", *input}});
  } else if (input->is_array()) {
    for (size_t i = 0; i < input->size(); ++i) add_item((*input)[i], fmt::format("input[{}]", i), messages);
  } else {
    fields.fail("input", "expected a string or an array of items");
  }
  chat.messages = check_messages(messages);
  check_final_message(fields, chat);
  chat.tools = parse_flat_tools(fields, "function", "parameters");
  parse_tool_choice(fields, chat);
  chat.parallel_calls = fields.boolean("parallel_tool_calls").value_or(true);
  return chat;
}

GenerationRequest parse_chat_generation(const Fields& fields, const ServedModel& served, const ChatPrompts& prompts,
                                        const ChatRequest& chat) {
  GenerationRequest request = parse_generation(fields, served);
  const std::vector<TextPart> parts = prompts.render(chat);
  const ThoughtBefore thought = prompts.thought_before(chat, parts);
  request.prompts = {prompts.encode(parts)};

  std::optional<RequestGrammar> grammar = parse_request_grammar(fields);
  // The client's own grammar is of the whole answer; a schema is of its content.
  if (grammar && grammar->is_schema()) grammar->gbnf = content_gbnf(prompts.form(), grammar->gbnf, thought);
  if (chat.tool_use == ToolUse::kRequired) {
    if (grammar)
      fields.fail("tool_choice", fmt::format("a call is required, and \"{}\" asks for another text", grammar->field));
    try {
      grammar = RequestGrammar{
          "tool_choice", tool_call_gbnf(prompts.form(), chat.tools, chat.forced_tool, chat.parallel_calls, thought)};
    } catch (const InputError& error) {
      fields.fail("tool_choice", error.what());
    }
  }
  if (grammar) {
    const bool has_marks = grammar->is_schema();
    request.rules.grammar = make_matcher(
        fields, *grammar, served.trie->get(prompts.tokenizer(), has_marks ? served.marks : std::span<const TokenId>()));
  }

  AnswerParser::Options parsing;
  parsing.form = prompts.form();
  parsing.in_thought = thought == ThoughtBefore::kOpened;
  parsing.parse_reasoning = chat.parse_reasoning;
  parsing.parse_calls = !chat.tools.empty() && chat.tool_use != ToolUse::kNone;
  parsing.most_calls = chat.parallel_calls ? 0 : 1;
  parsing.tools = chat.tools;
  request.parsing = std::move(parsing);
  return request;
}

}  // namespace foretoken
