#include "tools/cli/model_flags.h"
#include "engine/session_memory.h"
#include "mtp/generator.h"
#include "tools/cli/summary.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "engine/machine.h"
#include "engine/model/model_file.h"
#include "kernels/base/error.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/fetch_list.h"
#include "kernels/threads/thread_team.h"
#include "tools/cli/cluster_program.h"
#include "tools/cli/interruption.h"
#include "tools/cli/terminal.h"

namespace foretoken {

namespace {

// Far beyond every model's context: a limit against slips of the finger; the memory check says what really fits.
constexpr int64_t kMaxContext = int64_t{1} << 24;

}  // namespace

Environment read_environment() {
  Environment environment = Environment::read();
  for (const std::string& setting : environment.set) print_message("environment: {}\n", setting);
  return environment;
}

std::string_view environment_help() {
  return "Environment (read once at start; a flag wins over it):\n"
         "  FORETOKEN_MOE_VERIFY=grouped|per-token  how a window's experts are computed (default grouped)\n"
         "  FORETOKEN_ISA=scalar|avx2|avx512        instruction set (default the best this processor has)\n"
         "  FORETOKEN_THREADS=N                     threads, where -t is not given (default all cores)\n"
         "  FORETOKEN_NUMA=on|off                   lay threads and weights over the nodes of memory (default on)\n"
         "  FORETOKEN_CUDA_DEPENDENT_LAUNCH=on|off  GPU kernels may start before those ahead have ended (default on)\n";
}

void ModelFlags::add_model(CommandLine& line) {
  line.add_text("model,m", &model_path, "MODEL", "GGUF file; of a split model, any part; a folder with one model");
}

void ModelFlags::add_model_draft(CommandLine& line) {
  line.add_text("model-draft", &mtp_path, "FILE",
                "GGUF file with the MTP layer, where the model's own has none (default: mtp-*.gguf beside it)");
}

void ModelFlags::add_session(CommandLine& line) {
  line.section("Run");
  line.add_int("ctx-size,c", &ctx_size, 0, kMaxContext, "N", "positions of context; 0: the model's own, at most 4096");
  line.add_int("threads,t", &threads_flag, 1, ThreadTeam::kMaxThreads, "N",
               "threads (default FORETOKEN_THREADS, else all cores)");
  line.add_int("prompt-chunk", &prompt_chunk, 1, 1 << 16, "N", "prompt tokens of one pass");
  line.add_switch("no-repack", &no_repack,
                  "compute from the file's own layout: starts at once, decodes slower, same bits");
  line.add_choice("kv-type", &kv_type_text, {"f16", "f32"}, "type of the KV cache");
  line.add_choice("device", &device_text, {"cpu", "cuda", "split"},
                  "where to run; split: routed experts on the CPU where they do not fit on the GPU");
  if (offers_cublas) {
    line.add_switch("cublas", &cublas,
                    "cuda, split: F16 and BF16 matrices by cuBLAS; the text is then the same for any --mtp and "
                    "--prompt-chunk, but not the CPU's");
  }
  add_placement(line);
  add_cluster(line);
}

void ModelFlags::add_cluster(CommandLine& line) {
  line.add_choice("cluster", &cluster_text, {"rows", "experts", "layers"},
                  "under mpirun, what the processes share out: rows of every matrix; experts: routed experts whole, "
                  "the rest by rows; layers: whole layers, for slow networks. Same bits");
  line.add_text("cluster-shares", &cluster_shares_text, "A:B:..|auto",
                "under mpirun, how much of the work each process takes; auto: by its memory bandwidth");
}

void ModelFlags::add_batch(CommandLine& line) {
  line.section("Several texts");
  line.add_int("parallel", &parallel, 1, 256, "N", "texts that are continued at a time");
  line.add_text("kv-memory", &kv_memory_text, "SIZE",
                "memory for keys and values of all texts, as 800M or 4G; who finds no room waits (default: a whole "
                "context for each)");
  line.add_float("step-ms", &step_ms, 1, 1e6, "X",
                 "time of a step that reading prompts may fill up beside running texts");
}

void ModelFlags::add_placement(CommandLine& line) {
  line.add_text("gpu-experts", &gpu_experts_text, "N|auto",
                "split: routed experts of each layer on the GPU; auto: whole layers, as many as fit");
  line.add_int("gpu-layers", &gpu_layers, 0, INT32_MAX, "N",
               "split: only the first N layers may have routed experts on the GPU (default all)");
  line.add_text("gpu-cache", &gpu_cache_text, "N|auto",
                "split: hot experts of each other layer that the GPU keeps beside them");
  line.add_text(
      "gpu-fetch", &gpu_fetch_text, "N|auto",
      "split: experts that a layer of a pass misses and the GPU reads from RAM itself, 0 to 8; auto: as the measured "
      "times suggest");
}

void ModelFlags::add_draft(CommandLine& line) {
  line.add_choice("draft", &draft_text, {"mtp", "ngram", "ngram,mtp"},
                  "who drafts: the MTP layer; ngram: the text's own past, which any model has (most drafts: --mtp K, "
                  "else 8); ngram,mtp: the past where it has an answer, else the MTP layer");
}

void ModelFlags::check_drafts(const Model& model, int most) const {
  if (draft_mtp) check_mtp(model, most);
}

void ModelFlags::add_mtp(CommandLine& line) {
  line.section("Multi-token prediction");
  line.add_text(
      "mtp", &mtp_text, "auto", "K",
      fmt::format("drafts a window at most, 0 to {}; without a number: up to {}, as the controller finds best",
                  kMaxDraft, kMaxDraft));
  line.add_switch("mtp-fixed", &mtp_fixed, "always draft K tokens: no controller");
  line.add_int("draft-vocab", &draft_vocab, 0, INT32_MAX, "N",
               "head rows that drafts read; 0: all (default 16384, at most a quarter)");
  add_model_draft(line);
}

void ModelFlags::add_sampling(CommandLine& line) {
  line.section("Sampling");
  line.add_float("temp", &sampling.temperature, 0, 1e3, "X", "temperature; 0: greedy");
  line.add_int("top-k", &sampling.top_k, 0, INT32_MAX, "N", "keep the N most likely tokens; 0: all");
  line.add_float("typical-p", &sampling.typical_p, 1e-6, 1, "X",
                 "keep the tokens of most typical surprise that reach this probability together");
  line.add_float("top-p", &sampling.top_p, 1e-6, 1, "X",
                 "keep the likeliest tokens that reach this probability together");
  line.add_float("min-p", &sampling.min_p, 0, 1, "X", "keep tokens with this share of the likeliest one's probability");
  line.add_seed("seed", &sampling.seed, "the same seed gives the same text");
}

void ModelFlags::add_to(CommandLine& line) {
  add_model(line);
  add_session(line);
  add_mtp(line);
  add_sampling(line);
  line.epilogue(environment_help());
}

void ModelFlags::resolve(const CommandLine& line) {
  ctx_flag = line.typed("ctx-size");
  if (model_path.empty()) throw UsageError("-m MODEL is missing: name a GGUF file");
  mtp = parse_mtp("--mtp", mtp_text);
  draft_mtp = draft_text != "ngram";
  draft_ngram = draft_text != "mtp";
  // Who names a drafter wants drafts.
  if (draft_ngram && !line.given("mtp")) mtp = kMaxDraft;
  if (mtp_fixed && mtp_text == "auto")
    throw UsageError("--mtp-fixed: needs a number of drafts, as in --mtp 3 --mtp-fixed");
  if (!kv_memory_text.empty()) kv_memory_bytes = parse_size("--kv-memory", kv_memory_text);
  sampling.check();
  kv_type = kv_type_text == "f32" ? KvType::kF32 : KvType::kF16;
  environment = read_environment();
  threads = threads_flag ? *threads_flag : environment.threads ? *environment.threads : available_cores();
  if (environment.numa.value_or(true)) nodes = NumaNodes::of_machine();
  device = device_text == "cpu" ? Device::kCpu : device_text == "cuda" ? Device::kCuda : Device::kSplit;
  const bool places_experts = parse_experts("--gpu-experts", gpu_experts_text) || gpu_layers ||
                              parse_experts("--gpu-cache", gpu_cache_text) ||
                              parse_experts("--gpu-fetch", gpu_fetch_text, cuda::kMostFetched);
  if (places_experts && device != Device::kSplit && !plans_alone) {
    throw UsageError(fmt::format(
        "--gpu-experts, --gpu-layers, --gpu-cache and --gpu-fetch belong to --device split, not to {}", device_text));
  }
  if (cublas && device == Device::kCpu) throw UsageError("--cublas belongs to --device cuda and split, not to cpu");
  cluster.mode = cluster_text == "rows"      ? ClusterMode::kRows
                 : cluster_text == "experts" ? ClusterMode::kExperts
                                             : ClusterMode::kLayers;
  cluster.shares = parse_cluster_shares(cluster_shares_text);
  if (program_cluster() != nullptr) {
    if (device != Device::kCpu)
      throw UsageError(fmt::format("--device {}: several processes compute on their CPUs", device_text));
    const int num_ranks = program_cluster()->num_ranks();
    if (!cluster.shares.empty() && static_cast<int>(cluster.shares.size()) != num_ranks) {
      throw UsageError(fmt::format("--cluster-shares {}: has {} numbers; mpirun has started {} processes",
                                   cluster_shares_text, cluster.shares.size(), num_ranks));
    }
  } else if (!plans_alone && (line.given("cluster") || line.given("cluster-shares"))) {
    throw UsageError("--cluster and --cluster-shares belong to several processes, as in mpirun -n 2 foretoken ...");
  }
  check_device(device_text);
  if (cublas) cuda::require_blas();
}

PlacementRequest ModelFlags::placement_request(const BasicModelWeights<MatrixView>& weights, const ModelConfig& config,
                                               size_t free_bytes) const {
  SessionOptions session = session_options(mtp);
  session.with_mtp = config.num_mtp_layers > 0 && (mtp > 0 || needs_mtp);
  if (needs_mtp) session.max_window = kMaxDraft + 1;
  if (session.ctx_size == 0) session.ctx_size = std::min(config.context_length, kDefaultContext);
  PlacementRequest request;
  request.free_bytes = free_bytes;
  request.reserve_bytes = kDeviceReserveBytes;
  request.whole_model = device == Device::kCuda;
  request.gpu_experts = parse_experts("--gpu-experts", gpu_experts_text);
  request.gpu_layers = gpu_layers;
  request.cache_entries = parse_experts("--gpu-cache", gpu_cache_text);
  request.with_mtp = session.with_mtp;
  request.ctx_size = session.ctx_size;
  if (session.device == Device::kCpu) session.device = Device::kSplit;  // a plan of what would be
  request.session = session_memory(weights, config, session);
  return request;
}

void ModelFlags::plan_memory(const Model& header) const {
  const SessionOptions options = with_defaults(header.config(), session_options(mtp));
  const SessionMemory planned = session_memory(header.weights(), header.config(), options);
  const size_t drafters = drafter_bytes(header.config(), options, decode_options().generator());
  print_message("{}", describe_memory(options, planned, drafters));
  const auto gib = [](size_t bytes) { return static_cast<double>(bytes) / (1 << 30); };
  const size_t weights = header.weights().bytes_to_load, available = available_memory_bytes();
  const size_t session = (device == Device::kCpu ? planned.total() : planned.host_bytes) + drafters;
  if (weights + session <= available || weights > available) return;  // too large a model: the loader says so
  throw InputError(fmt::format(
      "{}: the weights need {:.2f} GiB and a context of {} positions {:.2f} GiB; {:.2f} GiB of memory are available; "
      "choose a smaller --ctx-size{}",
      header.path(), gib(weights), options.ctx_size, gib(session), gib(available),
      parallel > 1 ? ", --parallel or --kv-memory" : ""));
}

int64_t ModelFlags::most_positions(const ModelConfig& config, bool takes_what_it_needs) const {
  if (ctx_size > 0) return std::min(ctx_size, config.context_length);
  return takes_what_it_needs ? config.context_length : std::min(config.context_length, kDefaultContext);
}

void ModelFlags::check_room(const ModelConfig& config, std::string_view source, size_t prompt_tokens,
                            bool takes_what_it_needs, std::string_view shorten) const {
  const int64_t positions = most_positions(config, takes_what_it_needs);
  const auto num_tokens = static_cast<int64_t>(prompt_tokens);
  if (num_tokens < positions) return;
  if (num_tokens >= config.context_length) {
    throw InputError(fmt::format("{}: {}, all positions that this model was made for; {}", source,
                                 no_room_in_context(num_tokens, config.context_length), shorten));
  }
  throw InputError(fmt::format("{}: {}; raise --ctx-size (this model: up to {}), or {}", source,
                               no_room_in_context(num_tokens, positions), config.context_length, shorten));
}

Model ModelFlags::load(const std::function<void(const Model&)>& check) {
  if (device != Device::kCpu) {
    const ModelFile opened = open_model(model_path, mtp_path);
    const GgufFile& file = opened.file;
    const ModelOutline outline = Model::outline(file);
    const ModelSizes sizes = ModelSizes::of(outline.weights, outline.config);
    check_same_file(file.fingerprint());
    placement = plan_placement(sizes, placement_request(outline.weights, outline.config, cuda::free_memory_bytes()));
    print_message("{}", describe(*placement, sizes, measure_speed(measure_bandwidth())));
  }
  LoadOptions options;
  options.mtp_path = mtp_path;
  options.repack = !no_repack;
  options.nodes = nodes;
  options.on_header = [&](const Model& model) {
    if (ctx_size > model.config().context_length) {
      throw InputError(fmt::format("{} is more than the {} positions that {} was made for",
                                   value_in_message(ctx_flag, "ctx-size", std::to_string(ctx_size)),
                                   model.config().context_length, model.path()));
    }
    if (check) check(model);
  };
  Model model = [&] {
    ProgressBar bar("loading", Unit::kBytes);
    options.progress = [&bar](size_t done, size_t all) { bar.show(done, all); };
    Cluster* const processes = program_cluster();
    return processes == nullptr ? Model::load(model_path, options) : processes->load(model_path, options, cluster);
  }();
  if (program_cluster() != nullptr) print_message("{}", describe_cluster(*program_cluster(), model));
  check_same_file(model.fingerprint());
  if (!model.mtp_path().empty()) print_message("MTP layer: {}\n", model.mtp_path());
  for (const std::string& note : model.notes()) print_message("{}: {}\n", model_path, note);
  return model;
}

void ModelFlags::check_same_file(const std::string& found) {
  if (fingerprint.empty()) fingerprint = found;
  if (fingerprint == found) return;
  throw InputError(fmt::format("{}: another file took its place while it was in use; start again", model_path));
}

SessionOptions ModelFlags::session_options(int mtp) const {
  SessionOptions options;
  options.ctx_size = ctx_size;
  options.kv_type = kv_type;
  options.prompt_chunk = prompt_chunk;
  options.max_window = mtp + 1;
  options.parallel = parallel;
  options.kv_memory_bytes = kv_memory_bytes;
  options.stop = &interrupted();
  options.with_mtp = mtp > 0 && draft_mtp;
  options.moe_verify = moe_verify();
  options.isa = isa();
  options.threads = threads;
  options.nodes = nodes;
  options.device = device;
  options.cublas = cublas;
  options.dependent_launch = environment.dependent_launch.value_or(true);
  options.cluster = program_cluster();
  if (device == Device::kSplit && placement)
    options.split = {
        placement->experts, placement->cache_entries,
        parse_experts("--gpu-fetch", gpu_fetch_text, cuda::kMostFetched).value_or(SplitOptions::kMeasured)};
  return options;
}

int64_t ModelFlags::draft_rows(const ModelConfig& config) const {
  return draft_vocab ? *draft_vocab : auto_draft_vocab(config.vocab_size);
}

DecodeOptions ModelFlags::decode_options() const {
  DecodeOptions options;
  options.mtp = mtp;
  options.controller = !mtp_fixed;
  options.draft_vocab = draft_vocab.value_or(kAutoDraftVocab);
  options.draft_mtp = draft_mtp;
  options.draft_ngram = draft_ngram;
  options.sampling = sampling;
  return options;
}

double ModelFlags::measure_bandwidth() const {
  ThreadTeam team(threads, nodes);
  return measure_read_bandwidth(team);
}

double ModelFlags::measure_run_bandwidth() const {
  return device == Device::kCpu ? measure_bandwidth() : cuda::measure_bandwidth().device;
}

int parse_mtp(std::string_view what, std::string_view text) {
  if (text == "auto") return kMaxDraft;
  return static_cast<int>(parse_int(what, text, 0, kMaxDraft));
}

std::vector<double> parse_cluster_shares(std::string_view text) {
  std::vector<double> shares;
  if (text == "auto") return shares;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(':', begin), text.size());
    shares.push_back(static_cast<double>(parse_int("--cluster-shares", text.substr(begin, end - begin), 1, 1000000)));
    begin = end + 1;
  }
  return shares;
}

std::optional<int> parse_experts(std::string_view what, std::string_view text, int most) {
  if (text == "auto") return std::nullopt;
  return static_cast<int>(parse_int(what, text, 0, most));
}

MachineSpeed measure_speed(double host_bandwidth) {
  MachineSpeed speed;
  speed.host = host_bandwidth;
  if (!cuda::query_device().device) return speed;
  const cuda::DeviceBandwidth measured = cuda::measure_bandwidth();
  speed.device = measured.device;
  speed.bus = measured.bus;
  return speed;
}

std::string_view moe_verify_name(MoeVerify moe_verify) {
  return moe_verify == MoeVerify::kGrouped ? "grouped" : "per-token";
}

std::string cuda_missing() {
  return cuda::query_device().reason;
}

void check_device(std::string_view device) {
  if (device == "cpu") return;
  const std::string missing = cuda_missing();
  if (!missing.empty()) throw InputError(fmt::format("--device {}: {}", device, missing));
}

}  // namespace foretoken
