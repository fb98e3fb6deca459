#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "engine/cuda/cuda_arena.h"
#include "engine/cuda/cuda_weights.h"
#include "engine/cuda/fetch_balance.h"
#include "engine/cuda/hot_experts.h"
#include "engine/model/model.h"
#include "engine/options.h"
#include "kernels/cuda/cuda_runtime_wrap.h"
#include "kernels/cuda/fetch_rows_cuda.h"
#include "kernels/select/router_cuda.h"

namespace foretoken::cuda {

/// Brings the weights of single experts to the device beside everything else: a thread of its own rearranges them, and
/// a stream of its own carries them.
class ExpertFiller {
 public:
  /// `to` has its memory.
  ExpertFiller(const ModelWeights& from, const CudaWeights& to);
  ~ExpertFiller();
  ExpertFiller(const ExpertFiller&) = delete;
  ExpertFiller& operator=(const ExpertFiller&) = delete;

  /// REQUIRES: no work on the device reads the place of `fill` until finished() has returned it.
  void start(const HotExperts::Fill& fill);
  /// Those that have arrived since the last call. Throws what went wrong on the way.
  [[nodiscard]] std::vector<HotExperts::Fill> finished();
  /// Started and not arrived.
  [[nodiscard]] int under_way() const;

 private:
  void run();
  void copy(const HotExperts::Fill& fill);
  void copy_rows(const ExpertMatrices& from, const CudaExpertMatrices& to, const HotExperts::Fill& fill);
  void copy_scale(const ExpertMatrices& from, const CudaExpertMatrices& to, const HotExperts::Fill& fill);

  const ModelWeights& from_;
  const CudaWeights& to_;
  Stream stream_;
  PinnedBuffer staging_;        // the rows of one matrix of one expert
  PinnedBuffer scale_staging_;  // its scale

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<HotExperts::Fill> queue_;
  std::vector<HotExperts::Fill> finished_;
  int under_way_ = 0;
  bool ends_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it sees the others whole
};

/// A model's weights on the device, shared by all sessions that want the same of them there: a benchmark has a session
/// an arm. In a split also which routed experts are there. The thread rules are those of Session, for all its sessions
/// together.
class CudaModel {
 public:
  /// The one that some session has already, or a new one. with_mtp, device and split count of the options.
  [[nodiscard]] static std::shared_ptr<CudaModel> of(const Model& model, const SessionOptions& options);

  CudaModel(const Model& model, const SessionOptions& options);
  CudaModel(const CudaModel&) = delete;
  CudaModel& operator=(const CudaModel&) = delete;

  /// Of the device; taken by the first allocate().
  [[nodiscard]] size_t size_bytes() const { return weights.size_bytes() + memory_.size_bytes(); }
  [[nodiscard]] bool is_allocated() const { return allocated_; }
  void allocate(const Stream& stream);

  /// A session's stream, while the session lives.
  void attach(const Stream& stream) { streams_.push_back(&stream); }
  void detach(const Stream& stream) { std::erase(streams_, &stream); }

  /// Experts that have arrived are in their places from now on, others set out. REQUIRES: `stream` is idle.
  void begin_pass(const Stream& stream, bool has_chunks);

  /// Whether the device fetches experts of this layer that a pass misses.
  [[nodiscard]] bool fetches(int layer_idx) const {
    return layer_idx < static_cast<int>(fetched_.size()) && fetched_[layer_idx].num_matrices > 0;
  }
  /// For the launches that group the rows of the layer and fetch its experts. REQUIRES: fetches(layer_idx).
  void add_fetching(int layer_idx, GroupDesc& group) const;
  [[nodiscard]] const FetchDesc& fetching(int layer_idx) const { return fetched_[layer_idx]; }
  /// The host's side: a pass whose rows use these experts; see HotExperts::fetch. Returns how many come.
  int fetch(int layer_idx, std::span<const int32_t> used);
  /// The CPU has computed some of the layer's missing experts in this time.
  void learn(bool has_chunks, int missing, int computed, double seconds);

  HotExperts hot;  // all experts have their place where nothing is split
  CudaWeights weights;

 private:
  void send_places(const Stream& stream);
  void choose_candidates(bool has_chunks);
  /// Makes fetching possible, if every split layer's experts and the driver let it be.
  void prepare_fetching(const Stream& stream);
  [[nodiscard]] bool can_fetch_all() const;
  [[nodiscard]] bool register_experts();
  [[nodiscard]] FetchDesc fetch_desc(int layer_idx);
  /// Measured with the first split layer's experts, in entries that nobody is in yet.
  [[nodiscard]] double seconds_to_fetch(const Stream& stream) const;
  [[nodiscard]] bool serves(const Model& model, const SessionOptions& options) const;

  const Model& model_;
  const bool with_mtp_;
  const SplitOptions split_;
  bool allocated_ = false;
  bool places_changed_ = false;
  std::vector<const Stream*> streams_;
  PinnedBuffer places_out_;  // [num_layers, num_experts]
  DeviceArena memory_;
  int32_t* places_ = nullptr;              // [num_layers, num_experts] in device memory
  FetchCandidates* candidates_ = nullptr;  // [num_layers] likewise
  FetchList* fetch_list_ = nullptr;        // [1] of the layer that runs
  PinnedBuffer candidates_out_;            // [num_layers]
  std::vector<FetchDesc> fetched_;         // [num_layers], or empty: nothing is fetched
  std::vector<RegisteredMemory> registered_;
  std::optional<FetchBalance> balance_;
  std::unique_ptr<ExpertFiller> filler_;
};

}  // namespace foretoken::cuda
