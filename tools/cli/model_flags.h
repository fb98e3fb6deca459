#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "engine/cluster/cluster.h"
#include "engine/cuda/placement.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "mtp/decoder.h"
#include "mtp/scheduler.h"
#include "tools/cli/command_line.h"

namespace foretoken {

/// The environment, read once; variables that are set are printed to stderr, so that a log says what a run depended on.
[[nodiscard]] Environment read_environment();

/// Text for the end of --help: the environment variables with their defaults.
[[nodiscard]] std::string_view environment_help();

/// The flags that decode, eval, bench and selfcheck share. Declare them with the add_ functions, then after parse()
/// call resolve().
struct ModelFlags {
  std::string model_path;
  std::string mtp_path;                 // --model-draft
  int64_t ctx_size = 0;                 // 0: the model's own, at most 4096
  std::string ctx_flag = "--ctx-size";  // as it was typed
  std::optional<int> threads_flag;
  int threads = 0;  // of -t, else FORETOKEN_THREADS, else all cores
  NumaNodes nodes;  // that they are laid over; one with FORETOKEN_NUMA=off
  std::string mtp_text = "0";
  int mtp = 0;  // of mtp_text
  bool mtp_fixed = false;
  std::string draft_text = "mtp";
  bool draft_mtp = true, draft_ngram = false;  // of draft_text
  std::optional<int> draft_vocab;              // nothing: auto_draft_vocab()
  SamplingOptions sampling;
  int prompt_chunk = SessionOptions().prompt_chunk;
  int parallel = 1;  // texts at a time
  std::string kv_memory_text;
  size_t kv_memory_bytes = 0;  // of kv_memory_text; 0: a whole context for each text
  double step_ms = SchedulerOptions().step_ms;
  bool no_repack = false;
  std::string kv_type_text = "f16";
  KvType kv_type = KvType::kF16;
  std::string device_text = "cpu";
  Device device = Device::kCpu;
  std::string gpu_experts_text = "auto", gpu_cache_text = "auto", gpu_fetch_text = "auto";
  std::optional<int> gpu_layers;
  bool cublas = false;
  std::string cluster_text = "rows", cluster_shares_text = "auto";
  ClusterOptions cluster;  // of these
  Environment environment;

  /// There is a flag --cublas. Not where bits are compared with the CPU's.
  bool offers_cublas = true;
  /// Nothing will run: --gpu-experts and the like stand for a plan alone.
  bool plans_alone = false;
  /// The MTP layer will be used, whatever --mtp says: its place on the device is planned.
  bool needs_mtp = false;
  std::string fingerprint;  // of the first load(): a later one must find the same file
  /// Of load(), where the device is not the CPU.
  std::optional<Placement> placement;

  /// All shared flags: model, run, MTP and sampling.
  void add_to(CommandLine& line);
  void add_model(CommandLine& line);        // -m
  void add_model_draft(CommandLine& line);  // --model-draft
  void add_session(
      CommandLine& line);  // -c -t --prompt-chunk --no-repack --kv-type --device --cublas and add_placement()
  /// --parallel --kv-memory --step-ms: of commands that run several texts at once. REQUIRES: before add_to().
  void add_batch(CommandLine& line);
  void add_cluster(CommandLine& line);    // --cluster --cluster-shares
  void add_placement(CommandLine& line);  // --gpu-experts --gpu-layers --gpu-cache --gpu-fetch
  void add_draft(CommandLine& line);      // --draft, of commands that decode. REQUIRES: before add_to()
  void add_mtp(CommandLine& line);        // --mtp --mtp-fixed --draft-vocab --model-draft
  void add_sampling(CommandLine& line);   // --temp --top-k --top-p --min-p --seed

  /// Turns the texts into values, reads the environment and checks what can be checked without the model.
  /// REQUIRES: line.parse() returned true. Throws UsageError or InputError.
  void resolve(const CommandLine& line);

  /// Loads the model, with a progress bar on a terminal. Where a GPU has a part in it, the plan of what lies where is
  /// made and printed first. `check` gets the model before its weights are read: what a command would refuse anyway it
  /// refuses there. A context that the model cannot have is refused before that.
  [[nodiscard]] Model load(const std::function<void(const Model&)>& check = {});

  /// What decoding will take beside the weights, printed before these are read. Throws InputError if both do not fit
  /// into the memory that is available on the CPU; for a GPU, load() has made the plan.
  void plan_memory(const Model& header) const;

  /// Positions that a prompt may use together with what is made from it; `takes_what_it_needs`: the command chooses a
  /// context that fits, up to the model's own.
  [[nodiscard]] int64_t most_positions(const ModelConfig& config, bool takes_what_it_needs) const;
  /// Throws InputError if a prompt of so many tokens leaves no room for a new one. `shorten` says how the command takes
  /// a shorter one.
  void check_room(const ModelConfig& config, std::string_view source, size_t prompt_tokens, bool takes_what_it_needs,
                  std::string_view shorten) const;

  /// Throws InputError if the file that has this GgufFile::fingerprint is not the one that was opened first.
  void check_same_file(const std::string& found);

  /// What plan_placement is asked under these flags, with `free_bytes` of device memory. Throws UsageError.
  [[nodiscard]] PlacementRequest placement_request(const BasicModelWeights<MatrixView>& weights,
                                                   const ModelConfig& config, size_t free_bytes) const;

  /// Options of a session whose widest window holds `mtp` drafts.
  [[nodiscard]] SessionOptions session_options(int mtp) const;

  /// Throws InputError if the model has no MTP layer for drafts that need one.
  void check_drafts(const Model& model, int most) const;
  /// Rows of --draft-vocab for this model; 0: all.
  [[nodiscard]] int64_t draft_rows(const ModelConfig& config) const;
  /// Decode options as the flags give them. The caller adds what concerns its command.
  [[nodiscard]] DecodeOptions decode_options() const;

  /// Read bandwidth of this machine with `threads` threads, bytes a second. Takes about a second.
  [[nodiscard]] double measure_bandwidth() const;
  /// Of the memory that most of a run's bytes come from: the GPU's where it has a part in the run.
  [[nodiscard]] double measure_run_bandwidth() const;

  [[nodiscard]] MoeVerify moe_verify() const { return environment.moe_verify.value_or(MoeVerify::kGrouped); }
  [[nodiscard]] Isa isa() const { return environment.isa.value_or(best_isa()); }
};

/// "--mtp" text -> most drafts a window: a number, or "auto" for the controller's choice of up to kMaxDraft.
[[nodiscard]] int parse_mtp(std::string_view what, std::string_view text);

[[nodiscard]] std::string_view moe_verify_name(MoeVerify moe_verify);  // "grouped", "per-token"

/// Throws InputError if this build or this machine cannot run on `device` (cpu, cuda or split).
void check_device(std::string_view device);

/// "--cluster-shares" text -> a number for each process, "3:1"; none for "auto". Throws UsageError.
[[nodiscard]] std::vector<double> parse_cluster_shares(std::string_view text);

/// "--gpu-experts", "--gpu-cache" or "--gpu-fetch" text -> a number of at most `most`, or nothing for "auto".
[[nodiscard]] std::optional<int> parse_experts(std::string_view what, std::string_view text, int most = INT32_MAX);

/// Bandwidths of this machine: of the device and the bus where there is a device, of the host's memory as given.
[[nodiscard]] MachineSpeed measure_speed(double host_bandwidth);

/// Why nothing can run on a GPU here, in a few words; empty if it can.
[[nodiscard]] std::string cuda_missing();

}  // namespace foretoken
