#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/cuda/placement.h"
#include "engine/gguf/gguf.h"
#include "engine/model/model.h"
#include "engine/model/model_config.h"
#include "engine/model/model_file.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/formats/interleave.h"
#include "tools/bench/byte_model.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/summary.h"
#include "tools/cli/terminal.h"
#include "tools/cli/version.h"
#include "tools/cluster_plan.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

using Json = nlohmann::ordered_json;

struct InspectFlags {
  ModelFlags model;
  std::string json_path;
  int64_t kv_len = 4096;
  std::optional<double> plan_vram_gib;
  std::optional<int> cluster;
  double cluster_latency_ms = 0.05, cluster_gbit = 10;

  [[nodiscard]] bool parse(int argc, const char* const* argv) {
    CommandLine line(
        "inspect", "MODEL",
        "What is in a GGUF file, what decoding a token must read from memory, and what MTP can gain on this machine.\n"
        "Reads headers only; works on files of architectures that cannot be run too.");
    line.add_positional("model-file", &model.model_path, "MODEL",
                        "GGUF file; of a split model, any part; a folder with one model");
    model.add_model_draft(line);
    line.add_int("ctx-size,c", &kv_len, 1, int64_t{1} << 24, "N", "positions of context that the byte counts assume");
    line.add_int("threads,t", &model.threads_flag, 1, ThreadTeam::kMaxThreads, "N",
                 "threads that measure the bandwidth (default all cores)");
    line.add_int("draft-vocab", &model.draft_vocab, 0, INT32_MAX, "N",
                 "head rows that drafts read; 0: all (default 16384, at most a quarter)");
    line.add_choice("kv-type", &model.kv_type_text, {"f16", "f32"}, "type of the KV cache");
    line.add_output("json", &json_path, "FILE",
                    "write everything as JSON; -: to standard output, in place of the text");
    line.section("Placement on a GPU");
    line.add_float("plan-vram", &plan_vram_gib, 0, 1e6, "GiB",
                   "plan for a GPU with so much free memory (default what this machine's has)");
    model.add_placement(line);
    line.section("Several machines");
    line.add_int("cluster", &cluster, 2, 64, "N", "what the model would cost over N machines like this one");
    line.add_float("cluster-latency", &cluster_latency_ms, 0, 1e6, "MS", "time of a short message between them");
    line.add_float("cluster-gbit", &cluster_gbit, 1e-3, 1e6, "X", "bandwidth of their network, Gbit/s");
    model.plans_alone = true;
    model.needs_mtp = true;
    line.epilogue(environment_help());
    if (!line.parse(argc, argv)) return false;
    if (model.model_path.empty()) throw UsageError("MODEL is missing: name a GGUF file");
    model.resolve(line);
    model.ctx_size = kv_len;
    return true;
  }
};

enum class TensorUse { kInterleaved, kFileLayout, kLookUp, kVector, kUnsupported };

std::string_view use_name(TensorUse use) {
  switch (use) {
    case TensorUse::kInterleaved:
      return "interleaved";
    case TensorUse::kFileLayout:
      return "file layout";
    case TensorUse::kLookUp:
      return "look-up";
    case TensorUse::kVector:
      return "vector";
    case TensorUse::kUnsupported:
      return "UNSUPPORTED";
  }
  FT_CHECK(false);
  return {};
}

TensorUse use_of(const GgufFile& file, const GgufTensor& tensor) {
  if (!tensor.type()) return TensorUse::kUnsupported;
  if (tensor.name == "token_embd.weight" && file.find_tensor("output.weight") != nullptr) return TensorUse::kLookUp;
  if (tensor.shape.size() < 2) return TensorUse::kVector;
  return can_interleave(*tensor.type(), tensor.shape[1], tensor.shape[0]) ? TensorUse::kInterleaved
                                                                          : TensorUse::kFileLayout;
}

/// All that the report says about a file, gathered first so that text and JSON agree.
struct Inspection {
  const GgufFile& file;
  std::optional<ModelConfig> config;    // nothing where not even the metadata can be used
  std::optional<ModelOutline> outline;  // nothing where the file cannot be run
  std::string refusal;                  // why it cannot be run, as `decode` says it; empty if nothing speaks against it
  std::vector<std::string> obstacles;   // all of it; the first is the refusal
  std::vector<const GgufTensor*> unsupported;
};

Inspection inspect(const GgufFile& file) {
  Inspection result{file, std::nullopt, std::nullopt, "", {}, {}};
  try {
    result.config = ModelConfig::read(file);
    result.outline = Model::outline(file);
  } catch (const InputError& error) {
    result.refusal = error.what();
    result.obstacles = Model::obstacles(file);
  }
  for (const GgufTensor& tensor : file.tensors()) {
    if (!tensor.type()) result.unsupported.push_back(&tensor);
  }
  return result;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("{}", fmt::join(shape, " x "));
}

std::string describe_config(const ModelConfig& c) {
  std::string text = fmt::format("{} trunk layers{}, hidden {}, vocabulary {}, context {}\n", c.num_layers,
                                 c.num_mtp_layers > 0 ? " and an MTP layer" : ", no MTP layer", c.hidden_dim,
                                 c.vocab_size, c.context_length);
  text += fmt::format("attention: {} heads, {} KV heads, {} wide\n", c.num_heads, c.num_kv_heads, c.head_dim);
  if (c.state_size > 0) {
    text += fmt::format("delta net: {} of the layers, {} value heads, {} key heads, {} wide\n",
                        std::count(c.recurrent.begin(), c.recurrent.end(), true), c.num_value_heads, c.num_key_heads,
                        c.state_size);
  }
  if (c.num_experts > 0) {
    text += fmt::format("experts: {} of {} a token, {} wide; shared expert {}\n", c.experts_per_token, c.num_experts,
                        c.expert_dim, c.shared_expert_dim > 0 ? fmt::format("{} wide", c.shared_expert_dim) : "none");
  }
  return text;
}

/// Why the file cannot be run, and what can be done with it.
std::string describe_refusal(const Inspection& inspection) {
  constexpr size_t kMostLines = 20;
  std::string text = fmt::format("\nThis file cannot be run: {}\n", inspection.refusal);
  const std::vector<std::string>& all = inspection.obstacles;
  for (size_t i = 1; i < std::min(all.size(), kMostLines); ++i) text += fmt::format("  and {}\n", all[i]);
  if (all.size() > kMostLines) text += fmt::format("  and {} more of the kind\n", all.size() - kMostLines);
  if (inspection.config && inspection.config->num_mtp_layers > 0) {
    const std::string mtp = fmt::format(" blk.{}.", inspection.config->num_layers);
    const bool mtp_alone = std::all_of(all.begin(), all.end(),
                                       [&](const std::string& line) { return line.find(mtp) != std::string::npos; });
    if (mtp_alone) text += "All of it is about the MTP layer: a file without that layer would run.\n";
  }
  try {
    (void)Tokenizer::load(inspection.file);
    text += "What runs: foretoken tokenize.\n";
  } catch (const InputError&) {
    text += "Nothing else runs with it either: its vocabulary cannot be read.\n";
  }
  return text;
}

std::string describe_tensors(const Inspection& inspection) {
  size_t width = 6;
  for (const GgufTensor& tensor : inspection.file.tensors()) width = std::max(width, tensor.name.size());
  std::string text;
  std::map<std::string, std::pair<int64_t, double>> by_type;
  for (const GgufTensor& tensor : inspection.file.tensors()) {
    const std::string type = tensor_type_name(tensor.type_id);
    text += fmt::format("{:<{}}  {:<8} {:>24}  {:>9}  {}\n", tensor.name, width, type, shape_text(tensor.shape),
                        tensor.type() ? format_bytes(static_cast<double>(tensor.size_bytes)) : "?",
                        use_name(use_of(inspection.file, tensor)));
    by_type[type].first += 1;
    by_type[type].second += static_cast<double>(tensor.size_bytes);
  }
  text += "\n";
  for (const auto& [type, sum] : by_type)
    text += fmt::format("{:<8} {:>5} tensors  {:>9}\n", type, sum.first, format_bytes(sum.second));
  return text;
}

std::vector<std::pair<std::string_view, double>> parts_of(const PassBytes& bytes) {
  return {{"routed_experts", bytes.routed_experts},
          {"shared_expert_and_routers", bytes.shared_and_routers},
          {"delta_net_projections", bytes.delta_net_projections},
          {"delta_net_state", bytes.delta_net_state},
          {"attention_projections", bytes.attention_projections},
          {"kv", bytes.kv},
          {"head", bytes.head}};
}

/// Byte counts and ideal speed-ups of a model that can be run.
struct Costs {
  Costs(const ModelOutline& outline, const InspectFlags& flags, double bandwidth)
      : config(outline.config),
        bytes(outline.weights, config),
        flags(flags),
        bandwidth(bandwidth),
        kv_len(std::min(flags.kv_len, config.context_length)),
        draft_rows(flags.model.draft_rows(config) == 0 ? config.vocab_size
                                                       : std::min(flags.model.draft_rows(config), config.vocab_size)) {}

  [[nodiscard]] PassBytes pass(double distinct_experts) const {
    return bytes.trunk_pass(distinct_experts, static_cast<double>(kv_len), flags.model.kv_type);
  }
  [[nodiscard]] double draft(int64_t draft_vocab) const {
    return bytes.draft_step(draft_vocab, static_cast<double>(kv_len), flags.model.kv_type);
  }
  [[nodiscard]] double speedup(int k, double distinct_experts, int64_t draft_vocab) const {
    return ideal_speedup(bytes, k, published_acceptance_length(k), distinct_experts, draft_vocab,
                         static_cast<double>(kv_len), flags.model.kv_type);
  }
  [[nodiscard]] double tokens_per_second() const { return bandwidth / pass(1).total(); }

  const ModelConfig& config;
  ByteModel bytes;
  const InspectFlags& flags;
  double bandwidth;
  int64_t kv_len;      // not beyond the model's context
  int64_t draft_rows;  // head rows that a draft reads
};

std::string describe_costs(const Costs& costs) {
  const PassBytes one = costs.pass(1);
  std::string text = fmt::format("\nread for one token at {} positions of context:\n", costs.kv_len);
  for (const auto& [name, bytes] : parts_of(one)) {
    if (bytes > 0)
      text += fmt::format("  {:<26} {:>9}  {:>3.0f}%\n", name, format_bytes(bytes), 100 * bytes / one.total());
  }
  text += fmt::format("  {:<26} {:>9}\n", "one token", format_bytes(one.total()));
  text += fmt::format("read bandwidth here, {}, {:.1f} GB/s: at most {:.1f} tok/s without MTP\n",
                      describe_threads(costs.flags.model.threads, costs.flags.model.nodes), costs.bandwidth / 1e9,
                      costs.tokens_per_second());

  text +=
      "\nread by a window of n tokens, where neighbours route independently / with the overlap published for "
      "Qwen3-30B-A3B:\n";
  for (int n = 2; n <= kMaxDraft + 1; ++n) {
    const double independent = independent_overlap(costs.config, n);
    const double published = published_overlap(costs.config, n);
    text += fmt::format("  n={}  U(n) {:.2f} / {:.2f}  {:>9} / {:>9}\n", n, independent, published,
                        format_bytes(costs.pass(independent).total()), format_bytes(costs.pass(published).total()));
  }
  if (costs.config.num_mtp_layers == 0)
    return text + fmt::format("\n--mtp cannot gain anything here: {}\n", costs.config.mtp_absence);

  const int64_t draft_vocab = costs.draft_rows;
  text += fmt::format("\none draft reads {} with the full head, {} with one of {} rows\n", format_bytes(costs.draft(0)),
                      format_bytes(costs.draft(draft_vocab)), draft_vocab);
  text += fmt::format(
      "most that --mtp can gain if acceptance is as published for Qwen3.6-35B-A3B (tok/s at the bandwidth measured):\n"
      "  {:<3} {:>5}  {:>22}  {:>22}\n",
      "k", "AL", "independent routing", "published overlap");
  for (int k = 1; k <= kMaxDraft; ++k) {
    const double independent = costs.speedup(k, independent_overlap(costs.config, k + 1), draft_vocab);
    const double published = costs.speedup(k, published_overlap(costs.config, k + 1), draft_vocab);
    text += fmt::format("  {:<3} {:>5.2f}  {:>6.2f} {:>9.1f} tok/s  {:>6.2f} {:>9.1f} tok/s\n", k,
                        published_acceptance_length(k), independent, independent * costs.tokens_per_second(), published,
                        published * costs.tokens_per_second());
  }
  return text;
}

Json costs_json(const Costs& costs) {
  Json object;
  const PassBytes one = costs.pass(1);
  object["kv_len"] = costs.kv_len;
  for (const auto& [name, bytes] : parts_of(one)) object["bytes_per_token"][std::string(name)] = bytes;
  object["bytes_per_token"]["total"] = one.total();
  object["bandwidth_gb_per_s"] = costs.bandwidth / 1e9;
  object["ideal_tokens_per_second"] = costs.tokens_per_second();
  for (int n = 1; n <= kMaxDraft + 1; ++n) {
    const double independent = independent_overlap(costs.config, n);
    const double published = published_overlap(costs.config, n);
    object["bytes_per_window"].push_back({{"rows", n},
                                          {"distinct_experts_independent", independent},
                                          {"bytes_independent", costs.pass(independent).total()},
                                          {"distinct_experts_published", published},
                                          {"bytes_published", costs.pass(published).total()}});
  }
  if (costs.config.num_mtp_layers == 0) return object;
  const int64_t draft_vocab = costs.draft_rows;
  object["bytes_per_draft"] = {
      {"full_head", costs.draft(0)}, {"draft_vocab", costs.draft(draft_vocab)}, {"draft_vocab_rows", draft_vocab}};
  for (int k = 1; k <= kMaxDraft; ++k) {
    const double independent = independent_overlap(costs.config, k + 1);
    const double published = published_overlap(costs.config, k + 1);
    object["ideal_speedup"].push_back({{"k", k},
                                       {"acceptance_length", published_acceptance_length(k)},
                                       {"independent_full_head", costs.speedup(k, independent, 0)},
                                       {"independent_draft_vocab", costs.speedup(k, independent, draft_vocab)},
                                       {"published_full_head", costs.speedup(k, published, 0)},
                                       {"published_draft_vocab", costs.speedup(k, published, draft_vocab)}});
  }
  return object;
}

/// What would lie where with --device split.
struct Plan {
  std::optional<ModelSizes> sizes;
  std::optional<Placement> placement;
  MachineSpeed speed;
  std::string refusal;  // why there is none
};

Plan make_plan(const ModelOutline& outline, const InspectFlags& flags, double bandwidth) {
  const ModelConfig& config = outline.config;
  Plan plan;
  const std::string missing = cuda::query_device().reason;
  if (!flags.plan_vram_gib && !missing.empty()) {
    plan.refusal = missing + " (--plan-vram GiB plans for one that has so much free memory)";
    return plan;
  }
  ModelFlags model = flags.model;
  model.ctx_size = std::min(flags.kv_len, config.context_length);
  plan.sizes = ModelSizes::of(outline.weights, config);
  plan.speed.host = bandwidth;
  if (!flags.plan_vram_gib) plan.speed = measure_speed(bandwidth);
  const size_t free_bytes =
      flags.plan_vram_gib ? static_cast<size_t>(*flags.plan_vram_gib * (1 << 30)) : cuda::free_memory_bytes();
  try {
    plan.placement = plan_placement(*plan.sizes, model.placement_request(outline.weights, config, free_bytes));
  } catch (const InputError& error) {
    plan.refusal = error.what();
  }
  return plan;
}

std::string describe_plan(const Plan& plan) {
  if (!plan.placement) return fmt::format("\nno placement: {}\n", plan.refusal);
  return "\n" + describe(*plan.placement, *plan.sizes, plan.speed);
}

Json plan_json(const Plan& plan) {
  Json object;
  object["refusal"] = plan.refusal.empty() ? Json(nullptr) : Json(plan.refusal);
  if (!plan.placement) return object;
  const Placement& p = *plan.placement;
  object["free_bytes"] = p.free_bytes;
  object["device_bytes"] = p.device_bytes();
  object["trunk_bytes"] = p.dense_bytes;
  object["mtp_bytes"] = p.mtp_bytes;
  object["session_bytes"] = p.session_bytes;
  object["expert_bytes"] = p.expert_bytes;
  object["cache_bytes"] = p.cache_bytes;
  object["host_bytes"] = p.host_bytes;
  object["gpu_experts_by_layer"] = p.experts;
  object["cache_entries"] = p.cache_entries;
  object["device_bytes_per_token"] = p.device_bytes_per_token;
  object["host_bytes_per_token"] = p.host_bytes_per_token;
  object["bus_bytes_per_token"] = p.bus_bytes_per_token;
  const std::optional<double> token_ms = expected_time(p, *plan.sizes, plan.speed).token_ms;
  object["token_ms"] = token_ms ? Json(*token_ms) : Json(nullptr);
  return object;
}

Json file_json(const Inspection& inspection, const std::string& architecture) {
  Json object;
  object["path"] = inspection.file.path();
  object["model_sha256"] = inspection.file.fingerprint();
  object["file_bytes"] = inspection.file.size_bytes();
  object["repack_version"] = inspection.file.is_repacked() ? Json(kRepackVersion) : Json(nullptr);
  object["architecture"] = architecture;
  object["can_run"] = inspection.refusal.empty();
  object["refusal"] = inspection.refusal.empty() ? Json(nullptr) : Json(inspection.refusal);
  object["obstacles"] = inspection.obstacles;
  if (inspection.config) {
    const ModelConfig& c = *inspection.config;
    object["name"] = c.name;
    object["layers"] = c.num_layers;
    object["mtp_layers"] = c.num_mtp_layers;
    object["recurrent_layers"] = std::count(c.recurrent.begin(), c.recurrent.end(), true);
    object["hidden_dim"] = c.hidden_dim;
    object["vocab_size"] = c.vocab_size;
    object["context_length"] = c.context_length;
    object["experts"] = c.num_experts;
    object["experts_per_token"] = c.experts_per_token;
  }
  object["tensors"] = Json::array();
  for (const GgufTensor& tensor : inspection.file.tensors()) {
    Json item;
    item["name"] = tensor.name;
    item["type"] = tensor_type_name(tensor.type_id);
    item["shape"] = tensor.shape;
    item["bytes"] = tensor.size_bytes;
    item["supported"] = tensor.type().has_value();
    item["layout"] = use_name(use_of(inspection.file, tensor));
    object["tensors"].push_back(std::move(item));
  }
  object["unsupported_tensors"] = Json::array();
  for (const GgufTensor* tensor : inspection.unsupported) object["unsupported_tensors"].push_back(tensor->name);
  return object;
}

ClusterSpeed network_of(const InspectFlags& flags, double memory_bandwidth) {
  return {flags.cluster_latency_ms * 1e-3, flags.cluster_gbit * 1e9 / 8, memory_bandwidth};
}

}  // namespace

int run_inspect(int argc, const char* const* argv) {
  InspectFlags flags;
  if (!flags.parse(argc, argv)) return 0;
  OutputFile json_file(flags.json_path, "--json");
  const ModelFile opened = open_model(flags.model.model_path, flags.model.mtp_path);
  const GgufFile& file = opened.file;
  const Inspection inspection = inspect(file);
  const std::string architecture(file.get_string("general.architecture", "unknown"));

  std::optional<Costs> costs;
  std::optional<Plan> plan;
  if (inspection.outline) {
    const double bandwidth = flags.model.measure_bandwidth();
    costs.emplace(*inspection.outline, flags, bandwidth);
    plan = make_plan(*inspection.outline, flags, bandwidth);
  }

  if (!json_file.is_stdout()) {
    std::string text = fmt::format("{}: {}{}{}, {}, {} tensors\n", file.path(), architecture,
                                   inspection.config && !inspection.config->name.empty() ? ", " : "",
                                   inspection.config ? inspection.config->name : "",
                                   format_bytes(static_cast<double>(file.size_bytes())), file.tensors().size());
    if (file.is_repacked()) {
      text += fmt::format("repacked for this program, layout version {}, from a file with model_sha256 {}\n",
                          kRepackVersion, file.fingerprint());
    }
    if (inspection.config) text += describe_config(*inspection.config);
    if (!opened.mtp_path.empty()) text += fmt::format("MTP layer: {}\n", opened.mtp_path);
    if (!opened.passed.empty()) text += fmt::format("MTP layer: {}\n", opened.passed);
    text += "\n" + describe_tensors(inspection);
    if (costs) text += describe_costs(*costs);
    if (plan) text += describe_plan(*plan);
    if (costs && flags.cluster)
      text += describe_cluster_costs(*inspection.outline, *flags.cluster, network_of(flags, costs->bandwidth));
    if (!inspection.refusal.empty()) text += describe_refusal(inspection);
    ResultStream().write(text);
  }
  Json object = file_json(inspection, architecture);
  object["model_draft"] = opened.mtp_path.empty() ? Json(nullptr) : Json(opened.mtp_path);
  if (costs) object.update(costs_json(*costs));
  if (plan) object["placement"] = plan_json(*plan);
  if (costs && flags.cluster)
    object["cluster"] = cluster_costs_json(*inspection.outline, *flags.cluster, network_of(flags, costs->bandwidth));
  write_json(json_file, object);
  return 0;
}

}  // namespace foretoken
