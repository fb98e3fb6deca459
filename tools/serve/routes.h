#pragma once

#include "tools/serve/http_server.h"
#include "tools/serve/serve_state.h"

namespace foretoken {

/// Routes that tell about the server: health, models, props, slots, metrics.
void add_model_routes(HttpServer& server, ServeState& state);
/// Tokens and templates without an answer: tokenize, detokenize, apply-template.
void add_text_routes(HttpServer& server, ServeState& state);
/// Routes that make answers.
void add_generation_routes(HttpServer& server, ServeState& state);
/// What slots left in the prefix cache, saved to files and restored.
void add_slot_routes(HttpServer& server, ServeState& state);
/// The page at /.
void add_page(HttpServer& server);
/// What other servers have and this one has not: a 501 that says so.
void add_unserved_routes(HttpServer& server);

}  // namespace foretoken
