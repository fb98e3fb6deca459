#include "engine/cuda/cuda_backend.h"

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <optional>

#include "engine/backend.h"
#include "engine/cuda/cuda_cycle.h"
#include "engine/cuda/cuda_engine.h"
#include "engine/sequence/float_rows.h"
#include "kernels/base/error.h"
#include "kernels/select/windows_cuda.h"

namespace foretoken {

namespace {

using namespace cuda;

/// An engine's passes on a GPU, driven call by call. Rows come to the host when they are asked for, and only then.
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
    mtp_input_ = float_rows(pass_rows(options_), engine_.config.hidden_dim);
    for (PinnedBuffer& rows : mtp_hidden_) rows = float_rows(pass_rows(options_), engine_.config.hidden_dim);
    draft_logits_ = float_rows(logits_rows(options_), engine_.draft_groups.capacity);
    mtp_logits_ = FloatRows(logits_rows(options_), engine_.config.vocab_size);
    std::vector<int32_t> all(static_cast<size_t>(engine_.vocab_groups()));
    for (size_t g = 0; g < all.size(); ++g) all[g] = static_cast<int32_t>(g);
    set_draft_groups(all);
  }

  SessionMemory memory() const override { return engine_.memory(); }
  int num_pages() const override { return engine_.state.num_pages(); }
  ThreadTeam& team() override { return team_; }
  void count_expert_reads(ExpertReads*) override {}  // reads on the device are not counted
  ReadsByPlace reads_by_place() const override { return engine_.shared->hot.reads(); }
  DeviceCycle* device_cycle() override { return cycle_ ? &*cycle_ : nullptr; }

  void forward(std::span<const Span> spans, std::span<const TokenId> ids) override {
    engine_.attempt([&] {
      CudaEngine& e = engine_;
      num_rows_ = static_cast<int>(ids.size());
      const auto is_window = [](const Span& span) { return span.is_window; };
      TrunkInput& input = std::all_of(spans.begin(), spans.end(), is_window) ? e.io.windows : e.io.chunks;
      e.stream.synchronize();
      e.set_spans(input, spans);
      FT_CHECK_EQ(input.pass.counts.host->num_rows, num_rows_);
      std::copy(ids.begin(), ids.end(), input.ids.host);
      e.begin_pass(/*has_chunks=*/&input == &e.io.chunks);
      input.memory.send(e.stream);
      e.run_trunk(input, std::any_of(spans.begin(), spans.end(), is_window));
      e.fetch_buckets();
      has_hidden_ = false;
    });
  }

  double distinct_experts() override {
    engine_.attempt([&] { engine_.stream.synchronize(); });
    return engine_.distinct_experts();
  }

  const float* hidden(int row) override {
    if (!has_hidden_) fetch(hidden_, engine_.io.hidden.values, num_rows_ * engine_.config.hidden_dim);
    has_hidden_ = true;
    return hidden_.data<float>() + row * engine_.config.hidden_dim;
  }

  void compute_logits(std::span<const int32_t> rows) override {
    engine_.attempt([&] {
      num_logits_ = static_cast<int>(rows.size());
      engine_.run_head(engine_.rows_together(engine_.io.hidden, rows), num_logits_);
      has_logits_ = false;
    });
  }

  const float* logits(int index) override {
    if (!has_logits_) fetch(logits_, engine_.io.logits, num_logits_ * engine_.config.vocab_size);
    has_logits_ = true;
    return logits_.data<float>() + index * engine_.config.vocab_size;
  }

  void mtp_forward(std::span<const MtpSpan> spans, std::span<const TokenId> ids,
                   std::span<const float* const> hidden) override {
    engine_.attempt([&] { run_mtp(spans, ids, hidden); });
  }

  const float* mtp_hidden(int output) override {
    PinnedBuffer& rows = mtp_hidden_[mtp_current_];
    if (!has_mtp_hidden_) fetch(rows, engine_.io.mtp_hidden.values, num_outputs_ * engine_.config.hidden_dim);
    has_mtp_hidden_ = true;
    return rows.data<float>() + output * engine_.config.hidden_dim;
  }

  void mtp_compute_logits(std::span<const int32_t> outputs) override {
    engine_.attempt([&] {
      engine_.stream.synchronize();
      engine_.send_groups();
      num_mtp_logits_ = static_cast<int>(outputs.size());
      engine_.run_draft_head(engine_.rows_together(engine_.io.mtp_hidden, outputs), num_mtp_logits_);
      has_mtp_logits_ = false;
    });
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

  void reset(int slot) override {
    engine_.attempt([&] { engine_.state.reset(engine_.stream, slot); });
  }

  void settle(SequenceState& sequence) override {
    if (sequence.turn.kept > 0) {
      engine_.attempt([&] {
        CudaEngine& e = engine_;
        const Span nothing{&sequence, 0, 0, sequence.length, /*is_window=*/false};
        e.stream.synchronize();
        e.set_spans(e.io.chunks, {&nothing, 1});
        e.io.chunks.memory.send(e.stream);
        e.pass.settle(e.weights, e.io.chunks.pass.on_device(1));
      });
    }
    sequence.turn.reset();
  }

  size_t state_bytes() const override { return engine_.state.state_bytes(); }

  void read_state(int slot, std::span<std::byte> to) override {
    FT_CHECK_EQ(to.size(), state_bytes());
    engine_.attempt([&] {
      for (const CudaState::Piece& piece : engine_.state.state_pieces(slot)) {
        copy_to_host(engine_.stream, to.data(), piece.data, piece.size_bytes);
        to = to.subspan(piece.size_bytes);
      }
      engine_.stream.synchronize();
    });
  }

  void write_state(int slot, std::span<const std::byte> from) override {
    FT_CHECK_EQ(from.size(), state_bytes());
    engine_.attempt([&] {
      for (const CudaState::Piece& piece : engine_.state.state_pieces(slot)) {
        copy_to_device(engine_.stream, piece.data, from.data(), piece.size_bytes);
        from = from.subspan(piece.size_bytes);
      }
      engine_.stream.synchronize();
    });
  }

  size_t page_bytes() const override { return engine_.state.page_bytes(); }

  void read_page(int32_t page, std::span<std::byte> to) override {
    FT_CHECK_EQ(to.size(), page_bytes());
    engine_.attempt([&] {
      copy_to_host(engine_.stream, to.data(), engine_.state.page(page), to.size());
      engine_.stream.synchronize();
    });
  }

  void write_page(int32_t page, std::span<const std::byte> from) override {
    FT_CHECK_EQ(from.size(), page_bytes());
    engine_.attempt([&] {
      copy_to_device(engine_.stream, engine_.state.page(page), from.data(), from.size());
      engine_.stream.synchronize();
    });
  }

 private:
  static PinnedBuffer float_rows(int64_t num_rows, int64_t num_cols) {
    return PinnedBuffer(static_cast<size_t>(num_rows * num_cols) * sizeof(float));
  }

  void run_mtp(std::span<const MtpSpan> spans, std::span<const TokenId> ids, std::span<const float* const> hidden) {
    CudaEngine& e = engine_;
    MtpInput& in = e.io.mtp;
    const int num_rows = static_cast<int>(ids.size());
    const int64_t dim = e.config.hidden_dim;
    e.stream.synchronize();
    num_outputs_ = 0;
    for (const MtpSpan& span : spans) num_outputs_ += span.num_rows - span.first_output;
    // More rows than those of windows have no room for splits computed apart.
    const bool few = num_outputs_ <= e.max_window_rows();
    in.rows.clear();
    in.outputs.clear();
    for (const MtpSpan& span : spans) {
      e.state.set_pages(*span.sequence);
      in.rows.add(device_span(*span.sequence, span.num_rows, span.position, few));
      const int count = span.num_rows - span.first_output;
      if (count == 0) continue;
      std::iota(in.output_rows.host + in.outputs.counts.host->num_rows,
                in.output_rows.host + in.outputs.counts.host->num_rows + count, span.first_row + span.first_output);
      in.outputs.add(device_span(*span.sequence, count, span.position + span.first_output, few));
    }
    FT_CHECK_EQ(in.rows.counts.host->num_rows, num_rows);
    std::copy(ids.begin(), ids.end(), in.ids.host);
    for (size_t r = 0; r < hidden.size(); ++r)
      std::copy_n(hidden[r], dim, mtp_input_.data<float>() + static_cast<int64_t>(r) * dim);
    e.state.send_pages(e.stream);
    in.memory.send(e.stream);
    copy_to_device(e.stream, e.io.mtp_input, mtp_input_.data(), static_cast<size_t>(num_rows * dim) * sizeof(float));

    CudaRows rows{num_rows, in.rows.on_device(static_cast<int>(spans.size()))};
    CudaRows outputs{num_outputs_, in.outputs.on_device(in.outputs.counts.host->num_spans)};
    rows.has_windows = outputs.has_windows = few;
    rows.has_chunks = outputs.has_chunks = !few;
    e.mtp_take_in(rows, in.ids.device, e.io.mtp_input);
    if (num_outputs_ > 0) {
      e.mtp_finish(outputs, num_outputs_ == num_rows ? nullptr : in.output_rows.device);
    }
    mtp_current_ = 1 - mtp_current_;
    has_mtp_hidden_ = false;
  }

  void fetch(PinnedBuffer& to, const float* from, int64_t count) {
    engine_.attempt([&] {
      copy_to_host(engine_.stream, to.data(), from, static_cast<size_t>(count) * sizeof(float));
      engine_.stream.synchronize();
    });
  }

  // The device's rows hold the groups side by side; the host's have a place for every id.
  void fetch_draft_logits() {
    const int64_t stride = engine_.draft_groups.capacity, vocab_size = engine_.config.vocab_size;
    fetch(draft_logits_, engine_.io.draft_logits, num_mtp_logits_ * stride);
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
  PinnedBuffer mtp_input_;
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
