#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>

#include "engine/forward_pass.h"
#include "engine/machine.h"
#include "kernels/error.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"

namespace foretoken {

namespace {

// Rows of the head's output held at once where the window does not ask for more: 16 MB at a vocabulary of 248,320.
constexpr int kLogitsRows = 16;
// Head rows of one work item: 64 x 2048 values of Q6_K are 105 KiB.
constexpr int64_t kHeadRowsPerItem = 64;

struct RowRange {
  int64_t begin, end;
};

// Cuts [begin, end) into work items.
void append_items(int64_t begin, int64_t end, std::vector<RowRange>& items) {
  for (; begin < end; begin += kHeadRowsPerItem) items.push_back({begin, std::min(begin + kHeadRowsPerItem, end)});
}

SessionOptions filled(const Model& model, SessionOptions o) {
  if (o.ctx_size == 0) o.ctx_size = std::min(model.config().context_length, kDefaultContext);
  if (o.threads == 0) o.threads = available_cores();
  FT_CHECK(o.ctx_size > 0 && o.threads > 0 && o.prompt_chunk > 0 && o.max_window > 0);
  FT_CHECK(!o.with_mtp || model.has_mtp());
  if (o.ctx_size > model.config().context_length) {
    throw InputError(fmt::format("--ctx-size {}: {} was made for at most {} positions", o.ctx_size, model.path(),
                                 model.config().context_length));
  }
  o.prompt_chunk = static_cast<int>(std::min<int64_t>(o.prompt_chunk, o.ctx_size));
  return o;
}

double mib(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

}  // namespace

// Everything that takes memory. The mappings cost nothing until they are touched, so the sizes can be summed and
// checked first.
struct SessionBuffers {
  SessionBuffers(const ModelConfig& c, const SessionOptions& o)
      : max_rows(std::max(o.prompt_chunk, o.max_window)),
        logits_rows(std::max(o.max_window, std::min(max_rows, kLogitsRows))),
        kv(static_cast<int>(std::count(c.recurrent.begin(), c.recurrent.end(), false)), c.num_kv_heads, c.head_dim,
           o.ctx_size, o.kv_type),
        recurrent(c, o.max_window),
        pass(c, max_rows, o.max_window, o.ctx_size, o.threads),
        hidden(max_rows, c.hidden_dim),
        logits(logits_rows, c.vocab_size) {
    if (!o.with_mtp) return;
    mtp_kv = KvCache(1, c.num_kv_heads, c.head_dim, o.ctx_size, o.kv_type);
    mtp_join = RowBuffer(max_rows, 2 * c.hidden_dim);
    for (RowBuffer& rows : mtp_hidden) rows = RowBuffer(max_rows, c.hidden_dim);
    mtp_logits = FloatRows(logits_rows, c.vocab_size);
  }

  [[nodiscard]] SessionMemory memory(const ModelConfig& c, const SessionOptions& o) const {
    SessionMemory m;
    m.kv_bytes = kv.size_bytes() + mtp_kv.size_bytes();
    m.recurrent_bytes = recurrent.size_bytes();
    m.work_bytes = pass.size_bytes() + hidden.size_bytes() + logits.size_bytes() + mtp_join.size_bytes() +
                   mtp_hidden[0].size_bytes() + mtp_hidden[1].size_bytes() + mtp_logits.size_bytes() +
                   static_cast<size_t>(o.ctx_size) * static_cast<size_t>(c.rope_dim) * sizeof(float);
    return m;
  }

  int max_rows;
  int logits_rows;
  KvCache kv;
  RecurrentState recurrent;
  PassBuffers pass;
  RowBuffer hidden;  // [max_rows, hidden_dim] after the final norm
  FloatRows logits;  // [logits_rows, vocab_size]
  // MTP layer.
  KvCache mtp_kv;
  RowBuffer mtp_join;                   // [max_rows, 2 * hidden_dim] normed embedding, normed hidden
  std::array<RowBuffer, 2> mtp_hidden;  // [max_rows, hidden_dim], taking turns
  FloatRows mtp_logits;                 // [logits_rows, vocab_size]
};

struct Session::Impl {
  Impl(const Model& m, const SessionOptions& o)
      : model(m),
        config(m.config()),
        weights(m.weights()),
        options(filled(m, o)),
        buffers(config, options),
        memory(checked_memory()),
        team(options.threads),
        rope(config.rope_dim, config.rope_base, options.ctx_size),
        profile(options.profile ? std::make_unique<WorkProfile>(options.threads) : nullptr),
        pass(config, options, team, rope, buffers.pass, profile.get()) {
    append_items(0, config.vocab_size, head_items);
    draft_items = head_items;
  }

  SessionMemory checked_memory() const {
    const SessionMemory needed = buffers.memory(config, options);
    const size_t available = available_memory_bytes();
    if (needed.total() <= available) return needed;
    throw InputError(
        fmt::format("a context of {} positions needs {:.0f} MiB (KV cache {:.0f}, recurrent state {:.0f}, work "
                    "{:.0f}); {:.0f} MiB of memory "
                    "are available; choose a smaller --ctx-size",
                    options.ctx_size, mib(needed.total()), mib(needed.kv_bytes), mib(needed.recurrent_bytes),
                    mib(needed.work_bytes), mib(available)));
  }

  void check_ids(std::span<const TokenId> ids, int64_t position) const {
    FT_CHECK(!ids.empty() && static_cast<int64_t>(ids.size()) <= buffers.max_rows);
    FT_CHECK(position >= 0 && position + static_cast<int64_t>(ids.size()) <= options.ctx_size);
    for (TokenId id : ids) FT_CHECK(id >= 0 && id < config.vocab_size);
  }

  // logits[i] = head . rows[row_begin + i], for the head rows in `items`.
  void run_head(Work work, const MatrixView& head, const std::vector<RowRange>& items, const RowBuffer& rows,
                int row_begin, int row_end, FloatRows& logits) {
    const int num_rows = row_end - row_begin;
    FT_CHECK(num_rows > 0 && num_rows <= buffers.logits_rows);
    std::vector<RowView> inputs;
    for (int r = row_begin; r < row_end; ++r) inputs.push_back(rows.view(r));
    profiled_for(team, profile.get(), static_cast<int64_t>(items.size()), [&](int64_t item, int) {
      const RowRange& range = items[static_cast<size_t>(item)];
      thread_local std::vector<float*> outputs;
      outputs.resize(static_cast<size_t>(num_rows));
      for (int i = 0; i < num_rows; ++i) outputs[static_cast<size_t>(i)] = logits.row(i) + range.begin;
      matmul_rows(options.isa, head, range.begin, range.end, inputs.data(), num_rows, outputs.data());
      return WorkDone{work, (range.end - range.begin) * static_cast<int64_t>(head.row_bytes())};
    });
  }

  const Model& model;
  const ModelConfig& config;
  const ModelWeights& weights;
  const SessionOptions options;
  SessionBuffers buffers;
  const SessionMemory memory;
  ThreadTeam team;
  const RopeTable rope;
  const std::unique_ptr<WorkProfile> profile;
  ForwardPass pass;
  std::vector<RowRange> head_items, draft_items;

  int64_t length = 0;
  int pending = 0;
  int last_rows = 0;    // of the last forward(), committed or not
  bool in_slot = true;  // the last pass was no wider than a window
  double distinct_experts = 0;
  int logits_begin = 0, logits_end = 0;  // rows of the last forward() that `logits` holds
  int mtp_current = 0;                   // of buffers.mtp_hidden
  int mtp_first = 0;                     // rows [mtp_first, mtp_rows) of the last mtp_forward() have outputs
  int mtp_rows = 0;
  int mtp_logits_begin = 0, mtp_logits_end = 0;
};

Session::Session(const Model& model, const SessionOptions& options) : impl_(std::make_unique<Impl>(model, options)) {}
Session::~Session() = default;

SessionMemory Session::memory_needed(const Model& model, const SessionOptions& options) {
  const SessionOptions o = filled(model, options);
  return SessionBuffers(model.config(), o).memory(model.config(), o);
}

const Model& Session::model() const {
  return impl_->model;
}
const SessionOptions& Session::options() const {
  return impl_->options;
}
SessionMemory Session::memory() const {
  return impl_->memory;
}
ThreadTeam& Session::team() {
  return impl_->team;
}
WorkProfile* Session::profile() {
  return impl_->profile.get();
}
ExpertReads*& Session::expert_reads() {
  return impl_->buffers.pass.moe.reads;
}
int64_t Session::length() const {
  return impl_->length;
}
int Session::pending() const {
  return impl_->pending;
}
int Session::max_rows() const {
  return impl_->buffers.max_rows;
}
int Session::logits_capacity() const {
  return impl_->buffers.logits_rows;
}
double Session::distinct_experts() const {
  return impl_->distinct_experts;
}

void Session::reset() {
  Impl& s = *impl_;
  s.length = 0;
  s.pending = s.last_rows = s.mtp_rows = 0;
  s.logits_begin = s.logits_end = s.mtp_logits_begin = s.mtp_logits_end = 0;
  s.buffers.recurrent.reset();
}

void Session::forward(std::span<const TokenId> ids) {
  Impl& s = *impl_;
  FT_CHECK_EQ(s.pending, 0);
  s.check_ids(ids, s.length);
  const int num_rows = static_cast<int>(ids.size());
  s.in_slot = num_rows <= s.options.max_window;
  s.pass.begin(num_rows, s.length);
  s.pass.embed(s.weights.embed, ids);
  if (s.config.architecture == "qwen3moe") {
    run_qwen3moe_trunk(s.pass, s.weights, s.buffers.kv);
  } else {
    run_qwen35_trunk(s.pass, s.weights, s.buffers.kv, s.buffers.recurrent, s.in_slot);
  }
  s.pass.norm_to(s.weights.output_norm, block_bits({&s.weights.head}), s.buffers.hidden);
  s.distinct_experts = s.pass.take_distinct_experts();
  s.pending = s.last_rows = num_rows;
  s.logits_begin = s.logits_end = 0;
}

const float* Session::hidden(int row) const {
  return impl_->buffers.hidden.row(row);
}

void Session::compute_logits(int row_begin, int row_end) {
  Impl& s = *impl_;
  FT_CHECK(row_begin >= 0 && row_end <= s.last_rows);
  s.run_head(Work::kHead, s.weights.head, s.head_items, s.buffers.hidden, row_begin, row_end, s.buffers.logits);
  s.logits_begin = row_begin;
  s.logits_end = row_end;
}

const float* Session::logits(int row) const {
  FT_CHECK(row >= impl_->logits_begin && row < impl_->logits_end);
  return impl_->buffers.logits.row(row - impl_->logits_begin);
}

void Session::commit(int num_rows) {
  Impl& s = *impl_;
  FT_CHECK(num_rows >= (s.in_slot ? 1 : s.pending) && num_rows <= s.pending);
  s.buffers.recurrent.commit(num_rows, s.in_slot);
  s.length += num_rows;
  s.pending = 0;
}

void Session::mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                          int first_output) {
  Impl& s = *impl_;
  FT_CHECK(s.options.with_mtp);
  FT_CHECK_EQ(ids.size(), hidden.size());
  s.check_ids(ids, position);
  const MtpWeights& w = s.weights.mtp;
  const AttentionWeights& mix = w.layer.attention;
  ForwardPass& pass = s.pass;
  const int64_t dim = s.config.hidden_dim;
  const int num_rows = static_cast<int>(ids.size()), num_outputs = num_rows - first_output;
  FT_CHECK(first_output >= 0 && num_outputs > 0);
  RowBuffer& join = s.buffers.mtp_join;
  RowBuffer& residual = s.buffers.pass.residual;

  // u = join . [rms_norm(embedding, embed_norm); rms_norm(hidden, hidden_norm)]; keys and values of all rows.
  pass.begin(num_rows, position, /*is_mtp=*/true);
  pass.embed(w.embed, ids);
  pass.for_rows([&](int64_t r, int) {
    rms_norm(s.options.isa, residual.row(r), w.embed_norm, dim, s.config.norm_eps, join.row(r));
    rms_norm(s.options.isa, hidden[static_cast<size_t>(r)], w.hidden_norm, dim, s.config.norm_eps, join.row(r) + dim);
    quantise_forms(s.options.isa, join, r, block_bits({&w.join}));
    std::fill_n(residual.row(r), dim, 0.0f);
  });
  pass.project(Work::kMtpLayer, join, {{w.join, s.buffers.pass.mixed}});
  const unsigned mix_blocks = block_bits({&mix.q, &mix.k, &mix.v});
  pass.add_and_norm(w.layer.mix_norm, mix_blocks);
  pass.store_keys_and_values(mix, s.buffers.mtp_kv, 0);

  // The rows whose output is wanted go on alone, moved to the front.
  if (first_output > 0) {
    for (int r = 0; r < num_outputs; ++r) std::copy_n(residual.row(first_output + r), dim, residual.row(r));
    pass.begin(num_outputs, position + first_output, /*is_mtp=*/true);
    pass.norm(w.layer.mix_norm, mix_blocks);
  }
  pass.attend_stored(mix, s.buffers.mtp_kv, 0);
  pass.add_and_norm(w.layer.ffn_norm, input_blocks(w.layer.moe));
  pass.feed_forward(w.layer.moe);
  (void)pass.take_distinct_experts();
  s.mtp_current = 1 - s.mtp_current;
  pass.norm_to(w.head_norm, block_bits({&w.head}), s.buffers.mtp_hidden[static_cast<size_t>(s.mtp_current)]);
  s.mtp_first = first_output;
  s.mtp_rows = num_rows;
  s.mtp_logits_begin = s.mtp_logits_end = 0;
}

const float* Session::mtp_hidden(int row) const {
  FT_CHECK(row >= impl_->mtp_first && row < impl_->mtp_rows);
  return impl_->buffers.mtp_hidden[static_cast<size_t>(impl_->mtp_current)].row(row - impl_->mtp_first);
}

void Session::mtp_compute_logits(int row_begin, int row_end) {
  Impl& s = *impl_;
  FT_CHECK(row_begin >= s.mtp_first && row_end <= s.mtp_rows);
  s.run_head(Work::kDraftHead, s.weights.mtp.head, s.draft_items,
             s.buffers.mtp_hidden[static_cast<size_t>(s.mtp_current)], row_begin - s.mtp_first, row_end - s.mtp_first,
             s.buffers.mtp_logits);
  s.mtp_logits_begin = row_begin;
  s.mtp_logits_end = row_end;
}

const float* Session::mtp_logits(int row) const {
  FT_CHECK(row >= impl_->mtp_logits_begin && row < impl_->mtp_logits_end);
  return impl_->buffers.mtp_logits.row(row - impl_->mtp_logits_begin);
}

void Session::set_draft_groups(std::span<const int32_t> groups) {
  Impl& s = *impl_;
  FT_CHECK(s.options.with_mtp);
  s.draft_items.clear();
  const int64_t num_groups = (s.config.vocab_size + kInterleave - 1) / kInterleave;
  for (size_t i = 0; i < groups.size();) {
    size_t next = i + 1;  // a run of neighbouring groups makes items together
    while (next < groups.size() && groups[next] == groups[next - 1] + 1) ++next;
    FT_CHECK(groups[i] >= 0 && groups[next - 1] < num_groups &&
             (next == groups.size() || groups[next] > groups[next - 1]));
    append_items(int64_t{groups[i]} * kInterleave,
                 std::min((int64_t{groups[next - 1]} + 1) * kInterleave, s.config.vocab_size), s.draft_items);
    i = next;
  }
  for (int r = 0; r < s.buffers.logits_rows; ++r) {
    std::fill_n(s.buffers.mtp_logits.row(r), s.config.vocab_size, -std::numeric_limits<float>::infinity());
  }
}

void Session::add_draft_group(int32_t group) {
  Impl& s = *impl_;
  const int64_t begin = int64_t{group} * kInterleave;
  FT_CHECK(s.options.with_mtp && group >= 0 && begin < s.config.vocab_size);
  s.draft_items.push_back({begin, std::min(begin + kInterleave, s.config.vocab_size)});
}

}  // namespace foretoken
