#include <catch2/catch.hpp>
#include <sstream>

#include "tests/tools/subprocess.h"
#include "tools/serve/anthropic.h"
#include "tools/serve/openai_format.h"
#include "tools/serve/responses.h"

namespace foretoken::test {
namespace {

const char* const kTools = R"([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}])";

/// One answer that says `text`, in pieces, as one of the formats puts it.
class Told {
 public:
  Told(AnswerForm form, std::string text, size_t piece, bool in_thought = false, bool is_cut = false)
      : text_(std::move(text)), piece_(piece), is_cut_(is_cut) {
    static const Model model = Model::load(kDemoModel, {});
    served_.model = &model;
    served_.tokenizer = &model.tokenizer();
    served_.name = "m";
    request_.prompts = {{1, 2, 3}};
    AnswerParser::Options parsing;
    parsing.form = form;
    parsing.in_thought = in_thought;
    parsing.tools = Json::parse(kTools);
    request_.parsing = parsing;
  }

  template <class Format>
  Json whole() {
    Format format(served_, request_);
    AnswerRecord record(*request_.parsing);
    run(record, [](const AnswerEvent&) {});
    return format.whole(one(std::move(record)));
  }

  /// The events' data.
  template <class Format>
  std::vector<Json> stream() {
    Format format(served_, request_);
    AnswerRecord record(*request_.parsing);
    std::string sent = format.begin();
    run(record, [&](const AnswerEvent& event) {
      sent += event.kind == AnswerEvent::Kind::kEnd ? format.end_of(record, event) : format.token(record, event);
    });
    sent += format.end(one(std::move(record)));
    std::vector<Json> events;
    std::istringstream lines(sent);
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("data: {")) events.push_back(Json::parse(line.substr(6)));
    }
    return events;
  }

 private:
  static std::vector<AnswerRecord> one(AnswerRecord record) {
    std::vector<AnswerRecord> records;
    records.push_back(std::move(record));
    return records;
  }

  template <class On>
  void run(AnswerRecord& record, const On& on) {
    for (size_t at = 0; at < text_.size(); at += piece_) {
      AnswerEvent event;
      event.prompt_tokens = 3;
      event.text = text_.substr(at, piece_);
      record.add(event);
      on(event);
    }
    AnswerEvent event;
    event.kind = AnswerEvent::Kind::kEnd;
    AnswerEnd end;
    end.reason = is_cut_ ? StopReason::kLength : StopReason::kEndOfGeneration;
    end.prompt_tokens = 3;
    event.end = std::make_shared<const AnswerEnd>(end);
    record.add(event);
    on(event);
  }

  const std::string text_;
  const size_t piece_;
  const bool is_cut_;
  ServedModel served_;
  GenerationRequest request_;
};

/// "thought|text|name{arguments}..." of a chat's answer.
std::string told(const Json& message) {
  std::string out = message.value("reasoning_content", "") + "|";
  if (!message["content"].is_null()) out += message["content"].get<std::string>();
  out += "|";
  for (const Json& call : message.value("tool_calls", Json::array())) {
    CHECK(call["type"] == "function");
    CHECK(call["id"].get<std::string>().starts_with("call_"));
    const std::string arguments = call["function"]["arguments"];
    CHECK(Json::parse(arguments).is_object());
    out += call["function"]["name"].get<std::string>() + arguments;
  }
  return out;
}

/// The message that a client makes of the deltas.
Json gather(const std::vector<Json>& chunks, std::string& finish_reason, int& argument_deltas) {
  Json message = {{"content", nullptr}};
  argument_deltas = 0;
  for (const Json& chunk : chunks) {
    if (chunk["choices"].empty()) continue;
    const Json& choice = chunk["choices"][0];
    if (!choice["finish_reason"].is_null()) finish_reason = choice["finish_reason"];
    const Json& delta = choice["delta"];
    for (const char* name : {"content", "reasoning_content"}) {
      if (!delta.contains(name) || delta[name].is_null()) continue;
      if (!message.contains(name) || message[name].is_null()) message[name] = "";
      message[name].get_ref<std::string&>() += delta[name].get<std::string>();
    }
    for (const Json& call : delta.value("tool_calls", Json::array())) {
      const auto index = call["index"].get<size_t>();
      Json& calls = message["tool_calls"];
      if (call.contains("id")) {
        CHECK(index == calls.size());
        CHECK(call["function"]["arguments"] == "");
        calls.push_back(call);
      } else {
        ++argument_deltas;
        calls.at(index)["function"]["arguments"].get_ref<std::string&>() +=
            call["function"]["arguments"].get<std::string>();
      }
    }
  }
  return message;
}

struct Case {
  AnswerForm form;
  std::string text;
  bool in_thought;
  std::string told;
  std::string finish_reason;
};

std::vector<Case> cases() {
  const std::string json =
      "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern\", \"days\": 2}}\n</tool_call>";
  const std::string call = R"(weather{"city":"Bern","days":2})";
  return {
      {AnswerForm::kPlain, "Hello", false, "|Hello|", "stop"},
      {AnswerForm::kPlain, "", false, "||", "stop"},
      {AnswerForm::kPlain, "I see\n</think>\n\nHello", true, "I see|Hello|", "stop"},
      {AnswerForm::kHermes, "<think>\nI see\n</think>\n\n" + json, false, "I see||" + call, "tool_calls"},
      {AnswerForm::kHermes, "Let me see.\n" + json + "\n" + json, false, "|Let me see.|" + call + call, "tool_calls"},
      {AnswerForm::kHermes, "<tool_call>{broken</tool_call>", false, "|<tool_call>{broken</tool_call>|", "stop"},
      {AnswerForm::kQwenXml,
       "I see\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n2\n"
       "</parameter>\n</function>\n</tool_call>",
       true, "I see||" + call, "tool_calls"},
      {AnswerForm::kQwenXml, json, false, "||" + call, "tool_calls"},
      {AnswerForm::kGlm,
       "<think>I see</think>\nWell.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Bern</arg_value>\n"
       "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
       false, "I see|Well.|" + call, "tool_calls"},
      {AnswerForm::kHarmony,
       "<|channel|>analysis<|message|>I see<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
       "<|constrain|>json<|message|>{\"city\":\"Bern\",\"days\":2}",
       false, "I see||" + call, "tool_calls"},
      {AnswerForm::kHarmony,
       "<|channel|>analysis<|message|>I see<|end|><|start|>assistant<|channel|>final<|message|>Hello", false,
       "I see|Hello|", "stop"},
  };
}

}  // namespace

TEST_CASE("A chat's answer has thoughts and calls apart, at once and as a stream", "[serve]") {
  for (const Case& one : cases()) {
    INFO(one.text);
    for (const size_t piece : {size_t{1}, size_t{3}, size_t{1000}}) {
      Told answer(one.form, one.text, piece, one.in_thought);
      const Json choice = answer.whole<ChatFormat>()["choices"][0];
      CHECK(told(choice["message"]) == one.told);
      CHECK(choice["finish_reason"] == one.finish_reason);
      std::string finish_reason;
      int argument_deltas = 0;
      const Json gathered = gather(answer.stream<ChatFormat>(), finish_reason, argument_deltas);
      CHECK(told(gathered) == one.told);
      CHECK(finish_reason == one.finish_reason);
      CHECK((argument_deltas > 0) == (one.finish_reason == "tool_calls"));
    }
  }
}

TEST_CASE("Arguments come as they are written, in each API's events", "[serve]") {
  const std::string json = R"({"city":"Bern, with a long name that takes a while","days":2})";
  const std::string bare = "Bern, with a long name that takes a while";
  const std::vector<std::pair<AnswerForm, std::string>> texts = {
      {AnswerForm::kHermes, "Well.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": " + json + "}\n</tool_call>"},
      {AnswerForm::kHarmony,
       "<|channel|>commentary<|message|>Well.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
       "<|constrain|>json<|message|>" +
           json + "<|call|>"},
      {AnswerForm::kQwenXml, "Well.\n<tool_call>\n<function=weather>\n<parameter=city>\n" + bare +
                                 "\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"},
      {AnswerForm::kGlm, "Well.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>" + bare +
                             "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"}};
  for (const auto& [form, text] : texts) {
    INFO(text);
    for (const size_t piece : {size_t{1}, size_t{4}, size_t{11}}) {
      Told answer(form, text, piece);
      std::string finish_reason;
      int argument_deltas = 0;
      CHECK(told(gather(answer.stream<ChatFormat>(), finish_reason, argument_deltas)) == "|Well.|weather" + json);
      CHECK(argument_deltas > 3);
      CHECK(told(answer.whole<ChatFormat>()["choices"][0]["message"]) == "|Well.|weather" + json);
      const auto gathered = [](const std::vector<Json>& events, const char* type, int& deltas) {
        std::string out;
        deltas = 0;
        for (const Json& event : events) {
          const Json& delta = event.contains("delta") ? event["delta"] : Json();
          const bool is_it = event["type"] == type && (delta.is_string() || delta.contains("partial_json"));
          if (!is_it) continue;
          ++deltas;
          out += (delta.is_string() ? delta : delta["partial_json"]).get<std::string>();
        }
        return out;
      };
      int deltas = 0;
      CHECK(gathered(answer.stream<MessagesFormat>(), "content_block_delta", deltas) == json);
      CHECK(deltas > 3);
      CHECK(gathered(answer.stream<ResponsesFormat>(), "response.function_call_arguments.delta", deltas) == json);
      CHECK(deltas > 3);
      // Cut off: ended, and told as cut off.
      Told cut(form, text.substr(0, text.find("takes")), piece, false, true);
      const std::string ended = R"(|Well.|weather{"city":"Bern, with a long name that "})";
      CHECK(told(gather(cut.stream<ChatFormat>(), finish_reason, argument_deltas)) == ended);
      CHECK(finish_reason == "length");
      CHECK(told(cut.whole<ChatFormat>()["choices"][0]["message"]) == ended);
    }
  }
}

TEST_CASE("Thoughts are counted, and an answer that was cut off says so", "[serve]") {
  Told answer(AnswerForm::kPlain, "thinking</think>text", 4, true);
  const Json usage = answer.whole<ChatFormat>()["usage"];
  CHECK(usage["completion_tokens"] == 5);
  CHECK(usage["completion_tokens_details"]["reasoning_tokens"] == 4);  // the end's mark is one of them
  Told cut(AnswerForm::kHermes, "<tool_call>{\"name\": \"weather\", \"arguments\": {\"ci", 5, false, true);
  const Json choice = cut.whole<ChatFormat>()["choices"][0];
  CHECK(choice["finish_reason"] == "length");
  CHECK(choice["message"]["content"] == "<tool_call>{\"name\": \"weather\", \"arguments\": {\"ci");
}

TEST_CASE("Anthropic's messages have blocks of thoughts, text and calls", "[serve]") {
  for (const Case& one : cases()) {
    INFO(one.text);
    for (const size_t piece : {size_t{1}, size_t{1000}}) {
      Told answer(one.form, one.text, piece, one.in_thought);
      const Json message = answer.whole<MessagesFormat>();
      std::string thought, text, calls;
      for (const Json& block : message["content"]) {
        if (block["type"] == "thinking") thought += block["thinking"];
        if (block["type"] == "text") text += block["text"];
        if (block["type"] == "tool_use") calls += block["name"].get<std::string>() + block["input"].dump();
      }
      CHECK(thought + "|" + text + "|" + calls == one.told);
      CHECK(message["stop_reason"] == (one.finish_reason == "tool_calls" ? "tool_use" : "end_turn"));

      // Each block is begun, told in deltas and ended before the next one.
      int next = 0;
      bool is_open = false;
      Json gathered = Json::array();
      for (const Json& event : answer.stream<MessagesFormat>()) {
        const std::string type = event["type"];
        if (type == "content_block_start") {
          CHECK_FALSE(is_open);
          CHECK(event["index"] == next++);
          is_open = true;
          gathered.push_back(event["content_block"]);
          if (gathered.back()["type"] == "tool_use") gathered.back()["partial"] = "";
        } else if (type == "content_block_delta") {
          CHECK(is_open);
          CHECK(event["index"] == next - 1);
          const Json& delta = event["delta"];
          for (const auto& [from, to] :
               {std::pair("thinking", "thinking"), {"text", "text"}, {"partial_json", "partial"}}) {
            if (delta.contains(from)) gathered.back()[to].get_ref<std::string&>() += delta[from].get<std::string>();
          }
        } else if (type == "content_block_stop") {
          CHECK(is_open);
          is_open = false;
        } else if (type == "message_delta") {
          CHECK(event["delta"]["stop_reason"] == message["stop_reason"]);
        }
      }
      CHECK_FALSE(is_open);
      REQUIRE(gathered.size() == message["content"].size());
      for (size_t i = 0; i < gathered.size(); ++i) {
        Json block = gathered[i];
        Json expected = message["content"][i];
        if (block["type"] == "tool_use") {
          block["input"] = Json::parse(block["partial"].get<std::string>());
          block.erase("partial");
          block.erase("id");
          expected.erase("id");
        }
        CHECK(block == expected);
      }
    }
  }
}

TEST_CASE("Responses have items of reasoning, messages and calls", "[serve]") {
  for (const Case& one : cases()) {
    INFO(one.text);
    Told answer(one.form, one.text, 2, one.in_thought);
    const Json response = answer.whole<ResponsesFormat>();
    std::string thought, text, calls;
    for (const Json& item : response["output"]) {
      if (item["type"] == "reasoning") thought += item["content"][0]["text"];
      if (item["type"] == "message") text += item["content"][0]["text"];
      if (item["type"] == "function_call")
        calls += item["name"].get<std::string>() + item["arguments"].get<std::string>();
    }
    CHECK(thought + "|" + text + "|" + calls == one.told);
    CHECK(response["status"] == "completed");

    int64_t number = 0;
    std::map<std::string, std::string> deltas;  // by item
    Json done = Json::array();
    for (const Json& event : answer.stream<ResponsesFormat>()) {
      CHECK(event["sequence_number"] == number++);
      const std::string type = event["type"];
      if (type.ends_with(".delta")) deltas[event["item_id"]] += event["delta"].get<std::string>();
      if (type == "response.output_item.added") CHECK(event["output_index"] == done.size());
      if (type == "response.output_item.done") done.push_back(event["item"]);
      if (type == "response.output_text.done") CHECK(event["text"] == deltas[event["item_id"]]);
      if (type == "response.function_call_arguments.done") CHECK(event["arguments"] == deltas[event["item_id"]]);
      if (type == "response.completed") CHECK(event["response"]["output"] == done);
    }
    CHECK(done.size() == response["output"].size());
  }
}

}  // namespace foretoken::test
