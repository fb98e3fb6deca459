#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>

#include "engine/cuda/hot_experts.h"
#include "engine/device_cycle.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "engine/session_memory.h"
#include "kernels/threads/thread_team.h"
#include "kernels/threads/work_profile.h"
#include "moe/moe.h"

namespace foretoken {

/// Rows that one pass can take.
[[nodiscard]] inline int pass_rows(const SessionOptions& options) {
  return std::max(options.prompt_chunk, options.max_window);
}

/// Rows whose logits are held at once: those of a window, or 16 where it does not ask for so many (16 MB at a
/// vocabulary of 248,320).
[[nodiscard]] inline int logits_rows(const SessionOptions& options) {
  constexpr int kLogitsRows = 16;
  return std::max(options.max_window, std::min(pass_rows(options), kLogitsRows));
}

/// What a Session computes with: caches, states, work buffers and the passes over them. The Session checks what it is
/// asked for and knows which rows are held; see there for what the operations mean. Rows here count from the first that
/// the operation before has made.
class Backend {
 public:
  explicit Backend(const SessionOptions& options) : options_(options) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  [[nodiscard]] virtual SessionMemory memory() const = 0;
  [[nodiscard]] virtual ThreadTeam& team() = 0;
  [[nodiscard]] virtual WorkProfile* profile() { return nullptr; }
  [[nodiscard]] virtual ExpertReads*& expert_reads() = 0;
  [[nodiscard]] virtual DeviceCycle* device_cycle() { return nullptr; }
  [[nodiscard]] virtual ExpertPlaces expert_places() const { return {}; }

  [[nodiscard]] int64_t length() const { return length_; }
  [[nodiscard]] const SessionOptions& options() const { return options_; }

  virtual void reset() = 0;

  /// in_slot: a window, of which any number of rows may be kept; else a prompt chunk, which is kept whole.
  virtual void forward(std::span<const TokenId> ids, bool in_slot) = 0;
  [[nodiscard]] virtual double distinct_experts() = 0;
  [[nodiscard]] virtual const float* hidden(int row) = 0;
  virtual void compute_logits(int row_begin, int row_end) = 0;
  [[nodiscard]] virtual const float* logits(int index) = 0;  // of row row_begin + index
  virtual void commit(int num_rows, bool in_slot) = 0;

  virtual void mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                           int first_output) = 0;
  [[nodiscard]] virtual const float* mtp_hidden(int output) = 0;  // of row first_output + output
  virtual void mtp_compute_logits(int output_begin, int output_end) = 0;
  [[nodiscard]] virtual const float* mtp_logits(int index) = 0;  // of output output_begin + index
  virtual void set_draft_groups(std::span<const int32_t> groups) = 0;
  virtual void add_draft_group(int32_t group) = 0;

 protected:
  const SessionOptions options_;
  int64_t length_ = 0;  // committed rows
};

/// Makes the backend for options.device == kCuda or kSplit.
using MakeDeviceBackend = std::unique_ptr<Backend> (*)(const Model& model, const SessionOptions& options);

/// The CUDA backend is a library of its own, which a program without CUDA is not linked to: one that is calls this at
/// start (see cuda_backend.h). Until then a session for a device is refused.
void set_device_backend(MakeDeviceBackend make);

}  // namespace foretoken
