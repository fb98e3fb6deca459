#include "tools/serve/anthropic.h"
#include "tools/serve/openai_format.h"
#include "tools/serve/responses.h"
#include "tools/serve/routes.h"

namespace foretoken {

namespace {

using Request = httplib::Request;
using Response = httplib::Response;

template <class Format>
void answer(ServeState& state, const Request& http, const GenerationRequest& request, Response& response) {
  Exchange(*state.service, state.served, state.log)
      .run(http.path, request, std::make_unique<Format>(state.served, request), response);
}

void complete(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  GenerationRequest request = parse_generation(fields, state.served);
  request.prompts = parse_prompts(fields, "prompt", state.served.model->tokenizer());
  answer<NativeFormat>(state, http, request, response);
}

void complete_openai(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  GenerationRequest request = parse_generation(fields, state.served);
  if (fields.boolean("echo").value_or(false)) throw not_supported("\"echo\" is not served here");
  if (const auto best_of = fields.integer("best_of", 1, 128); best_of && *best_of != request.n)
    throw not_supported("\"best_of\" is not served here");
  if (!fields.has("max_tokens") && !fields.has("n_predict") && !fields.has("max_completion_tokens"))
    request.max_tokens = 16;  // as the API has it
  request.prompts = parse_prompts(fields, "prompt", state.served.model->tokenizer());
  answer<CompletionsFormat>(state, http, request, response);
}

void chat(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  GenerationRequest request = parse_generation(fields, state.served);
  request.prompts = {state.chat->encode(render_chat(fields, *state.chat))};
  answer<ChatFormat>(state, http, request, response);
}

std::vector<TokenId> encode_messages(const ServeState& state, const Fields& fields, const Json& messages,
                                     const Json& tools) {
  const Json* kwargs = fields.object("chat_template_kwargs");
  return state.chat->encode(
      state.chat->render(check_messages(messages), tools, kwargs == nullptr ? Json::object() : *kwargs));
}

void refuse_several(const GenerationRequest& request) {
  if (request.n > 1) throw not_supported("\"n\": this route makes one answer");
}

void respond(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  GenerationRequest request = parse_generation(fields, state.served);
  refuse_several(request);
  const Json* tools = fields.array("tools");
  request.prompts = {
      encode_messages(state, fields, parse_responses_input(fields), tools == nullptr ? Json::array() : *tools)};
  answer<ResponsesFormat>(state, http, request, response);
}

std::vector<TokenId> anthropic_prompt(const ServeState& state, const Fields& fields) {
  const AnthropicChat chat = parse_anthropic_chat(fields);
  return encode_messages(state, fields, chat.messages, chat.tools);
}

void answer_messages(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  if (!fields.has("max_tokens")) fields.fail("max_tokens", "is missing");
  GenerationRequest request = parse_generation(fields, state.served);
  refuse_several(request);
  request.prompts = {anthropic_prompt(state, fields)};
  answer<MessagesFormat>(state, http, request, response);
}

void count_tokens(ServeState& state, const Request&, const Json& body, Response& response) {
  answer_json(response, {{"input_tokens", anthropic_prompt(state, Fields(body)).size()}});
}

}  // namespace

void add_generation_routes(HttpServer& server, ServeState& state) {
  const auto add = [&](const char* path, auto handle) {
    server.route_post(path, [&state, handle](const Request& http, const Json& body, Response& response) {
      handle(state, http, body, response);
    });
  };
  add("/completion", complete);
  add("/completions", complete);
  add("/v1/completions", complete_openai);
  add("/v1/chat/completions", chat);
  add("/chat/completions", chat);
  add("/v1/responses", respond);
  add("/v1/messages", answer_messages);
  add("/v1/messages/count_tokens", count_tokens);
}

void add_unserved_routes(HttpServer& server) {
  const auto refuse = [](const Request& request, Response&) {
    throw not_supported(request.path + " is not served here");
  };
  for (const char* path :
       {"/embedding", "/embeddings", "/v1/embeddings", "/rerank", "/reranking", "/v1/rerank", "/infill",
        "/lora-adapters", "/v1/audio/transcriptions", "/v1/audio/speech", "/v1/images/generations"})
    server.Post(path, refuse);
  server.route_get("/lora-adapters", refuse);
}

}  // namespace foretoken
