#pragma once

#include <string>
#include <vector>

#include "tools/serve/chat_prompts.h"
#include "tools/serve/generation_request.h"

namespace foretoken {

// What the chat routes ask for, each in its API's words, as one form: a ChatRequest. All throw ApiError naming the field.

/// The body of /v1/chat/completions.
[[nodiscard]] ChatRequest parse_openai_chat(const Fields& fields, const ChatDefaults& defaults);
/// The body of Anthropic's /v1/messages.
[[nodiscard]] ChatRequest parse_anthropic_chat(const Fields& fields, const ChatDefaults& defaults);
/// The body of /v1/responses.
[[nodiscard]] ChatRequest parse_responses_chat(const Fields& fields, const ChatDefaults& defaults);

/// Tools as templates and grammars read them, [{"type": "function", "function": {"name", "description", "parameters"}}],
/// checked.
[[nodiscard]] Json check_tools(const Json& tools);

/// The generation that answers a chat: prompt, rules, and how its answer is taken apart.
[[nodiscard]] GenerationRequest parse_chat_generation(const Fields& fields, const ServedModel& served,
                                                      const ChatPrompts& prompts, const ChatRequest& chat);

}  // namespace foretoken
