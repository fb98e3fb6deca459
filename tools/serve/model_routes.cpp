#include <fmt/format.h>

#include "tools/cli/version.h"
#include "tools/serve/routes.h"

namespace foretoken {

namespace {

Json describe_model(const ServedModel& served) {
  const ModelConfig& config = served.model->config();
  return {{"id", served.name},
          {"object", "model"},
          {"created", served.created},
          {"owned_by", "foretoken"},
          {"meta",
           {{"n_vocab", config.vocab_size},
            {"n_ctx_train", config.context_length},
            {"n_embd", config.hidden_dim},
            {"n_params", served.model->num_parameters()},
            {"size", served.model->file_bytes()},
            {"architecture", config.architecture},
            {"fingerprint", served.model->fingerprint()}}}};
}

Json describe_props(const ServeState& state) {
  const ServedModel& served = state.served;
  GenerationRequest defaults;
  defaults.sampling = served.sampling;
  defaults.max_drafts = served.max_drafts;
  return {
      {"default_generation_settings", {{"n_ctx", served.ctx_size}, {"params", describe_settings(served, defaults)}}},
      {"total_slots", state.service->engine().options().parallel},
      {"model_alias", served.name},
      {"model_path", served.model->path()},
      {"modalities", {{"vision", false}, {"audio", false}}},
      {"chat_template", state.chat->source()},
      {"build_info", fmt::format("foretoken {} ({})", kVersion, kCommit)}};
}

Json describe_slots(ServeState& state, int& num_free) {
  const int parallel = state.service->engine().options().parallel;
  std::vector<Json> slots;
  for (int i = 0; i < parallel; ++i) {
    slots.push_back({{"id", i},
                     {"n_ctx", state.served.ctx_size},
                     {"speculative", state.served.max_drafts > 0},
                     {"is_processing", false}});
  }
  num_free = parallel;
  state.service->between_steps([&](Scheduler&, const std::vector<const Answer*>& running) {
    for (const Answer* answer : running) {
      const int slot = answer->request().slot();
      if (slot < 0) continue;
      Json& entry = slots.at(slot);
      const AnswerRequest& asked = answer->asked();
      entry["is_processing"] = true;
      entry["params"] = {{"n_predict", asked.max_new_tokens},    {"temperature", asked.sampling.temperature},
                         {"top_k", asked.sampling.top_k},        {"top_p", asked.sampling.top_p},
                         {"min_p", asked.sampling.min_p},        {"seed", asked.sampling.seed},
                         {"speculative.n_max", asked.max_drafts}};
      entry["prompt"] = {{"n_tokens", answer->request().prompt().size()}, {"n_read", answer->request().prompt_read()}};
      entry["next_token"] = {{"n_decoded", answer->num_tokens()},
                             {"n_remain", std::max<int64_t>(0, asked.max_new_tokens - answer->num_tokens())}};
      --num_free;
    }
  });
  return slots;
}

}  // namespace

void add_model_routes(HttpServer& server, ServeState& state) {
  for (const char* path : {"/health", "/v1/health"}) {
    server.open_to_all(path);
    server.route_get(path, [&state](const httplib::Request&, httplib::Response& response) {
      if (!state.is_ready) throw unavailable("Loading model");
      answer_json(response, {{"status", "ok"}});
    });
  }
  for (const char* path : {"/v1/models", "/models"}) {
    server.route_get(path, [&state](const httplib::Request&, httplib::Response& response) {
      answer_json(response, {{"object", "list"}, {"data", Json::array({describe_model(state.served)})}});
    });
  }
  server.route_get("/props", [&state](const httplib::Request&, httplib::Response& response) {
    answer_json(response, describe_props(state));
  });
  server.route_get("/slots", [&state](const httplib::Request& request, httplib::Response& response) {
    if (!state.offers_slots) throw not_supported("/slots is off (--no-slots)");
    int num_free = 0;
    const Json slots = describe_slots(state, num_free);
    if (request.has_param("fail_on_no_slot") && num_free == 0) throw unavailable("all slots are busy");
    answer_json(response, slots);
  });
  server.route_get("/metrics", [&state](const httplib::Request&, httplib::Response& response) {
    if (!state.offers_metrics) throw not_supported("/metrics is off; start with --metrics");
    response.set_content(state.service->metrics().text(), "text/plain; version=0.0.4; charset=utf-8");
  });
}

}  // namespace foretoken
