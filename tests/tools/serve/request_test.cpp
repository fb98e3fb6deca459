#include <catch2/catch.hpp>
#include <limits>

#include "tools/serve/api_error.h"
#include "tools/serve/chat_prompts.h"
#include "tools/serve/generation_request.h"
#include "tools/serve/http_server.h"

namespace foretoken::test {
namespace {

using Catch::Matchers::Contains;

GenerationRequest parse(const std::string& body) {
  static const Model model = Model::load(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf", {});
  ServedModel served;
  served.tokenizer = &model.tokenizer();
  served.ctx_size = 2048;
  served.max_drafts = 4;
  served.drafter = "mtp";
  Json json = parse_body(body);
  json["prompt"] = "x";
  return parse_completion(Fields(json), served);
}

/// The error that a body gets: "400 message".
std::string refusal(const std::string& body) {
  try {
    (void)parse(body);
  } catch (const ApiError& error) {
    return std::to_string(error.status()) + " " + error.what();
  }
  return "taken";
}

}  // namespace

TEST_CASE("A request's fields go where they belong", "[serve]") {
  const GenerationRequest request = parse(
      R"({"n_predict": 7.0, "n": 2, "stop": "x", "stream": true, "stream_options": {"include_usage": true}, "seed": 3,
          "temperature": 0.5, "top_k": -1, "top_p": 0.9, "min_p": 0.1, "n_probs": 2, "speculative.n_max": 9,
          "return_tokens": true, "unknown": {"is": "ignored"}, "presence_penalty": 0, "grammar": ""})");
  CHECK(request.max_tokens == 7);
  CHECK(request.n == 2);
  CHECK(request.stops == std::vector<std::string>{"x"});
  CHECK((request.stream && request.include_usage && request.return_tokens && request.with_logprobs));
  CHECK(request.num_logprobs == 2);
  CHECK(request.sampling.temperature == 0.5f);
  CHECK(request.sampling.top_k == 0);
  CHECK(request.sampling.top_p == 0.9f);
  CHECK(request.sampling.min_p == 0.1f);
  CHECK(request.sampling.seed == 3);
  CHECK(request.max_drafts == 4);  // as many as the server makes
}

TEST_CASE("Names that mean the same are read the same", "[serve]") {
  for (const char* name : {"n_predict", "max_tokens", "max_completion_tokens"})
    CHECK(parse(std::string("{\"") + name + "\": 5}").max_tokens == 5);
  CHECK(parse(R"({"stop_sequences": ["a", "b"]})").stops.size() == 2);
  CHECK(parse(R"({"speculative": {"n_max": 2}})").max_drafts == 2);
  CHECK(parse(R"({"speculative.n_max": 2})").max_drafts == 2);
  CHECK(parse(R"({"speculative.type": "none"})").max_drafts == 0);
  CHECK(parse(R"({"logprobs": true, "top_logprobs": 3})").num_logprobs == 3);
  CHECK(parse(R"({"logprobs": 3})").num_logprobs == 3);
  CHECK_FALSE(parse(R"({"logprobs": false})").with_logprobs);
  CHECK(parse(R"({"temperature": null})").sampling.temperature == 0);
}

TEST_CASE("Requests without a seed draw one", "[serve]") {
  CHECK(parse("{}").sampling.seed != parse("{}").sampling.seed);
}

TEST_CASE("Wrong types and ranges are a 400 that names the field", "[serve]") {
  CHECK(refusal(R"({"temperature": "hot"})") == "400 \"temperature\": expected a number, not string");
  CHECK(refusal(R"({"temperature": -1})") == "400 \"temperature\": -1 is outside 0 to 1000");
  CHECK(refusal(R"({"n_predict": 1.5})") == "400 \"n_predict\": 1.5 is no whole number");
  CHECK(refusal(R"({"n_predict": 1e300})") == "400 \"n_predict\": 1e+300 is outside -1 to 2147483647");
  CHECK(refusal(R"({"seed": 18446744073709551615})") ==
        "400 \"seed\": 18446744073709551615 is outside -1 to 9223372036854775807");
  CHECK(refusal(R"({"model": 1})") == "400 \"model\": expected a string, not number");
  CHECK(refusal(R"({"stream": 1})") == "400 \"stream\": expected true or false, not number");
  CHECK(refusal(R"({"stop": [1]})") == "400 \"stop\": expected an array of strings, not number");
  CHECK(refusal(R"({"stream_options": []})") == "400 \"stream_options\": expected an object, not array");
  CHECK(refusal(R"({"stream_options": {"include_usage": 1}})") ==
        "400 \"stream_options.include_usage\": expected true or false, not number");
  CHECK_THAT(refusal(R"({"speculative.type": "psychic"})"), Contains("this server has none, auto and mtp"));
}

TEST_CASE("What would change the answer and is not served is refused", "[serve]") {
  for (const char* body : {R"({"image_data": [1]})", R"({"mirostat": 2})", R"({"suffix": "x"})",
                           R"({"dry_multiplier": 0.8})", R"({"lora": [{"id": 0}]})"})
    CHECK_THAT(refusal(body), Contains("501 ") && Contains("is not served here"));
}

TEST_CASE("Biases, penalties and grammars become rules of the choice", "[serve]") {
  const GenerationRequest request =
      parse(R"({"logit_bias": [[5, -1.5], [6, false]], "repeat_penalty": 1.1, "presence_penalty": 0.5,
                "frequency_penalty": -0.5, "repeat_last_n": -1, "typical_p": 0.5, "grammar": "root ::= \"a\""})");
  REQUIRE(request.rules.bias.size() == 2);
  CHECK(request.rules.bias[0] == std::pair<TokenId, float>{5, -1.5f});
  CHECK(request.rules.bias[1] == std::pair<TokenId, float>{6, -std::numeric_limits<float>::infinity()});
  CHECK(request.rules.repeat_penalty == 1.1f);
  CHECK(request.rules.presence_penalty == 0.5f);
  CHECK(request.rules.frequency_penalty == -0.5f);
  CHECK(request.rules.repeat_last_n == -1);
  CHECK(request.sampling.typical_p == 0.5f);
  CHECK(request.rules.grammar != nullptr);
  CHECK(parse(R"({"logit_bias": {"7": 100}})").rules.bias.at(0).first == 7);
  for (const char* body :
       {R"({"json_schema": {"type": "integer"}})", R"({"response_format": {"type": "json_object"}})",
        R"({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "null"}}}})"})
    CHECK(parse(body).rules.grammar != nullptr);
  for (const char* body :
       {R"({"logit_bias": [[999999, 1]]})", R"({"logit_bias": 3})", R"({"logit_bias": [[1, "x"]]})",
        R"({"logit_bias": [[1, 1e300]]})", R"({"grammar": "root = 1"})", R"({"grammar": 5})",
        R"({"json_schema": {"type": "psychic"}})", R"({"grammar": "root ::= \"a\"", "json_schema": {"type": "null"}})",
        R"({"response_format": {"type": "xml"}})", R"({"response_format": {"type": "json_schema"}})",
        R"({"repeat_penalty": 0})", R"({"frequency_penalty": "much"})"}) {
    INFO(body);
    CHECK_THAT(refusal(body), Catch::Matchers::StartsWith("400 "));
  }
}

TEST_CASE("Bodies are JSON objects of limited depth", "[serve]") {
  const auto message = [](const std::string& body) {
    try {
      (void)parse_body(body);
    } catch (const ApiError& error) {
      return std::string(error.what());
    }
    return std::string("taken");
  };
  CHECK_THAT(message("{"), Contains("the body is no JSON"));
  CHECK_THAT(message(""), Contains("the body is no JSON"));
  CHECK(message("[]") == "the body is array; an object is needed");
  CHECK_THAT(message("{\"a\": \"\xff\"}"), Contains("the body is no JSON"));
  CHECK_THAT(message("{\"a\": 1e999}"), Contains("the body is no JSON: number overflow"));
  const auto nested = [](int depth) {
    return "{\"a\":" + std::string(static_cast<size_t>(depth), '[') + std::string(static_cast<size_t>(depth), ']') +
           "}";
  };
  CHECK(message(nested(kMaxJsonDepth - 1)) == "taken");
  CHECK_THAT(message(nested(kMaxJsonDepth)), Contains("nested deeper"));
}

TEST_CASE("Messages are checked and their parts joined", "[serve]") {
  const Json messages = Json::parse(
      R"([{"role": "developer", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
          {"role": "assistant", "content": null}])");
  const Json checked = check_messages(messages);
  CHECK(checked[0]["role"] == "system");
  CHECK(checked[1]["content"] == "bc");
  CHECK(checked[2]["content"] == "");
  const auto message = [](const char* text) {
    try {
      (void)check_messages(Json::parse(text));
    } catch (const ApiError& error) {
      return std::to_string(error.status()) + " " + error.what();
    }
    return std::string("taken");
  };
  CHECK(message("[]") == "400 \"messages\": expected an array of messages");
  CHECK(message(R"([{"content": "x"}])") == "400 \"messages[0].role\": is missing");
  CHECK(message(R"([{"role": "user"}])") == "400 \"messages[0].content\": is missing");
  CHECK_THAT(message(R"([{"role": "king", "content": "x"}])"), Contains("\"king\" is none of"));
  CHECK_THAT(message(R"([{"role": "user", "content": [{"type": "image_url"}]}])"), Contains("501 "));
}

TEST_CASE("Keys are equal or not", "[serve]") {
  CHECK(equal_in_constant_time("secret", "secret"));
  CHECK(equal_in_constant_time("", ""));
  for (const char* wrong : {"", "secre", "secretx", "Secret", "secretsecret"}) {
    CHECK_FALSE(equal_in_constant_time(wrong, "secret"));
    CHECK_FALSE(equal_in_constant_time("secret", wrong));
  }
}

}  // namespace foretoken::test
