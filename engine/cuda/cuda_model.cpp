#include "engine/cuda/cuda_model.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "kernels/base/error.h"

namespace foretoken::cuda {

namespace {

// Experts on their way at once. Two keep the thread busy; more would only make the newest wait.
constexpr int kMostFills = 2;

/// Experts' matrices that are memory of their own: gate and up may be one tensor.
std::vector<std::pair<const ExpertMatrices*, const CudaExpertMatrices*>> matrices_of(const MoeWeights& from,
                                                                                     const CudaMoe& to) {
  std::vector<std::pair<const ExpertMatrices*, const CudaExpertMatrices*>> matrices{{&from.gate, &to.gate}};
  if (from.up.all.data != from.gate.all.data) matrices.emplace_back(&from.up, &to.up);
  matrices.emplace_back(&from.down, &to.down);
  return matrices;
}

/// What of the routed experts is on the device from the start: all where nothing is split. A layer without any counts
/// as one that has all of them there.
SplitOptions split_of(const Model& model, const SessionOptions& o) {
  const ModelConfig& c = model.config();
  if (o.device != Device::kSplit || c.num_experts == 0)
    return {std::vector<int>(static_cast<size_t>(c.num_layers), c.num_experts), 0, 0};
  FT_CHECK_EQ(static_cast<int>(o.split.experts.size()), c.num_layers);
  SplitOptions split = o.split;
  for (size_t l = 0; l < split.experts.size(); ++l) {
    if (model.weights().layers[l].is_dense()) split.experts[l] = c.num_experts;
  }
  return split;
}

}  // namespace

ExpertFiller::ExpertFiller(const ModelWeights& from, const CudaWeights& to) : from_(from), to_(to) {
  int64_t largest = 0;
  for (const CudaLayer& layer : to.layers) {
    if (layer.is_dense()) continue;
    const CudaMoe& moe = layer.moe();
    for (const CudaExpertMatrices* m : {&moe.gate, &moe.up, &moe.down}) {
      largest = std::max(largest, m->stride_rows * m->all.row_bytes);
    }
  }
  staging_ = PinnedBuffer(static_cast<size_t>(largest));
  scale_staging_ = PinnedBuffer(sizeof(float));
  thread_ = std::thread([this] { run(); });
}

ExpertFiller::~ExpertFiller() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    queue_.clear();
  }
  changed_.notify_all();
  thread_.join();
}

void ExpertFiller::start(const HotExperts::Fill& fill) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(fill);
    ++under_way_;
  }
  changed_.notify_all();
}

std::vector<HotExperts::Fill> ExpertFiller::finished() {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
  return std::exchange(finished_, {});
}

int ExpertFiller::under_way() const {
  const std::lock_guard lock(mutex_);
  return under_way_;
}

void ExpertFiller::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return ends_ || !queue_.empty(); });
    if (ends_) return;
    const HotExperts::Fill fill = queue_.front();
    queue_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      copy(fill);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    --under_way_;
    if (error) {
      error_ = error;
    } else {
      finished_.push_back(fill);
    }
    changed_.notify_all();
    if (error) return;
  }
}

void ExpertFiller::copy(const HotExperts::Fill& fill) {
  const MoeWeights& from = from_.layers[fill.layer].moe();
  const CudaMoe& to = to_.layers[fill.layer].moe();
  for (const auto& [rows, place] : matrices_of(from, to)) copy_rows(*rows, *place, fill);
  // Of one tensor, gate and up have a scale each all the same.
  copy_scale(from.gate, to.gate, fill);
  copy_scale(from.up, to.up, fill);
  copy_scale(from.down, to.down, fill);
}

void ExpertFiller::copy_rows(const ExpertMatrices& from, const CudaExpertMatrices& to, const HotExperts::Fill& fill) {
  const int64_t stride = from.stride_rows;
  pack_device_rows(from.all, fill.expert * stride, (fill.expert + 1) * stride, staging_.data());
  const int64_t at = fill.place * stride * to.all.row_bytes;
  copy_to_device(stream_, const_cast<std::byte*>(to.all.data) + at, staging_.data(),
                 static_cast<size_t>(stride * to.all.row_bytes));
  stream_.synchronize();
}

void ExpertFiller::copy_scale(const ExpertMatrices& from, const CudaExpertMatrices& to, const HotExperts::Fill& fill) {
  if (from.scales.data == nullptr) return;
  std::memcpy(scale_staging_.data(), &from.scales.data[fill.expert], sizeof(float));
  copy_to_device(stream_, const_cast<float*>(to.scales.data) + fill.place, scale_staging_.data(), sizeof(float));
  stream_.synchronize();
}

std::shared_ptr<CudaModel> CudaModel::of(const Model& model, const SessionOptions& options) {
  static std::mutex mutex;
  static std::vector<std::weak_ptr<CudaModel>> known;
  const std::lock_guard lock(mutex);
  std::erase_if(known, [](const auto& weak) { return weak.expired(); });
  for (const auto& weak : known) {
    if (auto found = weak.lock(); found != nullptr && found->serves(model, options)) return found;
  }
  auto made = std::make_shared<CudaModel>(model, options);
  known.push_back(made);
  return made;
}

CudaModel::CudaModel(const Model& model, const SessionOptions& o)
    : hot(split_of(model, o).experts, model.config().num_experts, split_of(model, o).cache_entries),
      weights(model, o.with_mtp, &hot),
      model_(model),
      with_mtp_(o.with_mtp),
      split_(split_of(model, o)) {
  memory_.take(std::max<int64_t>(int64_t{model.config().num_layers} * model.config().num_experts, 1), places_);
  memory_.take(model.config().num_layers, candidates_);
  memory_.take(1, fetch_list_);
}

bool CudaModel::serves(const Model& model, const SessionOptions& options) const {
  const SplitOptions split = split_of(model, options);
  return &model == &model_ && (with_mtp_ || !options.with_mtp) && split.experts == split_.experts &&
         split.cache_entries == split_.cache_entries && split.fetched == split_.fetched;
}

void CudaModel::allocate(const Stream& stream) {
  if (allocated_) return;
  weights.upload(stream);
  memory_.allocate("the places of experts");
  const int64_t num_experts = model_.config().num_experts;
  places_out_ = PinnedBuffer(static_cast<size_t>(hot.num_layers() * num_experts) * sizeof(int32_t));
  bool has_entries = false;
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (!hot.is_split(l)) continue;
    weights.layers[l].moe().places = places_ + l * num_experts;
    has_entries = has_entries || hot.capacity(l) > hot.placed(l);
  }
  if (has_entries) prepare_fetching(stream);
  if (has_entries && fetched_.empty()) filler_ = std::make_unique<ExpertFiller>(model_.weights(), weights);
  if (num_experts > 0) send_places(stream);
  allocated_ = true;
}

void CudaModel::send_places(const Stream& stream) {
  const auto num_experts = static_cast<size_t>(model_.config().num_experts);
  for (int l = 0; l < hot.num_layers(); ++l) {
    const std::span<const int32_t> places = hot.places(l);
    std::copy(places.begin(), places.end(), places_out_.data<int32_t>() + static_cast<size_t>(l) * num_experts);
  }
  copy_to_device(stream, places_, places_out_.data(), places_out_.size_bytes());
  places_changed_ = false;
}

bool CudaModel::can_fetch_all() const {
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (!hot.is_split(l)) continue;
    const MoeWeights& moe = model_.weights().layers[l].moe();
    for (const ExpertMatrices* m : {&moe.gate, &moe.up, &moe.down}) {
      if (m->scales.data != nullptr || !can_fetch(m->all, m->stride_rows)) return false;
    }
  }
  return true;
}

bool CudaModel::register_experts() {
  std::vector<HostPages> ranges;
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (!hot.is_split(l)) continue;
    for (const auto& [from, to] : matrices_of(model_.weights().layers[l].moe(), weights.layers[l].moe())) {
      const MatrixView rest = from->all.slice_rows(hot.placed(l) * from->stride_rows, from->all.num_rows);
      ranges.push_back(pages_around(rest.data, rest.size_bytes()));
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const HostPages& a, const HostPages& b) { return a.begin < b.begin; });
  // A page is registered once: matrices that share one go together.
  size_t last = 0;
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].begin <= ranges[last].end) {
      ranges[last].end = std::max(ranges[last].end, ranges[i].end);
    } else {
      ranges[++last] = ranges[i];
    }
  }
  ranges.resize(std::min(last + 1, ranges.size()));
  for (const auto& [begin, end] : ranges) {
    registered_.emplace_back(reinterpret_cast<const void*>(begin), end - begin);
    if (!registered_.back().is_registered()) return false;
  }
  return true;
}

FetchDesc CudaModel::fetch_desc(int layer_idx) {
  FetchDesc desc;
  desc.list = fetch_list_;
  for (const auto& [from, to] :
       matrices_of(model_.weights().layers[layer_idx].moe(), weights.layers[layer_idx].moe())) {
    desc.matrices[desc.num_matrices++] = {from->all.data, static_cast<int64_t>(from->all.row_bytes()),
                                          from->all.layout == Layout::kInterleaved, from->stride_rows, to->all};
  }
  return desc;
}

double CudaModel::seconds_to_fetch(const Stream& stream) const {
  using Clock = std::chrono::steady_clock;
  constexpr int kTimes = 3;  // the first wakes the bus up
  double best = 1e9;
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (!fetches(l)) continue;
    const int placed = hot.placed(l), count = std::min(hot.capacity(l) - placed, kMostFetched);
    if (count == 0) continue;
    const PinnedBuffer staged(sizeof(FetchList));
    auto& list = *staged.data<FetchList>();
    list = {};
    list.count = count;
    for (int i = 0; i < count; ++i) list.experts[i] = list.places[i] = placed + i;
    copy_to_device(stream, fetch_list_, &list, sizeof list);
    for (int i = 0; i < kTimes; ++i) {
      stream.synchronize();
      const auto begin = Clock::now();
      launch(fetched_[l], stream);
      stream.synchronize();
      best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count() / count);
    }
    break;
  }
  return best;
}

void CudaModel::prepare_fetching(const Stream& stream) {
  if (split_.fetched == 0 || !can_fetch_all()) return;
  if (!register_experts()) {
    registered_.clear();
    return;
  }
  fetched_.resize(static_cast<size_t>(hot.num_layers()));
  for (int l = 0; l < hot.num_layers(); ++l) {
    if (hot.is_split(l) && hot.capacity(l) > hot.placed(l)) fetched_[l] = fetch_desc(l);
  }
  candidates_out_ = PinnedBuffer(fetched_.size() * sizeof(FetchCandidates));
  if (split_.fetched == SplitOptions::kMeasured) balance_.emplace(seconds_to_fetch(stream), kMostFetched);
}

void CudaModel::add_fetching(int layer_idx, GroupDesc& group) const {
  group.candidates = candidates_ + layer_idx;
  group.fetched = fetch_list_;
}

int CudaModel::fetch(int layer_idx, std::span<const int32_t> used) {
  const int count = hot.fetch(layer_idx, used, candidates_out_.data<const FetchCandidates>()[layer_idx]);
  places_changed_ = places_changed_ || count > 0;
  return count;
}

void CudaModel::learn(bool has_chunks, int missing, int computed, double seconds) {
  if (balance_) balance_->learn(has_chunks, missing, computed, seconds);
}

void CudaModel::choose_candidates(bool has_chunks) {
  const int most = balance_ ? balance_->fetched(has_chunks) : split_.fetched;
  for (int l = 0; l < hot.num_layers(); ++l) {
    candidates_out_.data<FetchCandidates>()[l] = fetches(l) ? hot.candidates(l, most) : FetchCandidates{};
  }
}

void CudaModel::begin_pass(const Stream& stream, bool has_chunks) {
  if (filler_ == nullptr && fetched_.empty()) return;
  // Other sessions' passes are over too (they share the thread), but what they put into their streams may not be.
  for (const Stream* other : streams_) {
    if (other != &stream) other->synchronize();
  }
  if (!fetched_.empty()) {
    choose_candidates(has_chunks);
    copy_to_device(stream, candidates_, candidates_out_.data(), candidates_out_.size_bytes());
  } else {
    for (const HotExperts::Fill& fill : filler_->finished()) {
      hot.finish(fill);
      places_changed_ = true;
    }
    // The device is idle, and gets the new places before it works again: who leaves a place now is read no more.
    for (const HotExperts::Fill& fill : hot.choose(kMostFills - filler_->under_way())) {
      filler_->start(fill);
      places_changed_ = true;
    }
    if (!places_changed_) return;
  }
  if (places_changed_) send_places(stream);
  if (streams_.size() > 1) stream.synchronize();  // before another session's stream reads them
}

}  // namespace foretoken::cuda
