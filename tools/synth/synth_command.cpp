#include <fmt/format.h>
#include <unistd.h>

#include <chrono>

#include "engine/part_file.h"
#include "kernels/base/error.h"
#include "tools/cli/command_line.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/synth/synth_model.h"

namespace foretoken {

namespace {

std::string summary(const std::string& path, const SynthSpec& spec, const SynthReport& report, double seconds) {
  std::string text = fmt::format("{}: {}, {} tensors, {:.3g} billion weights, {} in {:.1f} s\n", path,
                                 spec.architecture, report.num_tensors, report.num_weights / 1e9,
                                 format_bytes(static_cast<double>(report.file_bytes)), seconds);
  if (spec.text == SynthSpec::Text::kRandom) return text;
  text += fmt::format("greedy text: a cycle of {} ids; from {}: {} ...\n", report.cycle_length, report.first_ids[0],
                      fmt::join(report.first_ids.begin() + 1, report.first_ids.begin() + 13, " "));
  if (spec.has_mtp())
    text += fmt::format("acceptance {:.3f}: this share of drafts is right if those before were\n", report.acceptance);
  if (report.overlap > 0)
    text += fmt::format("overlap {:.3f}: this share of a token's experts serves the next one too\n", report.overlap);
  return text;
}

}  // namespace

int run_synth(int argc, const char* const* argv) {
  // The shape gives the defaults of all other flags, so it is looked for first.
  std::string shape = "tiny";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--shape" && i + 1 < argc) shape = argv[i + 1];
    if (argument.starts_with("--shape=")) shape = argument.substr(8);
  }
  SynthSpec spec = SynthSpec::for_shape(shape);
  std::string path, type = shape == "tiny" ? "f32" : "q4_k_m", text = "chain";
  bool no_mtp = false;

  CommandLine line("synth", "OUT.gguf [--shape NAME] [flags]",
                   "Makes a model file with the shapes of a real model and synthetic weights: for measuring at full "
                   "size and for tests.\n"
                   "The greedy text of a chain model is known (foretoken.synth.* in its metadata), and how often "
                   "drafts are right and how\n"
                   "far neighbouring tokens share experts can be set. Defaults are those of the shape named.");
  line.add_positional("out", &path, "OUT.gguf", "file to write");
  line.add_choice("shape", &shape, SynthSpec::shape_names(), "sizes to start from");
  line.add_int("layers", &spec.num_layers, 1, 1024, "N", "layers of the trunk");
  line.add_text("type", &type, "T[,T...]",
                "q4_k_m, or weight types to deal over the matrices: f32, f16, q8_0, q4_k ...");
  line.add_choice("text", &text, {"chain", "random"}, "chain: known greedy text; random: plain random weights");
  line.add_float("acceptance", &spec.acceptance, 0, 1, "A", "chain: chance that a draft is right if those before were");
  line.add_float("overlap", &spec.overlap, 0, 1, "O", "chain: share of a token's experts that the next one uses too");
  line.add_seed("seed", &spec.seed, "another seed, other weights and another text");
  line.section("Structure");
  line.add_choice("arch", &spec.architecture, SynthSpec::architectures(), "architecture");
  line.add_switch("no-mtp", &no_mtp, "leave the MTP layer out");
  line.add_switch("fused-gate-up", &spec.fused_gate_up, "experts' gate and up in one tensor");
  line.add_switch("tied-head", &spec.tied_head, "no output.weight: the head is the embedding (--text random)");
  line.section("Sizes");
  constexpr int64_t kMost = 1 << 20;
  line.add_int("hidden-dim", &spec.hidden_dim, 64, kMost, "N", "width of the residual stream");
  line.add_int("vocab-size", &spec.vocab_size, 320, 1 << 24, "N", "tokens");
  line.add_int("context-length", &spec.context_length, 1, 1 << 30, "N", "positions the model says it can have");
  line.add_int("heads", &spec.num_heads, 1, 65536, "N", "attention heads");
  line.add_int("kv-heads", &spec.num_kv_heads, 1, 65536, "N", "key and value heads");
  line.add_int("head-dim", &spec.head_dim, 2, 4096, "N", "width of a head");
  line.add_int("rope-dim", &spec.rope_dim, 2, 4096, "N", "dimensions of a head that are rotated");
  line.add_int("attention-interval", &spec.attention_interval, 1, 1024, "N",
               "every N-th layer has attention, the others a delta net");
  line.add_int("experts", &spec.num_experts, 1, 65536, "N", "routed experts of a layer");
  line.add_int("experts-per-token", &spec.experts_per_token, 1, 65536, "N", "experts that a token goes to");
  line.add_int("expert-dim", &spec.expert_dim, 1, kMost, "N", "inner width of a routed expert");
  line.add_int("shared-expert-dim", &spec.shared_expert_dim, 1, kMost, "N",
               "inner width of the shared expert; of a dense model: of the feed-forward");
  line.add_int("state-size", &spec.state_size, 16, 4096, "N", "delta net: width of a head");
  line.add_int("key-heads", &spec.num_key_heads, 1, 65536, "N", "delta net: key heads");
  line.add_int("value-heads", &spec.num_value_heads, 1, 65536, "N", "delta net: value heads");
  line.epilogue(environment_help());
  if (!line.parse(argc, argv)) return 0;
  (void)read_environment();  // a wrong value is an error here too

  if (path.empty()) throw UsageError("OUT.gguf is missing: name the file to write");
  spec.set_types(type);
  spec.text = text == "chain" ? SynthSpec::Text::kChain : SynthSpec::Text::kRandom;
  spec.with_mtp = !no_mtp;
  if (spec.rotates_whole_heads() && !line.given("rope-dim")) spec.rope_dim = spec.head_dim;
  spec.check();

  const auto begin = std::chrono::steady_clock::now();
  SynthReport report;
  {
    ProgressBar bar("writing", Unit::kBytes);
    report = write_synth_model(path, spec, [&](size_t done, size_t all) { bar.show(done, all); });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string made = summary(path, spec, report, seconds);
  if (descriptor_of(path) == STDOUT_FILENO) {
    print_message("{}", made);  // standard output has the model
  } else {
    ResultStream().write(made);
  }
  return 0;
}

}  // namespace foretoken
