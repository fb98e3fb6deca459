#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <thread>

#include "kernels/base/error.h"
#include "tools/cli/interruption.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/serve/routes.h"
#include "tools/serve/sd_notify.h"

namespace foretoken {

namespace {

struct ServeFlags {
  ModelFlags model;
  bool mtp_given = false, seed_given = false;
  std::string host = "127.0.0.1";
  int port = 8080;
  int max_queue = 64;
  double timeout_s = 60, drain_s = 30;
  std::string max_body_text = "16M", cache_ram_text = "1G";
  int64_t checkpoint_every = SchedulerOptions().checkpoint_every;
  std::optional<int> ctx_checkpoints;
  std::string api_key, api_key_path, cors_origin, alias, slot_save_path, chat_template, chat_template_path;
  std::string kwargs_text = "{}", reasoning_format = "auto";
  bool no_slots = false, no_metrics = false, no_webui = false, log_prompts = false;
  bool metrics = false, props = false;  // on anyway; taken for scripts that ask for them

  [[nodiscard]] bool parse(int argc, const char* const* argv);
  [[nodiscard]] HttpOptions http_options() const;
  [[nodiscard]] size_t cache_bytes() const {
    return cache_ram_text == "0" ? 0 : parse_size("--cache-ram", cache_ram_text);
  }
  [[nodiscard]] std::string template_source(const Tokenizer& tokenizer) const;
  [[nodiscard]] ChatDefaults chat_defaults() const;
};

bool ServeFlags::parse(int argc, const char* const* argv) {
  CommandLine line(
      "serve", "-m MODEL",
      "Answers requests over HTTP: OpenAI's API and llama.cpp's, several at once. What an answer says "
      "depends on its own\nrequest alone. SIGTERM and Ctrl-C end the server in order; a second one at once.");
  line.section("Server");
  line.add_text("host", &host, "ADDRESS", "address to listen on; 0.0.0.0: all of the machine's");
  line.add_int("port", &port, 0, 65535, "N", "port to listen on; 0: any that is free");
  line.add_int("max-queue", &max_queue, 0, 1 << 20, "N",
               "answers that may wait beside those that run; further ones get 503");
  line.add_text("cache-ram", &cache_ram_text, "SIZE",
                "memory for states of texts that later requests may begin with, as 800M or 4G; 0: none are kept");
  line.add_int("checkpoint-every", &checkpoint_every, 64, INT32_MAX, "N",
               "positions between such states while a long prompt is read");
  line.add_int("ctx-checkpoints", &ctx_checkpoints, 0, 1 << 20, "N",
               "such states at most, for each answer at a time; 0: none (default: as many as --cache-ram holds)");
  line.add_text("slot-save-path", &slot_save_path, "DIR", "folder that POST /slots/N?action=save may write files to");
  line.add_float("timeout", &timeout_s, 1, 1e6, "SECONDS",
                 "time to send a request's body, and to take a part of the answer");
  line.add_float("drain", &drain_s, 0, 1e6, "SECONDS", "time that running answers have to end after SIGTERM");
  line.add_text("max-body", &max_body_text, "SIZE", "largest body of a request, as 800K or 16M");
  line.add_text("api-key", &api_key, "KEY", "key that requests have to bring; several: separated by commas");
  line.add_text("api-key-file", &api_key_path, "FILE", "keys, one a line");
  line.add_text("cors", &cors_origin, "ORIGIN", "let pages of this origin read the answers; *: of any (default: none)");
  line.add_text("alias,a", &alias, "NAME", "name of the model in answers (default: the file's)");
  line.add_text("chat-template", &chat_template, "TEMPLATE", "chat template in place of the file's; chatml: that one");
  line.add_text("chat-template-file", &chat_template_path, "FILE", "the same from a file");
  line.add_text(
      "chat-template-kwargs", &kwargs_text, "JSON",
      "variables of the chat template, as {\"enable_thinking\": false}, where a request has none of that name");
  line.add_text("reasoning-format", &reasoning_format, "FORM",
                "thoughts of answers; auto, deepseek: apart from the content; none: in it, with their marks");
  line.add_switch("metrics", &metrics, "answer /metrics; on unless --no-metrics is given");
  line.add_switch("no-metrics", &no_metrics, "do not answer /metrics");
  line.add_switch("props", &props, "answer GET /props; always on");
  line.add_switch("no-slots", &no_slots, "do not answer /slots");
  line.add_switch("no-webui", &no_webui, "do not answer / with the page to chat with");
  line.add_switch("log-prompts", &log_prompts, "put prompts and answers into the log");
  model.parallel = 4;
  model.mtp_text = "auto";
  model.add_draft(line);
  model.add_batch(line);
  model.add_to(line);
  // llama.cpp's short form, of two letters.
  std::vector<const char*> arguments(argv, argv + argc);
  std::replace_if(
      arguments.begin(), arguments.end(), [](const char* typed) { return std::string_view(typed) == "-np"; },
      "--parallel");
  if (!line.parse(argc, arguments.data())) return false;
  mtp_given = line.given("mtp");
  seed_given = line.given("seed");
  if (no_metrics && metrics) throw UsageError("--metrics and --no-metrics: give one of them");
  if (!slot_save_path.empty() && !std::filesystem::is_directory(slot_save_path))
    throw UsageError(fmt::format("--slot-save-path {}: there is no such folder", slot_save_path));
  if (!chat_template.empty() && !chat_template_path.empty())
    throw UsageError("--chat-template and --chat-template-file: give one of them");
  (void)cache_bytes();
  (void)chat_defaults();
  model.resolve(line);
  return true;
}

HttpOptions ServeFlags::http_options() const {
  HttpOptions options;
  const auto ms = std::chrono::milliseconds(static_cast<int64_t>(1e3 * timeout_s));
  options.limits.body = options.limits.write = ms;
  options.limits.head = std::min(options.limits.head, ms);
  options.limits.body_bytes = parse_size("--max-body", max_body_text);
  options.cors_origin = cors_origin;
  std::string keys = api_key;
  std::replace(keys.begin(), keys.end(), ',', '\n');
  if (!api_key_path.empty()) keys += "\n" + read_file(api_key_path);
  for (size_t begin = 0; begin < keys.size();) {
    const size_t end = std::min(keys.find_first_of("\r\n", begin), keys.size());
    if (end > begin) options.api_keys.push_back(keys.substr(begin, end - begin));
    begin = end + 1;
  }
  if (options.api_keys.empty() && (!api_key.empty() || !api_key_path.empty()))
    throw UsageError("--api-key, --api-key-file: there is no key in it");
  return options;
}

std::string ServeFlags::template_source(const Tokenizer& tokenizer) const {
  if (chat_template == "chatml") return {};
  if (!chat_template.empty()) return chat_template;
  return chat_template_path.empty() ? std::string(tokenizer.chat_template()) : read_file(chat_template_path);
}

ChatDefaults ServeFlags::chat_defaults() const {
  ChatDefaults defaults;
  defaults.kwargs = Json::parse(kwargs_text, nullptr, /*allow_exceptions=*/false);
  if (!defaults.kwargs.is_object())
    throw UsageError(fmt::format("--chat-template-kwargs {}: this is no JSON object", kwargs_text));
  if (reasoning_format != "auto" && reasoning_format != "deepseek" && reasoning_format != "none")
    throw UsageError(fmt::format("--reasoning-format {}: it takes auto, deepseek or none", reasoning_format));
  defaults.parse_reasoning = reasoning_format != "none";
  return defaults;
}

/// The HTTP threads while this lives.
class Listener {
 public:
  explicit Listener(HttpServer& server) : server_(server), thread_([&server] { server.listen_after_bind(); }) {}
  ~Listener() {
    server_.close_idle();
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    server_.stop();
    thread_.join();
  }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

 private:
  HttpServer& server_;
  std::thread thread_;
};

void describe_service(const ServeFlags& flags, const Service& service) {
  const Engine& engine = service.engine();
  const auto cache_bytes = static_cast<double>(flags.cache_bytes());
  const double all = static_cast<double>(service.model().file_bytes() + engine.memory().total()) + cache_bytes;
  print_message(
      "{}{}{} answers at a time, {} may wait; {} pages of {} positions for all\n"
      "prefix cache: up to {} beside the pages; with weights and sessions {} at most\n",
      describe_run(flags.model, service.model()), describe_engine(engine), engine.options().parallel, flags.max_queue,
      engine.num_pages(), kPagePositions, format_bytes(cache_bytes), format_bytes(all));
}

// Answers that run get some time to end; then they are cut off.
void drain(Service& service, double seconds) {
  service.close();
  const Stopwatch watch;
  while (service.num_unfinished() > 0 && watch.elapsed_ms() < 1e3 * seconds)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  if (service.num_unfinished() > 0) print_message("{} answers are cut off\n", service.num_unfinished());
  service.cut();
}

}  // namespace

int run_serve(int argc, const char* const* argv) {
  ServeFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  ServeState state(flags.log_prompts);
  state.offers_metrics = !flags.no_metrics;
  state.offers_slots = !flags.no_slots;
  state.slot_save_path = flags.slot_save_path;
  HttpServer server(flags.http_options());
  server.set_gate([&state] {
    if (!state.is_ready) throw unavailable("Loading model");
  });
  add_model_routes(server, state);
  add_text_routes(server, state);
  add_generation_routes(server, state);
  add_slot_routes(server, state);
  add_unserved_routes(server);
  if (!flags.no_webui) add_page(server);
  flags.port = server.listen_on(flags.host, flags.port);
  if (flags.port < 0)
    throw InputError(fmt::format("--host {}: this address, or the port, cannot be listened on", flags.host));

  std::optional<Model> model;
  std::optional<Listener> listener(server);
  model.emplace(flags.model.load([&](const Model& header) {
    if (!flags.mtp_given && flags.model.draft_mtp && !flags.model.draft_ngram && !header.has_mtp()) flags.model.mtp = 0;
    flags.model.check_drafts(header, flags.model.mtp);
  }));
  SessionOptions session = flags.model.session_options(flags.model.mtp);
  session.stop = nullptr;  // a signal lets running answers end
  ServiceOptions options;
  const DecodeOptions decoding = flags.model.decode_options();
  options.scheduler.generator = decoding.generator();
  options.scheduler.step_ms = flags.model.step_ms;
  options.scheduler.cache_bytes = flags.cache_bytes();
  options.scheduler.checkpoint_every = flags.checkpoint_every;
  if (flags.ctx_checkpoints) options.scheduler.most_checkpoints = *flags.ctx_checkpoints * flags.model.parallel;
  options.max_queue = flags.max_queue;
  state.service = std::make_unique<Service>(*model, session, options);
  ServedModel& served = state.served;
  served.model = &*model;
  served.tokenizer = &model->tokenizer();
  served.name = flags.alias.empty() ? std::filesystem::path(model->path()).filename().string() : flags.alias;
  served.ctx_size = state.service->engine().options().ctx_size;
  served.max_drafts = flags.model.mtp;
  served.drafter = flags.model.mtp == 0 ? "none" : flags.model.draft_text;
  served.sampling = flags.model.sampling;
  if (flags.seed_given) served.seed = flags.model.sampling.seed;
  served.created = std::time(nullptr);
  state.chat.emplace(model->tokenizer(), flags.template_source(model->tokenizer()), flags.chat_defaults());
  served.marks = find_mark_tokens(model->tokenizer(), state.chat->form());
  describe_service(flags, *state.service);

  const PolledInterrupts polled;
  state.is_ready = true;
  print_message("listening on http://{}:{}\n", flags.host, flags.port);
  notify_service_manager("READY=1");
  while (!interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  notify_service_manager("STOPPING=1");
  drain(*state.service, flags.drain_s);
  listener.reset();
  state.service.reset();
  model->check_unchanged();
  return 0;
}

}  // namespace foretoken
