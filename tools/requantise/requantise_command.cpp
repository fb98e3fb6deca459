#include <fmt/format.h>
#include <unistd.h>

#include <chrono>

#include "engine/gguf/gguf.h"
#include "engine/model/model_file.h"
#include "engine/part_file.h"
#include "kernels/base/error.h"
#include "kernels/formats/weight_quantiser.h"
#include "tools/cli/command_line.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"
#include "tools/requantise/requantise.h"

namespace foretoken {

namespace {

using requantise::Report;
using requantise::Role;
using requantise::TypeRules;

std::string known_types() {
  std::string names;
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (can_quantise(info.type)) names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  }
  return names;
}

/// REQUIRES: !can_quantise(type).
std::string_view why_not_written(WeightType type) {
  switch (type) {
    case WeightType::kTQ1_0:
    case WeightType::kTQ2_0:
    case WeightType::kQ1_0:
    case WeightType::kQ2_0:
      return "it holds models that were trained in so few levels, and of others little is left";
    case WeightType::kNVFP4:
      return "its scales are too coarse for small weights unless one of the whole matrix stands beside them";
    default:
      return "without an importance matrix it leaves little of a model";
  }
}

std::optional<WeightType> parse_type(std::string_view flag, const std::string& text) {
  if (text.empty()) return std::nullopt;
  const auto type = weight_type_from_name(text);
  if (!type) throw UsageError(fmt::format("{} {}: no weight type; known: {}", flag, text, known_types()));
  if (!can_quantise(*type)) {
    throw UsageError(fmt::format("{} {}: is read but not written: {}; written are {}", flag, text,
                                 why_not_written(*type), known_types()));
  }
  return type;
}

std::string summary(const std::string& path, const Report& report, double seconds) {
  std::string text =
      fmt::format("{}: {}, from {}, in {:.1f} s\n", path, format_bytes(static_cast<double>(report.bytes_after)),
                  format_bytes(static_cast<double>(report.bytes_before)), seconds);
  for (const auto& [title, sums] : {std::pair("from", &report.before), std::pair("to", &report.after)}) {
    for (const auto& [name, sum] : *sums) {
      text += fmt::format("{:<5} {:<8} {:>5} tensors  {:>9}\n", title, name, sum.num_tensors,
                          format_bytes(static_cast<double>(sum.bytes)));
    }
  }
  for (const auto& [types, count] : report.replaced) {
    text += fmt::format("{} in place of {} for {} {}: their rows are no multiple of its block\n",
                        weight_type_info(types.second).name, weight_type_info(types.first).name, count,
                        count == 1 ? "matrix" : "matrices");
  }
  return text;
}

}  // namespace

int run_requantise(int argc, const char* const* argv) {
  struct Rule {
    Role role;
    const char* flag;
    const char* what;
    std::string text = {};
  };
  Rule rules_by_role[] = {
      {Role::kHead, "head", "the head (of a tied one: the embedding)"},
      {Role::kEmbedding, "embedding", "the embedding"},
      {Role::kExperts, "experts", "routed experts' gate and up, and down unless it has its own rule"},
      {Role::kExpertsDown, "experts-down", "routed experts' down"},
      {Role::kFeedForward, "feed-forward", "shared experts and dense feed-forward parts"},
      {Role::kAttention, "attention", "attention's matrices"},
      {Role::kDeltaNet, "delta-net", "the delta nets' matrices"},
      {Role::kMtp, "mtp-layer", "all matrices of the MTP layer"},
      {Role::kRouter, "router", "routers, which stay as they are otherwise"},
  };
  std::string in, out, type, draft_head;
  CommandLine line(
      "requantise", "MODEL OUT.gguf [--type T] [--head T] ...",
      "Writes a model file again with other weight types, searched for the least squared error; without an "
      "importance matrix.\nTypes: " +
          known_types() + ".\nMatrices without a rule get --type, or stay byte for byte as they are.");
  line.add_positional("in", &in, "MODEL", "GGUF file; of a split model, any part; a folder with one model");
  line.add_positional("out", &out, "OUT.gguf", "file to write");
  line.add_text("type", &type, "T", "type of all matrices that have no rule of their own");
  for (Rule& rule : rules_by_role) line.add_text(rule.flag, &rule.text, "T", std::string("type of ") + rule.what);
  line.add_text("head-draft", &draft_head, "T",
                "give the MTP layer a head of its own of this type, a copy of the head: drafts then read fewer bytes");
  line.epilogue(environment_help());
  if (!line.parse(argc, argv)) return 0;
  (void)read_environment();  // a wrong value is an error here too

  if (in.empty() || out.empty())
    throw UsageError("MODEL and OUT.gguf are needed: the file to read and the one to write");
  TypeRules rules;
  rules.all = parse_type("--type", type);
  rules.draft_head = parse_type("--head-draft", draft_head);
  bool any = rules.all || rules.draft_head;
  for (const Rule& rule : rules_by_role) {
    rules[rule.role] = parse_type(fmt::format("--{}", rule.flag), rule.text);
    any = any || rules[rule.role];
  }
  if (!any) throw UsageError("no type is given: --type T, or a rule such as --experts T");
  if (!rules[Role::kExpertsDown]) rules[Role::kExpertsDown] = rules[Role::kExperts];

  const auto begin = std::chrono::steady_clock::now();
  const GgufFile file = GgufFile::open(find_model(in));
  const Report report = [&] {
    ProgressBar bar("writing", Unit::kBytes);
    return write_requantised(file, out, rules, [&](size_t done, size_t all) { bar.show(done, all); });
  }();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const std::string made = summary(out, report, seconds);
  if (descriptor_of(out) == STDOUT_FILENO) {
    print_message("{}", made);  // standard output has the model
  } else {
    ResultStream().write(made);
  }
  return 0;
}

}  // namespace foretoken
