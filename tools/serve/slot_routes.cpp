#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "kernels/base/error.h"
#include "mtp/stopwatch.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/serve/routes.h"

namespace foretoken {

namespace {

constexpr size_t kMostNameBytes = 128;

/// The path of a saved slot: a plain name below --slot-save-path and nothing else.
std::string path_of(const ServeState& state, const Fields& fields, std::string& name) {
  name = fields.text("filename").value_or("");
  const bool is_plain = !name.empty() && name.size() <= kMostNameBytes && name[0] != '.' &&
                        std::all_of(name.begin(), name.end(), [](unsigned char c) {
                          return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                                 c == '.' || c == '_' || c == '-';
                        });
  if (!is_plain)
    fields.fail("filename", fmt::format("a name of 1 to {} letters, digits and . _ - is needed", kMostNameBytes));
  return (std::filesystem::path(state.slot_save_path) / name).string();
}

Json save(ServeState& state, int slot, const std::string& path, const std::string& name) {
  const Stopwatch watch;
  std::vector<std::byte> bytes;
  int64_t num_tokens = 0;
  state.service->between_steps(
      [&](Scheduler& scheduler, const std::vector<const Answer*>&) { bytes = scheduler.save_text(slot, &num_tokens); });
  OutputFile file(path, "--slot-save-path");
  file.write({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  file.commit();
  return {{"id_slot", slot},
          {"filename", name},
          {"n_saved", num_tokens},
          {"n_written", bytes.size()},
          {"timings", {{"save_ms", watch.elapsed_ms()}}}};
}

Json restore(ServeState& state, int slot, const std::string& path, const std::string& name) {
  const Stopwatch watch;
  if (!std::filesystem::is_regular_file(path))
    throw invalid_request(fmt::format("there is no saved text \"{}\"", name));
  const std::string bytes = read_file(path);
  int64_t num_tokens = 0;
  state.service->between_steps([&](Scheduler& scheduler, const std::vector<const Answer*>&) {
    num_tokens = scheduler.restore_text(slot, std::as_bytes(std::span(bytes)));
  });
  return {{"id_slot", slot},
          {"filename", name},
          {"n_restored", num_tokens},
          {"n_read", bytes.size()},
          {"timings", {{"restore_ms", watch.elapsed_ms()}}}};
}

Json erase(ServeState& state, int slot) {
  int64_t num_tokens = 0;
  state.service->between_steps(
      [&](Scheduler& scheduler, const std::vector<const Answer*>&) { num_tokens = scheduler.erase_text(slot); });
  return {{"id_slot", slot}, {"n_erased", num_tokens}};
}

}  // namespace

void add_slot_routes(HttpServer& server, ServeState& state) {
  server.Post(R"(/slots/(\d{1,6}))", [&state](const httplib::Request& request, httplib::Response& response) {
    if (state.slot_save_path.empty()) throw not_supported("slots are not saved here; start with --slot-save-path");
    const int slot = std::stoi(request.matches[1]);
    if (slot >= state.service->engine().options().parallel)
      throw invalid_request(fmt::format("there is no slot {}", slot));
    const std::string action = request.get_param_value("action");
    if (action == "erase") {
      answer_json(response, erase(state, slot));
      return;
    }
    if (action != "save" && action != "restore")
      throw invalid_request(fmt::format("\"action\": \"{}\" is none of save, restore, erase", action));
    const Json body = parse_body(request.body);
    std::string name;
    const std::string path = path_of(state, Fields(body), name);
    answer_json(response, action == "save" ? save(state, slot, path, name) : restore(state, slot, path, name));
  });
}

}  // namespace foretoken
