#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "engine/session.h"
#include "mtp/decoder.h"
#include "tools/cli/model_flags.h"

namespace foretoken {

/// SHA-256 over ids as little-endian uint32, in hex.
[[nodiscard]] std::string ids_sha256(std::span<const TokenId> ids);

/// The statistics of a generation, some lines for a person.
[[nodiscard]] std::string describe_statistics(const DecodeStatistics& statistics, int mtp);

/// Throws InputError if drafting stopped because of numbers that were not finite: for commands that measure or check
/// it.
void refuse_draft_fault(const Model& model, const DecodeStatistics& statistics);

/// The statistics as JSON keys, as docs/commands.md lists them.
void add_statistics(nlohmann::ordered_json& object, const DecodeStatistics& statistics);

/// Of a split: where the experts were read, one line; empty where nothing was split.
[[nodiscard]] std::string describe_reads(const ReadsByPlace& reads);

/// The same as JSON keys; nothing where nothing was split.
void add_reads(nlohmann::ordered_json& object, const ReadsByPlace& reads);

/// What a run depended on: version, commit, mtp, moe_verify, isa, threads and NUMA nodes, device, cublas, kv_type,
/// model, model_sha256, model_draft.
void add_run(nlohmann::ordered_json& object, const ModelFlags& flags, const Model& model);

/// "16 threads", "16 threads on 2 NUMA nodes (8+8)".
[[nodiscard]] std::string describe_threads(int threads, const NumaNodes& nodes);

/// Some lines for a person: model, instruction set, threads, --mtp; --cublas, if it is used.
[[nodiscard]] std::string describe_run(const ModelFlags& flags, const Model& model);

/// One line for a person: the context and the memory that was taken for it.
[[nodiscard]] std::string describe_engine(const Engine& engine);
/// The same of a session that is planned. `drafter_bytes`: what drafters will take on the host.
[[nodiscard]] std::string describe_memory(const SessionOptions& options, const SessionMemory& memory,
                                          size_t drafter_bytes);

/// "cluster: rows over 2 processes: a 50%, 13.1 GB/s; b 50%, 12.8 GB/s".
[[nodiscard]] std::string describe_cluster(const Cluster& cluster, const Model& model);

/// "cluster: 65 passes, each with 21.0 messages, 120 KB received and 0.41 ms in messages and waits"; empty where none ran.
[[nodiscard]] std::string describe_traffic(const ClusterTraffic& traffic);

}  // namespace foretoken
