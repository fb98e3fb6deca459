#include "tools/cli/summary.h"

#include <fmt/format.h>

#include "engine/gguf/sha256.h"
#include "engine/machine.h"
#include "kernels/base/error.h"
#include "tools/cli/terminal.h"
#include "tools/cli/version.h"

namespace foretoken {

namespace {

/// Entries up to the last position that any window drafted.
std::vector<int64_t> used(const std::vector<int64_t>& counts, const std::vector<int64_t>& drafted) {
  size_t n = drafted.size();
  while (n > 0 && drafted[n - 1] == 0) --n;
  return {counts.begin(), counts.begin() + static_cast<ptrdiff_t>(std::min(n, counts.size()))};
}

}  // namespace

std::string ids_sha256(std::span<const TokenId> ids) {
  std::string bytes;
  bytes.reserve(4 * ids.size());
  for (TokenId id : ids) {
    const uint32_t word = static_cast<uint32_t>(id);
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>((word >> shift) & 0xff));
  }
  return sha256_hex(std::as_bytes(std::span(bytes)));
}

std::string describe_statistics(const DecodeStatistics& s, int mtp) {
  std::string text;
  const auto line = [&](std::string_view what, const std::string& value) {
    text += fmt::format("{:<22} {}\n", what, value);
  };
  line("prompt", fmt::format("{} tokens, {:.1f} tok/s", s.prompt_tokens, s.prompt_tokens_per_second()));
  line("time to first token", fmt::format("{:.1f} ms", s.time_to_first_token_ms));
  line("decode", fmt::format("{} tokens, {:.2f} tok/s", s.new_tokens, s.decode_tokens_per_second()));
  line("verify passes", std::to_string(s.verify_passes));
  if (mtp > 0) {
    line("acceptance length", fmt::format("{:.2f} tokens a verify pass", s.acceptance_length()));
    std::string by_position;
    for (size_t i = 0; i < s.drafted_by_position.size() && s.drafted_by_position[i] > 0; ++i) {
      by_position += fmt::format(
          "{}{:.0f}%", i == 0 ? "" : " ",
          100.0 * static_cast<double>(s.accepted_by_position[i]) / static_cast<double>(s.drafted_by_position[i]));
    }
    line("accepted by position", by_position.empty() ? "nothing drafted" : by_position);
    line("mean k", fmt::format("{:.2f} drafts a window, {} at most", s.mean_k(), mtp));
    if (s.verify_passes > 0) {
      const double passes = static_cast<double>(s.verify_passes);
      line("ms a cycle", fmt::format("draft {:.2f}, verify {:.2f}, accept {:.2f}, refresh {:.2f}", s.draft_ms / passes,
                                     s.verify_ms / passes, s.accept_ms / passes, s.refresh_ms / passes));
    }
  }
  std::string distinct;
  for (size_t n = 1; n < s.windows_by_rows.size(); ++n) {
    if (s.windows_by_rows[n] == 0 || s.distinct_experts_by_rows[n] == 0) continue;
    distinct += fmt::format("{}{:.2f} of {} {}", distinct.empty() ? "" : ", ",
                            s.distinct_experts_by_rows[n] / static_cast<double>(s.windows_by_rows[n]), n,
                            n == 1 ? "row" : "rows");
  }
  if (!distinct.empty()) line("distinct experts U(n)", distinct);
  if (!s.draft_fault.empty()) {
    text += fmt::format("note: drafting stopped, the text is the same without it: {}\n", s.draft_fault);
  }
  line("peak memory", format_bytes(static_cast<double>(peak_rss_bytes())));
  return text;
}

void add_statistics(nlohmann::ordered_json& object, const DecodeStatistics& s) {
  object["prompt_tokens"] = s.prompt_tokens;
  object["prompt_ms"] = s.prompt_ms;
  object["prompt_mtp_ms"] = s.prompt_mtp_ms;
  object["prompt_tokens_per_second"] = s.prompt_tokens_per_second();
  object["time_to_first_token_ms"] = s.time_to_first_token_ms;
  object["new_tokens"] = s.new_tokens;
  object["decode_ms"] = s.decode_ms;
  object["decode_tokens_per_second"] = s.decode_tokens_per_second();
  object["verify_passes"] = s.verify_passes;
  object["acceptance_length"] = s.acceptance_length();
  object["drafted"] = s.drafted;
  object["accepted"] = s.accepted;
  object["drafted_by_position"] = used(s.drafted_by_position, s.drafted_by_position);
  object["accepted_by_position"] = used(s.accepted_by_position, s.drafted_by_position);
  object["windows_by_k"] = s.windows_by_k;
  object["mean_k"] = s.mean_k();
  object["windows_by_rows"] = s.windows_by_rows;
  std::vector<double> distinct(s.windows_by_rows.size(), 0.0);
  for (size_t n = 0; n < distinct.size(); ++n) {
    if (s.windows_by_rows[n] > 0)
      distinct[n] = s.distinct_experts_by_rows[n] / static_cast<double>(s.windows_by_rows[n]);
  }
  object["distinct_experts_by_rows"] = distinct;
  object["drafting_stopped"] =
      s.draft_fault.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(s.draft_fault);
  object["draft_ms"] = s.draft_ms;
  object["verify_ms"] = s.verify_ms;
  object["accept_ms"] = s.accept_ms;
  object["refresh_ms"] = s.refresh_ms;
  object["peak_rss_bytes"] = peak_rss_bytes();
}

std::string describe_reads(const ReadsByPlace& reads) {
  if (reads.total() == 0) return "";
  const auto percent = [&](int64_t some) {
    return 100.0 * static_cast<double>(some) / static_cast<double>(reads.total());
  };
  std::string text = fmt::format("{:<22} {:.0f}% placed on the GPU, {:.0f}% in RAM", "experts read",
                                 percent(reads.placed), percent(reads.host));
  if (reads.hot > 0)
    text += fmt::format(", {:.0f}% hot on the GPU (hit rate {:.0f}%)", percent(reads.hot), 100 * reads.hit_rate());
  if (reads.fetched > 0) text += fmt::format(", {:.0f}% fetched by the GPU", percent(reads.fetched));
  return text + "\n";
}

void refuse_draft_fault(const Model& model, const DecodeStatistics& s) {
  if (!s.draft_fault.empty())
    throw InputError(
        fmt::format("{}: {}; drafting stops there, so there is nothing to measure or to check; decode and "
                    "--mtp 0 do without it",
                    model.path(), s.draft_fault));
}

void add_reads(nlohmann::ordered_json& object, const ReadsByPlace& reads) {
  if (reads.total() == 0) return;
  object["expert_reads_placed"] = reads.placed;
  object["expert_reads_hot"] = reads.hot;
  object["expert_reads_fetched"] = reads.fetched;
  object["expert_reads_host"] = reads.host;
  object["hot_expert_hit_rate"] = reads.hit_rate();
}

void add_run(nlohmann::ordered_json& object, const ModelFlags& flags, const Model& model) {
  object["version"] = kVersion;
  object["commit"] = kCommit;
  object["model"] = model.path();
  object["model_sha256"] = model.fingerprint();
  object["model_draft"] =
      model.mtp_path().empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(model.mtp_path());
  object["mtp"] = flags.mtp;
  object["mtp_fixed"] = flags.mtp_fixed;
  object["draft_vocab"] = flags.draft_rows(model.config());
  object["moe_verify"] = moe_verify_name(flags.moe_verify());
  object["isa"] = isa_name(flags.isa());
  object["threads"] = flags.threads;
  object["numa_nodes"] = flags.nodes.count();
  object["device"] = flags.device_text;
  object["cublas"] = flags.cublas;
  object["kv_type"] = flags.kv_type_text;
  object["repack"] = !flags.no_repack;
  object["repacked_file"] = model.is_repacked();
  object["prompt_chunk"] = flags.prompt_chunk;
  object["load_ms"] = 1000 * model.load_seconds();
}

std::string describe_threads(int threads, const NumaNodes& nodes) {
  const std::string text = fmt::format("{} {}", threads, threads == 1 ? "thread" : "threads");
  if (nodes.count() == 1) return text;
  return fmt::format("{} on {} NUMA nodes ({})", text, nodes.count(), fmt::join(nodes.members_by_node(threads), "+"));
}

std::string describe_run(const ModelFlags& flags, const Model& model) {
  const std::string mtp =
      flags.mtp == 0 ? "off" : fmt::format("up to {} drafts{}", flags.mtp, flags.mtp_fixed ? ", fixed" : "");
  const double file_bytes = static_cast<double>(model.file_bytes());
  const char* const how = flags.no_repack           ? ""
                          : !model.is_repacked()    ? " with repacking"
                          : flags.nodes.count() > 1 ? ", copied to the nodes"
                                                    : ", used in place";
  return fmt::format("{}: {}, {}; {}, {}; MTP {}\nloaded in {:.2f} s, {}/s{}\n{}", model.path(),
                     model.config().architecture, format_bytes(file_bytes),
                     describe_threads(flags.threads, flags.nodes), isa_name(flags.isa()), mtp, model.load_seconds(),
                     format_bytes(file_bytes / model.load_seconds()), how,
                     flags.cublas ? "cublas: F16 and BF16 matrices by cuBLAS; logits are not the CPU's bits\n" : "");
}

std::string describe_engine(const Engine& engine) {
  return describe_memory(engine.options(), engine.memory(), 0);
}

std::string describe_memory(const SessionOptions& options, const SessionMemory& memory, size_t drafter_bytes) {
  const auto bytes = [](size_t size) { return format_bytes(static_cast<double>(size)); };
  return fmt::format("context of {} positions: KV cache {} ({}), recurrent state {}, work buffers {}{}{}\n",
                     options.ctx_size, bytes(memory.kv_bytes), options.kv_type == KvType::kF16 ? "f16" : "f32",
                     bytes(memory.recurrent_bytes), bytes(memory.work_bytes),
                     memory.host_bytes == 0 ? "" : fmt::format(", {} of the host", bytes(memory.host_bytes)),
                     drafter_bytes == 0 ? "" : fmt::format(", drafters {}", bytes(drafter_bytes)));
}

std::string describe_cluster(const Cluster& cluster, const Model& model) {
  const RankPlan& plan = model.share()->plan;
  double all = 0;
  for (const double share : plan.shares) all += share;
  std::string text = fmt::format("cluster: {} over {} processes:", cluster_mode_name(plan.mode), plan.num_ranks());
  for (size_t rank = 0; rank < plan.shares.size(); ++rank) {
    text += fmt::format("{} {} {:.0f}%", rank == 0 ? "" : ";", cluster.hosts()[rank], 100 * plan.shares[rank] / all);
    if (cluster.bandwidths()[rank] > 0) text += fmt::format(", {:.1f} GB/s", cluster.bandwidths()[rank] * 1e-9);
  }
  return text + "\n";
}

std::string describe_traffic(const ClusterTraffic& traffic) {
  if (traffic.num_passes == 0) return "";
  const auto each = [&](double all) { return all / static_cast<double>(traffic.num_passes); };
  return fmt::format("cluster: {} passes, each with {:.1f} messages, {} received and {:.2f} ms in messages and waits\n",
                     traffic.num_passes, each(static_cast<double>(traffic.totals.num_messages)),
                     format_bytes(each(static_cast<double>(traffic.totals.bytes_received))),
                     each(traffic.totals.seconds) * 1e3);
}

}  // namespace foretoken
