#include "tools/serve/chat_request.h"
#include "tools/serve/routes.h"

namespace foretoken {

namespace {

Json tokenize(const Fields& fields, const Tokenizer& tokenizer) {
  const std::optional<std::string> content = fields.text("content");
  if (!content) fields.fail("content", "is missing");
  const std::vector<TokenId> ids = encode_prompt(tokenizer, *content, fields.boolean("add_special").value_or(false),
                                                 fields.boolean("parse_special").value_or(true));
  if (!fields.boolean("with_pieces").value_or(false)) return {{"tokens", ids}};
  Json tokens = Json::array();
  for (const TokenId id : ids) {
    const std::string_view piece = tokenizer.piece(id, /*keep_special=*/true);
    Json entry = {{"id", id}, {"piece", piece}};
    if (find_invalid_utf8(piece) != std::string_view::npos) {
      // A part of a character: its bytes.
      entry["piece"] = Json::array();
      for (const char c : piece) entry["piece"].push_back(static_cast<unsigned char>(c));
    }
    tokens.push_back(std::move(entry));
  }
  return {{"tokens", std::move(tokens)}};
}

Json detokenize(const Fields& fields, const Tokenizer& tokenizer) {
  const Json* tokens = fields.array("tokens");
  if (tokens == nullptr) fields.fail("tokens", "is missing");
  std::string text;
  for (const Json& token : *tokens) {
    if (!token.is_number_integer() || token < 0 || token >= tokenizer.vocab_size())
      fields.fail("tokens", to_text(token) + " is no token id of this model");
    text += tokenizer.piece(token.get<TokenId>(), /*keep_special=*/true);
  }
  return {{"content", text}};
}

}  // namespace

void add_text_routes(HttpServer& server, ServeState& state) {
  server.route_post("/tokenize", [&state](const httplib::Request&, const Json& body, httplib::Response& response) {
    answer_json(response, tokenize(Fields(body), *state.served.tokenizer));
  });
  server.route_post("/detokenize", [&state](const httplib::Request&, const Json& body, httplib::Response& response) {
    answer_json(response, detokenize(Fields(body), *state.served.tokenizer));
  });
  server.route_post("/apply-template",
                    [&state](const httplib::Request&, const Json& body, httplib::Response& response) {
                      std::string prompt;
                      const ChatRequest chat = parse_openai_chat(Fields(body), state.chat->defaults());
                      for (const TextPart& part : state.chat->render(chat)) prompt += part.text;
                      answer_json(response, {{"prompt", prompt}});
                    });
}

}  // namespace foretoken
