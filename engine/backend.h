#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "engine/cuda/hot_experts.h"
#include "engine/device_cycle.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/row_faults.h"
#include "engine/sequence/sequence_state.h"
#include "engine/session_memory.h"
#include "kernels/threads/thread_team.h"
#include "kernels/threads/work_profile.h"
#include "moe/moe.h"

namespace foretoken {

/// Rows that one pass can take: a prompt chunk, and beside it a window of every sequence where there are several.
[[nodiscard]] inline int pass_rows(const SessionOptions& options) {
  if (options.parallel == 1) return std::max(options.prompt_chunk, options.max_window);
  return options.prompt_chunk + options.parallel * options.max_window;
}

/// Rows whose logits are held at once: those of all windows, or 16 where they are not so many (16 MB at a vocabulary of
/// 248,320).
[[nodiscard]] inline int logits_rows(const SessionOptions& options) {
  constexpr int kLogitsRows = 16;
  return std::max(options.parallel * options.max_window, std::min(pass_rows(options), kLogitsRows));
}

/// Pages of KV memory: as many as options.kv_memory_bytes holds, or a whole context for each sequence.
[[nodiscard]] inline int64_t kv_pages(const SessionOptions& options, int64_t page_bytes) {
  const int64_t whole = options.parallel * pages_of(options.ctx_size);
  if (options.kv_memory_bytes == 0 || page_bytes == 0) return whole;
  return std::clamp<int64_t>(static_cast<int64_t>(options.kv_memory_bytes) / page_bytes, 1, whole);
}

/// The rows of a span that a pass of the MTP layer works on; those from first_output on go through the whole layer, the
/// others only leave their keys and values. first_output == num_rows: none goes through.
struct MtpSpan : Span {
  int first_output = 0;
};

/// What an Engine computes with: memory for all sequences, work buffers and the passes over them. The Engine checks
/// what it is asked for and keeps the sequences' books; see there for what the operations mean.
class Backend {
 public:
  explicit Backend(const SessionOptions& options) : options_(options) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] virtual SessionMemory memory() const = 0;
  [[nodiscard]] virtual int num_pages() const = 0;
  [[nodiscard]] virtual ThreadTeam& team() = 0;
  [[nodiscard]] virtual WorkProfile* profile() { return nullptr; }
  /// Where reads of experts are counted from now on; nullptr: nowhere.
  virtual void count_expert_reads(ExpertReads* reads) = 0;
  [[nodiscard]] virtual DeviceCycle* device_cycle() { return nullptr; }
  [[nodiscard]] virtual ReadsByPlace reads_by_place() const { return {}; }
  [[nodiscard]] const SessionOptions& options() const { return options_; }
  /// What is not finite in the rows of the last forward(), their logits included where those were computed.
  [[nodiscard]] const RowFaults& faults() const { return faults_; }
  [[nodiscard]] const RowFaults& mtp_faults() const { return mtp_faults_; }

  virtual void forward(std::span<const Span> spans, std::span<const TokenId> ids) = 0;
  [[nodiscard]] virtual double distinct_experts() = 0;
  [[nodiscard]] virtual const float* hidden(int row) = 0;
  /// rows: of the last forward().
  virtual void compute_logits(std::span<const int32_t> rows) = 0;
  [[nodiscard]] virtual const float* logits(int index) = 0;  // of rows[index]

  virtual void mtp_forward(std::span<const MtpSpan> spans, std::span<const TokenId> ids,
                           std::span<const float* const> hidden) = 0;
  /// output: counts the rows that went through the whole layer, in order.
  [[nodiscard]] virtual const float* mtp_hidden(int output) = 0;
  virtual void mtp_compute_logits(std::span<const int32_t> outputs) = 0;
  [[nodiscard]] virtual const float* mtp_logits(int index) = 0;  // of outputs[index]
  /// The largest of logits(index), the lower id of equals, where it is known without all logits in one place.
  [[nodiscard]] virtual std::optional<TokenId> largest_logit(int /*index*/) { return std::nullopt; }
  /// The same of mtp_logits(index), and its share of their softmax.
  [[nodiscard]] virtual std::optional<std::pair<TokenId, float>> mtp_largest_logit(int /*index*/) {
    return std::nullopt;
  }
  virtual void set_draft_groups(std::span<const int32_t> groups) = 0;
  virtual void add_draft_group(int32_t group) = 0;

  // What lies in memory for one sequence.

  /// The recurrent states of the sequence in this slot become zero.
  virtual void reset(int slot) = 0;
  /// Brings recurrent states up to the committed end, so that nothing is left to replay; the next pass gives the same
  /// bits with and without it.
  virtual void settle(SequenceState& sequence) = 0;
  /// Recurrent states and histories of a settled sequence, one after the other.
  [[nodiscard]] virtual size_t state_bytes() const = 0;
  virtual void read_state(int slot, std::span<std::byte> to) = 0;
  virtual void write_state(int slot, std::span<const std::byte> from) = 0;
  /// A page as KvPages lays it out.
  [[nodiscard]] virtual size_t page_bytes() const = 0;
  virtual void read_page(int32_t page, std::span<std::byte> to) = 0;
  virtual void write_page(int32_t page, std::span<const std::byte> from) = 0;

 protected:
  const SessionOptions options_;
  RowFaults faults_, mtp_faults_;
};

/// Makes the backend for options.device == kCuda or kSplit.
using MakeDeviceBackend = std::unique_ptr<Backend> (*)(const Model& model, const SessionOptions& options);

/// The CUDA backend is a library of its own, which a program without CUDA is not linked to: one that is calls this at
/// start (see cuda_backend.h). Until then a session for a device is refused.
void set_device_backend(MakeDeviceBackend make);

}  // namespace foretoken
