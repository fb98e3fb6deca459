#include "tools/serve/anthropic.h"
#include "tools/serve/chat_request.h"
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
  answer<NativeFormat>(state, http, parse_completion(Fields(body), state.served), response);
}

void complete_openai(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  GenerationRequest request = parse_completion(fields, state.served);
  if (fields.boolean("echo").value_or(false)) throw not_supported("\"echo\" is not served here");
  if (const auto best_of = fields.integer("best_of", 1, 128); best_of && *best_of != request.n)
    throw not_supported("\"best_of\" is not served here");
  if (!fields.has("max_tokens") && !fields.has("n_predict") && !fields.has("max_completion_tokens"))
    request.max_tokens = 16;  // as the API has it
  answer<CompletionsFormat>(state, http, request, response);
}

void chat(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  const ChatRequest chat = parse_openai_chat(fields, state.chat->defaults());
  answer<ChatFormat>(state, http, parse_chat_generation(fields, state.served, *state.chat, chat), response);
}

void refuse_several(const GenerationRequest& request) {
  if (request.n > 1) throw not_supported("\"n\": this route makes one answer");
}

void respond(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  const ChatRequest chat = parse_responses_chat(fields, state.chat->defaults());
  GenerationRequest request = parse_chat_generation(fields, state.served, *state.chat, chat);
  refuse_several(request);
  request.repeated = repeated_fields(body);
  answer<ResponsesFormat>(state, http, request, response);
}

void answer_messages(ServeState& state, const Request& http, const Json& body, Response& response) {
  const Fields fields(body);
  if (!fields.has("max_tokens")) fields.fail("max_tokens", "is missing");
  const ChatRequest chat = parse_anthropic_chat(fields, state.chat->defaults());
  const GenerationRequest request = parse_chat_generation(fields, state.served, *state.chat, chat);
  refuse_several(request);
  answer<MessagesFormat>(state, http, request, response);
}

void count_tokens(ServeState& state, const Request&, const Json& body, Response& response) {
  const ChatRequest chat = parse_anthropic_chat(Fields(body), state.chat->defaults());
  answer_json(response, {{"input_tokens", state.chat->encode(state.chat->render(chat)).size()}});
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
