#include "engine/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <limits>
#include <optional>

#include "engine/backend.h"
#include "engine/cuda/cuda_cycle.h"
#include "engine/cuda/cuda_engine.h"
#include "engine/sequence/float_rows.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

using namespace cuda;

/// The session's passes on a GPU, driven call by call. Rows come to the host when they are asked for, and only then.
class CudaBackend final : public Backend {
 public:
  CudaBackend(const Model& model, const SessionOptions& options)
      : Backend(options),
        team_(options.device == Device::kSplit ? options_.threads : 1, options_.nodes),
        engine_(model, options_, team_),
        hidden_(float_rows(pass_rows(options_), engine_.config.hidden_dim)),
        logits_(float_rows(logits_rows(options_), engine_.config.vocab_size)) {
    if (options_.max_window <= kMaxWindow) cycle_.emplace(engine_);
    if (!options_.with_mtp) return;
    follow_hidden_ = float_rows(pass_rows(options_), engine_.config.hidden_dim);
    for (PinnedBuffer& rows : mtp_hidden_) rows = float_rows(pass_rows(options_), engine_.config.hidden_dim);
    draft_logits_ = float_rows(logits_rows(options_), engine_.draft_groups.capacity);
    mtp_logits_ = FloatRows(logits_rows(options_), engine_.config.vocab_size);
    std::vector<int32_t> all(static_cast<size_t>(engine_.vocab_groups()));
    for (size_t g = 0; g < all.size(); ++g) all[g] = static_cast<int32_t>(g);
    set_draft_groups(all);
  }

  SessionMemory memory() const override { return engine_.memory(); }
  ThreadTeam& team() override { return team_; }
  void count_expert_reads(ExpertReads*) override {}  // reads on the device are not counted
  int num_pages() const override { return static_cast<int>(pages_of(options_.ctx_size)); }
  ExpertPlaces expert_places() const override { return engine_.shared->hot.reads(); }
  DeviceCycle* device_cycle() override { return cycle_ ? &*cycle_ : nullptr; }

  void reset(int) override { engine_.reset(); }

  void forward(std::span<const Span> spans, std::span<const TokenId> ids) override {
    FT_CHECK_EQ(spans.size(), size_t{1});
    const Span& span = spans[0];
    CudaEngine& e = engine_;
    num_rows_ = static_cast<int>(ids.size());
    e.stream.synchronize();
    e.begin_pass();
    e.host.command.data<Command>()->window = window_scalars(*span.sequence, num_rows_);
    copy_to_device(e.stream, &e.command->window, e.host.command.data(), sizeof(PassScalars));
    send_ids(ids, e.ids);
    e.run_trunk(num_rows_, span.is_window);
    copy_to_host(e.stream, e.host.num_buckets.data(), e.buffers.num_buckets, e.host.num_buckets.size_bytes());
    has_hidden_ = false;
  }

  double distinct_experts() override {
    engine_.stream.synchronize();
    return engine_.distinct_experts();
  }

  const float* hidden(int row) override {
    if (!has_hidden_) fetch(hidden_, engine_.hidden.values, num_rows_ * engine_.config.hidden_dim);
    has_hidden_ = true;
    return hidden_.data<float>() + row * engine_.config.hidden_dim;
  }

  void compute_logits(std::span<const int32_t> rows) override {
    num_logits_ = static_cast<int>(rows.size());
    engine_.run_head(rows[0], num_logits_);
    has_logits_ = false;
  }

  const float* logits(int index) override {
    if (!has_logits_) fetch(logits_, engine_.logits, num_logits_ * engine_.config.vocab_size);
    has_logits_ = true;
    return logits_.data<float>() + index * engine_.config.vocab_size;
  }

  void mtp_forward(std::span<const MtpSpan> spans, std::span<const TokenId> ids,
                   std::span<const float* const> hidden) override {
    FT_CHECK_EQ(spans.size(), size_t{1});
    const int64_t position = spans[0].position;
    const int first_output = spans[0].first_output;
    CudaEngine& e = engine_;
    const int num_rows = static_cast<int>(ids.size());
    const int64_t dim = e.config.hidden_dim;
    num_outputs_ = num_rows - first_output;
    e.stream.synchronize();
    send_ids(ids, e.follow_ids);
    for (size_t r = 0; r < hidden.size(); ++r)
      std::copy_n(hidden[r], dim, follow_hidden_.data<float>() + static_cast<int64_t>(r) * dim);
    copy_to_device(e.stream, e.follow_hidden, follow_hidden_.data(),
                   static_cast<size_t>(num_rows * dim) * sizeof(float));
    auto& follow = *e.host.follow.data<FollowScalars>();
    follow = {};
    follow.rows.num_rows = num_rows;
    follow.rows.position = static_cast<int32_t>(position);
    follow.outputs.num_rows = num_outputs_;
    follow.outputs.position = static_cast<int32_t>(position + first_output);
    follow.first_output = first_output;
    copy_to_device(e.stream, e.follow, &follow, sizeof follow);
    e.pass.mtp(e.weights.mtp, {num_rows, &e.follow->rows}, e.follow_ids, e.follow_hidden,
               {num_outputs_, &e.follow->outputs}, first_output == 0 ? nullptr : &e.follow->first_output, e.mtp_hidden);
    mtp_current_ = 1 - mtp_current_;
    has_mtp_hidden_ = false;
  }

  const float* mtp_hidden(int output) override {
    PinnedBuffer& rows = mtp_hidden_[mtp_current_];
    if (!has_mtp_hidden_) fetch(rows, engine_.mtp_hidden.values, num_outputs_ * engine_.config.hidden_dim);
    has_mtp_hidden_ = true;
    return rows.data<float>() + output * engine_.config.hidden_dim;
  }

  void mtp_compute_logits(std::span<const int32_t> outputs) override {
    engine_.stream.synchronize();
    engine_.send_groups();
    num_mtp_logits_ = static_cast<int>(outputs.size());
    engine_.run_draft_head(outputs[0], num_mtp_logits_);
    has_mtp_logits_ = false;
  }

  const float* mtp_logits(int index) override {
    if (!has_mtp_logits_) fetch_draft_logits();
    return mtp_logits_.row(index);
  }

  void set_draft_groups(std::span<const int32_t> groups) override {
    engine_.set_groups(groups);
    for (int r = 0; r < logits_rows(options_); ++r) {
      std::fill_n(mtp_logits_.row(r), engine_.config.vocab_size, -std::numeric_limits<float>::infinity());
    }
  }

  void add_draft_group(int32_t group) override { engine_.add_group(group); }

  void settle(SequenceState&) override { FT_CHECK(false); }
  size_t state_bytes() const override { return 0; }
  void read_state(int, std::span<std::byte>) override { FT_CHECK(false); }
  void write_state(int, std::span<const std::byte>) override { FT_CHECK(false); }
  size_t page_bytes() const override { return 0; }
  void read_page(int32_t, std::span<std::byte>) override { FT_CHECK(false); }
  void write_page(int32_t, std::span<const std::byte>) override { FT_CHECK(false); }

 private:
  static PinnedBuffer float_rows(int64_t num_rows, int64_t num_cols) {
    return PinnedBuffer(static_cast<size_t>(num_rows * num_cols) * sizeof(float));
  }

  void send_ids(std::span<const TokenId> ids, int32_t* to) {
    std::copy(ids.begin(), ids.end(), engine_.host.ids.data<int32_t>());
    copy_to_device(engine_.stream, to, engine_.host.ids.data(), ids.size() * sizeof(int32_t));
  }

  void fetch(PinnedBuffer& to, const float* from, int64_t count) {
    copy_to_host(engine_.stream, to.data(), from, static_cast<size_t>(count) * sizeof(float));
    engine_.stream.synchronize();
  }

  // The device's rows hold the groups side by side; the host's have a place for every id.
  void fetch_draft_logits() {
    const int64_t stride = engine_.draft_groups.capacity, vocab_size = engine_.config.vocab_size;
    fetch(draft_logits_, engine_.draft_logits, num_mtp_logits_ * stride);
    for (int r = 0; r < num_mtp_logits_; ++r) {
      const float* from = draft_logits_.data<float>() + r * stride;
      for (const int32_t group : engine_.groups()) {
        const int64_t begin = int64_t{group} * kInterleave, end = std::min(begin + kInterleave, vocab_size);
        std::copy_n(from, end - begin, mtp_logits_.row(r) + begin);
        from += kInterleave;
      }
    }
    has_mtp_logits_ = true;
  }

  ThreadTeam team_;  // for the host's experts of a split
  CudaEngine engine_;
  std::optional<CudaCycle> cycle_;

  // The host's copies of the last results, and whether they have come.
  PinnedBuffer hidden_, logits_;
  PinnedBuffer follow_hidden_;
  std::array<PinnedBuffer, 2> mtp_hidden_;  // taking turns
  PinnedBuffer draft_logits_;
  FloatRows mtp_logits_;
  bool has_hidden_ = false, has_logits_ = false, has_mtp_hidden_ = false, has_mtp_logits_ = false;
  int num_rows_ = 0, num_logits_ = 0, num_outputs_ = 0, num_mtp_logits_ = 0;
  size_t mtp_current_ = 0;
};

std::unique_ptr<Backend> make_cuda_backend(const Model& model, const SessionOptions& options) {
  return std::make_unique<CudaBackend>(model, options);
}

}  // namespace

void use_cuda_backend() {
  set_device_backend(make_cuda_backend);
}

}  // namespace foretoken
