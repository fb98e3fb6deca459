#include "engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine/backend.h"
#include "engine/cluster/cluster.h"
#include "engine/cpu/cpu_backend.h"
#include "engine/gguf/sha256.h"
#include "engine/machine.h"
#include "engine/sequence/page_pool.h"
#include "kernels/base/error.h"
#include "kernels/formats/matrix.h"
#include "kernels/select/softmax.h"

namespace foretoken {

namespace {

MakeDeviceBackend device_backend = nullptr;

SessionOptions filled(const Model& model, SessionOptions o) {
  o = with_defaults(model.config(), std::move(o));
  FT_CHECK(o.ctx_size > 0 && o.threads > 0 && o.prompt_chunk > 0 && o.max_window > 0 && o.parallel > 0);
  FT_CHECK(!o.with_mtp || model.has_mtp());
  FT_CHECK(!o.cublas || o.device != Device::kCpu);
  if (o.ctx_size > model.config().context_length) {
    throw InputError(fmt::format("--ctx-size {}: {} was made for at most {} positions", o.ctx_size, model.path(),
                                 model.config().context_length));
  }
  return o;
}

std::unique_ptr<Backend> make_backend(const Model& model, const SessionOptions& options) {
  FT_CHECK((options.cluster != nullptr) == (model.share() != nullptr));
  if (options.cluster != nullptr) return options.cluster->make_backend(model, options);
  if (options.device == Device::kCpu) return make_cpu_backend(model, options);
  if (device_backend == nullptr) {
    throw InputError(
        "--device: this program was built without CUDA (-DFORETOKEN_CUDA=ON builds it in); run with --device cpu");
  }
  return device_backend(model, options);
}

// ---- saved sequences ----

/// What a saved sequence begins with; then its pages, its recurrent states, and the SHA-256 of all before in
/// hexadecimal digits.
struct SavedHeader {
  char magic[8] = {'F', 'T', 'S', 'E', 'Q', '0', '0', '2'};
  char model[64] = {};  // Model::fingerprint
  int64_t length = 0;
  uint64_t num_pages = 0;
  uint64_t page_bytes = 0;
  uint64_t state_bytes = 0;
  uint64_t total_bytes = 0;  // with the checksum
};
constexpr size_t kChecksumBytes = 64;

[[noreturn]] void refuse_saved(const std::string& why) {
  throw InputError("the saved sequence " + why);
}

}  // namespace

void set_device_backend(MakeDeviceBackend make) {
  device_backend = make;
}

struct Engine::Impl {
  Impl(const Model& m, const SessionOptions& o)
      : model(m), backend(make_backend(m, filled(m, o))), pages(backend->num_pages()) {
    for (int slot = backend->options().parallel - 1; slot >= 0; --slot) free_slots.push_back(slot);
    spans.reserve(backend->options().parallel);
    mtp_spans.reserve(spans.capacity());
    ids.reserve(pass_rows(backend->options()));
    hidden.reserve(ids.capacity());
  }

  const SessionOptions& options() const { return backend->options(); }

  void check_ids(std::span<const TokenId> to_check) const {
    FT_CHECK(!to_check.empty());
    for (TokenId id : to_check) FT_CHECK(id >= 0 && id < model.config().vocab_size);
  }

  void check_group(int32_t group) const {
    FT_CHECK(options().with_mtp && group >= 0 && int64_t{group} * kInterleave < model.config().vocab_size);
  }

  const Model& model;
  const std::unique_ptr<Backend> backend;
  PagePool pages;
  std::vector<int> free_slots;  // the next one to give away last

  int num_rows = 0;  // of the last forward()
  int num_logits = 0;
  int num_outputs = 0;  // of the last mtp_forward()
  int num_mtp_logits = 0;

  // Of the running pass.
  std::vector<Span> spans;
  std::vector<MtpSpan> mtp_spans;
  std::vector<TokenId> ids;
  std::vector<const float*> hidden;
};

Engine::Engine(const Model& model, const SessionOptions& options) : impl_(std::make_unique<Impl>(model, options)) {}
Engine::~Engine() = default;

SessionMemory Engine::memory_needed(const Model& model, const SessionOptions& options) {
  return session_memory(model.weights(), model.config(), options);
}

const Model& Engine::model() const {
  return impl_->model;
}
const SessionOptions& Engine::options() const {
  return impl_->options();
}
SessionMemory Engine::memory() const {
  return impl_->backend->memory();
}
ThreadTeam& Engine::team() {
  return impl_->backend->team();
}
WorkProfile* Engine::profile() {
  return impl_->backend->profile();
}
void Engine::count_expert_reads(ExpertReads* reads) {
  impl_->backend->count_expert_reads(reads);
}
ReadsByPlace Engine::reads_by_place() const {
  return impl_->backend->reads_by_place();
}
DeviceCycle* Engine::device_cycle() {
  return impl_->backend->device_cycle();
}
int Engine::max_rows() const {
  return pass_rows(impl_->options());
}
int Engine::logits_capacity() const {
  return logits_rows(impl_->options());
}
int Engine::num_pages() const {
  return impl_->pages.num_pages();
}
int Engine::free_pages() const {
  return impl_->pages.num_free();
}
int Engine::free_slots() const {
  return static_cast<int>(impl_->free_slots.size());
}

void Engine::forward(std::span<const Input> inputs) {
  Impl& e = *impl_;
  e.spans.clear();
  e.ids.clear();
  for (const Input& input : inputs) {
    const Sequence& sequence = *input.sequence;
    const int num_rows = static_cast<int>(input.ids.size());
    FT_CHECK(&sequence.engine_ == this);
    FT_CHECK_EQ(sequence.pending_, 0);
    e.check_ids(input.ids);
    FT_CHECK(sequence.length() + num_rows <= std::min(sequence.reserved(), e.options().ctx_size));
    FT_CHECK(!input.is_window || num_rows <= e.options().max_window);
    e.spans.push_back({&sequence.state_, static_cast<int>(e.ids.size()), num_rows, sequence.length(), input.is_window});
    e.ids.insert(e.ids.end(), input.ids.begin(), input.ids.end());
  }
  FT_CHECK(!e.ids.empty() && static_cast<int>(e.ids.size()) <= max_rows());
  e.num_rows = e.num_logits = 0;
  e.backend->forward(e.spans, e.ids);
  e.num_rows = static_cast<int>(e.ids.size());
  for (const Input& input : inputs) {
    input.sequence->pending_ = static_cast<int>(input.ids.size());
    input.sequence->pending_is_window_ = input.is_window;
  }
}

int Engine::first_row(int input) const {
  return impl_->spans.at(input).first_row;
}

const float* Engine::hidden(int row) const {
  FT_CHECK(row >= 0 && row < impl_->num_rows);
  return impl_->backend->hidden(row);
}

void Engine::check_row(int row) const {
  const RowFaults& faults = impl_->backend->faults();
  if (row >= faults.num_rows()) return;  // a backend that does not look
  const std::optional<RowFault> fault = faults.find(row);
  if (!fault) return;
  const auto span =
      std::find_if(impl_->spans.begin(), impl_->spans.end(), [&](const Span& s) { return row < s.end_row(); });
  FT_CHECK(span != impl_->spans.end());
  throw InputError(fmt::format("{}: {}", model().path(),
                               describe_fault(*fault, span->position + row - span->first_row, /*is_mtp=*/false)));
}

double Engine::distinct_experts() const {
  return impl_->backend->distinct_experts();
}

void Engine::compute_logits(std::span<const int32_t> rows) {
  FT_CHECK(!rows.empty() && static_cast<int>(rows.size()) <= logits_capacity());
  for (const int32_t row : rows) FT_CHECK(row >= 0 && row < impl_->num_rows);
  impl_->backend->compute_logits(rows);
  impl_->num_logits = static_cast<int>(rows.size());
}

const float* Engine::logits(int index) const {
  FT_CHECK(index >= 0 && index < impl_->num_logits);
  return impl_->backend->logits(index);
}

TokenId Engine::choose(int index, const SamplingOptions& sampling, int64_t position) const {
  FT_CHECK(index >= 0 && index < impl_->num_logits);
  if (sampling.temperature == 0.0f) {
    if (const std::optional<TokenId> largest = impl_->backend->largest_logit(index)) return *largest;
  }
  return choose_token(options().isa, logits(index), model().config().vocab_size, sampling, position);
}

void Engine::mtp_forward(std::span<const MtpInput> inputs) {
  Impl& e = *impl_;
  FT_CHECK(e.options().with_mtp);
  e.mtp_spans.clear();
  e.ids.clear();
  e.hidden.clear();
  int num_outputs = 0;
  for (const MtpInput& input : inputs) {
    const Sequence& sequence = *input.sequence;
    const int num_rows = static_cast<int>(input.ids.size());
    FT_CHECK(&sequence.engine_ == this);
    e.check_ids(input.ids);
    FT_CHECK_EQ(input.ids.size(), input.hidden.size());
    FT_CHECK(input.position >= 0 && input.position + num_rows <= std::min(sequence.reserved(), e.options().ctx_size));
    FT_CHECK(input.first_output >= 0 && input.first_output <= num_rows);
    e.mtp_spans.push_back(
        {{&sequence.state_, static_cast<int>(e.ids.size()), num_rows, input.position, true}, input.first_output});
    num_outputs += num_rows - input.first_output;
    e.ids.insert(e.ids.end(), input.ids.begin(), input.ids.end());
    e.hidden.insert(e.hidden.end(), input.hidden.begin(), input.hidden.end());
  }
  FT_CHECK(!e.ids.empty() && static_cast<int>(e.ids.size()) <= max_rows());
  e.backend->mtp_forward(e.mtp_spans, e.ids, e.hidden);
  e.num_outputs = num_outputs;
  e.num_mtp_logits = 0;
}

std::optional<std::string> Engine::mtp_fault(int input) const {
  const RowFaults& faults = impl_->backend->mtp_faults();
  const MtpSpan& span = impl_->mtp_spans.at(input);
  for (int r = span.first_row; r < std::min(span.end_row(), faults.num_rows()); ++r) {
    if (const std::optional<RowFault> fault = faults.find(r))
      return describe_fault(*fault, span.position + r - span.first_row, /*is_mtp=*/true);
  }
  return std::nullopt;
}

const float* Engine::mtp_hidden(int output) const {
  FT_CHECK(output >= 0 && output < impl_->num_outputs);
  return impl_->backend->mtp_hidden(output);
}

void Engine::mtp_compute_logits(std::span<const int32_t> outputs) {
  FT_CHECK(!outputs.empty() && static_cast<int>(outputs.size()) <= logits_capacity());
  for (const int32_t output : outputs) FT_CHECK(output >= 0 && output < impl_->num_outputs);
  impl_->backend->mtp_compute_logits(outputs);
  impl_->num_mtp_logits = static_cast<int>(outputs.size());
}

const float* Engine::mtp_logits(int index) const {
  FT_CHECK(index >= 0 && index < impl_->num_mtp_logits);
  return impl_->backend->mtp_logits(index);
}

Engine::DraftChoice Engine::mtp_choose(int index, const SamplingOptions& sampling, int64_t position) const {
  FT_CHECK(index >= 0 && index < impl_->num_mtp_logits);
  if (sampling.temperature == 0.0f) {
    if (const auto largest = impl_->backend->mtp_largest_logit(index)) return {largest->first, largest->second};
  }
  const int64_t vocab_size = model().config().vocab_size;
  const float* all = mtp_logits(index);
  const TokenId id = choose_token(options().isa, all, vocab_size, sampling, position);
  return {id, softmax_share(options().isa, all, vocab_size, id)};
}

void Engine::set_draft_groups(std::span<const int32_t> groups) {
  for (size_t i = 0; i < groups.size(); ++i) {
    impl_->check_group(groups[i]);
    FT_CHECK(i == 0 || groups[i] > groups[i - 1]);
  }
  impl_->backend->set_draft_groups(groups);
}

void Engine::add_draft_group(int32_t group) {
  impl_->check_group(group);
  impl_->backend->add_draft_group(group);
}

Sequence::Sequence(Engine& engine) : engine_(engine) {
  Engine::Impl& e = *engine.impl_;
  FT_CHECK(!e.free_slots.empty());
  state_.slot = e.free_slots.back();
  e.free_slots.pop_back();
  state_.pages.reserve(pages_of(e.options().ctx_size));
  e.backend->reset(state_.slot);
}

Sequence::~Sequence() {
  drop_pages();
  engine_.impl_->free_slots.push_back(state_.slot);
}

void Sequence::drop_pages() {
  for (const int32_t page : state_.pages) engine_.impl_->pages.drop(page);
  state_.pages.clear();
}

bool Sequence::reserve(int64_t positions) {
  Engine::Impl& e = *engine_.impl_;
  FT_CHECK(positions <= e.options().ctx_size);
  const int64_t missing = pages_of(positions) - static_cast<int64_t>(state_.pages.size());
  if (missing > e.pages.num_free()) return false;
  for (int64_t i = 0; i < missing; ++i) state_.pages.push_back(e.pages.take());
  return true;
}

void Sequence::reset() {
  drop_pages();
  state_.length = 0;
  state_.turn.reset();
  pending_ = 0;
  engine_.impl_->backend->reset(state_.slot);
}

void Sequence::commit(int num_rows) {
  FT_CHECK(num_rows >= (pending_is_window_ ? 1 : pending_) && num_rows <= pending_);
  const auto& spans = engine_.impl_->spans;
  const auto mine = std::find_if(spans.begin(), spans.end(), [&](const Span& s) { return s.sequence == &state_; });
  FT_CHECK(mine != spans.end());
  for (int r = 0; r < num_rows; ++r) engine_.check_row(mine->first_row + r);
  state_.commit(num_rows, pending_is_window_);
  pending_ = 0;
}

size_t Sequence::used_pages() const {
  const int64_t ahead = engine_.options().with_mtp ? 1 : 0;
  return std::min(static_cast<size_t>(pages_of(length() + ahead)), state_.pages.size());
}

bool Sequence::copy(Sequence& from, int64_t mtp_length) {
  Engine::Impl& e = *engine_.impl_;
  FT_CHECK(&from.engine_ == &engine_ && from.pending_ == 0 && mtp_length <= from.length());
  FT_CHECK(length() == 0 && state_.pages.empty());
  // A page is shared once the trunk and the MTP layer have filled it: until then somebody will write to it.
  const int64_t full = (e.options().with_mtp ? std::min(from.length(), mtp_length) : from.length()) / kPagePositions;
  const auto used = static_cast<int64_t>(from.used_pages());
  if (used - full > e.pages.num_free()) return false;
  e.backend->settle(from.state_);
  std::vector<std::byte> bytes(e.backend->page_bytes());
  for (int64_t i = 0; i < used; ++i) {
    const int32_t page = from.state_.pages[i];
    if (i < full) {
      e.pages.share(page);
      state_.pages.push_back(page);
      continue;
    }
    state_.pages.push_back(e.pages.take());
    e.backend->read_page(page, bytes);
    e.backend->write_page(state_.pages.back(), bytes);
  }
  bytes.resize(e.backend->state_bytes());
  e.backend->read_state(from.state_.slot, bytes);
  e.backend->write_state(state_.slot, bytes);
  state_.turn.reset();
  state_.length = from.length();
  pending_ = 0;
  return true;
}

SequenceCheckpoint::~SequenceCheckpoint() {
  for (const int32_t page : pages_) engine_.impl_->pages.drop(page);
}

std::unique_ptr<SequenceCheckpoint> Sequence::checkpoint(int64_t mtp_length) {
  Engine::Impl& e = *engine_.impl_;
  FT_CHECK(pending_ == 0 && mtp_length <= length());
  e.backend->settle(state_);
  const auto full = static_cast<size_t>((e.options().with_mtp ? mtp_length : length()) / kPagePositions);
  const size_t used = used_pages(), page_bytes = e.backend->page_bytes(), state_bytes = e.backend->state_bytes();
  std::unique_ptr<SequenceCheckpoint> checkpoint(new SequenceCheckpoint(engine_));
  checkpoint->length_ = length();
  checkpoint->num_copied_pages_ = used - full;
  checkpoint->copy_.resize((used - full) * page_bytes + state_bytes);
  const std::span<std::byte> copy = checkpoint->copy_;
  for (size_t i = full; i < used; ++i)
    e.backend->read_page(state_.pages[i], copy.subspan((i - full) * page_bytes, page_bytes));
  e.backend->read_state(state_.slot, copy.subspan((used - full) * page_bytes, state_bytes));
  checkpoint->pages_.assign(state_.pages.begin(), state_.pages.begin() + static_cast<std::ptrdiff_t>(full));
  for (const int32_t page : checkpoint->pages_) e.pages.share(page);
  return checkpoint;
}

bool Sequence::resume(const SequenceCheckpoint& checkpoint) {
  Engine::Impl& e = *engine_.impl_;
  FT_CHECK(&checkpoint.engine_ == &engine_ && length() == 0 && pending_ == 0 && state_.pages.empty());
  if (checkpoint.num_copied_pages_ > static_cast<size_t>(e.pages.num_free())) return false;
  const size_t page_bytes = e.backend->page_bytes();
  const std::span<const std::byte> copy = checkpoint.copy_;
  for (const int32_t page : checkpoint.pages_) {
    e.pages.share(page);
    state_.pages.push_back(page);
  }
  for (size_t i = 0; i < checkpoint.num_copied_pages_; ++i) {
    state_.pages.push_back(e.pages.take());
    e.backend->write_page(state_.pages.back(), copy.subspan(i * page_bytes, page_bytes));
  }
  e.backend->write_state(state_.slot, copy.subspan(checkpoint.num_copied_pages_ * page_bytes));
  state_.turn.reset();
  state_.length = checkpoint.length_;
  return true;
}

std::vector<std::byte> Sequence::save() {
  Engine::Impl& e = *engine_.impl_;
  FT_CHECK_EQ(pending_, 0);
  e.backend->settle(state_);
  const size_t used = used_pages();
  SavedHeader header;
  std::copy_n(e.model.fingerprint().begin(), std::min(e.model.fingerprint().size(), sizeof header.model), header.model);
  header.length = length();
  header.num_pages = used;
  header.page_bytes = e.backend->page_bytes();
  header.state_bytes = e.backend->state_bytes();
  header.total_bytes = sizeof header + used * header.page_bytes + header.state_bytes + kChecksumBytes;
  std::vector<std::byte> saved(header.total_bytes);
  std::memcpy(saved.data(), &header, sizeof header);
  size_t at = sizeof header;
  for (size_t i = 0; i < used; ++i, at += header.page_bytes)
    e.backend->read_page(state_.pages[i], std::span(saved).subspan(at, header.page_bytes));
  e.backend->read_state(state_.slot, std::span(saved).subspan(at, header.state_bytes));
  at += header.state_bytes;
  const std::string checksum = sha256_hex(std::span(saved).first(at));
  std::memcpy(saved.data() + at, checksum.data(), kChecksumBytes);
  return saved;
}

void Sequence::restore(std::span<const std::byte> saved) {
  Engine::Impl& e = *engine_.impl_;
  SavedHeader header;
  const SavedHeader ours;
  if (saved.size() < sizeof header + kChecksumBytes) refuse_saved("is cut off");
  std::memcpy(&header, saved.data(), sizeof header);
  if (std::memcmp(header.magic, ours.magic, sizeof ours.magic) != 0) refuse_saved("is none, or of another version");
  if (header.total_bytes != saved.size()) {
    refuse_saved(fmt::format("has {} bytes; {} were written", saved.size(), header.total_bytes));
  }
  const auto payload = saved.first(saved.size() - kChecksumBytes);
  if (sha256_hex(payload) !=
      std::string_view(reinterpret_cast<const char*>(saved.data() + payload.size()), kChecksumBytes))
    refuse_saved("is damaged: its checksum does not match");
  const std::string& model = e.model.fingerprint();
  if (std::string_view(header.model, sizeof header.model) != model) {
    refuse_saved(fmt::format("is of another model: {} was saved, {} is {}",
                             std::string(header.model, sizeof header.model), e.model.path(), model));
  }
  if (header.page_bytes != e.backend->page_bytes() || header.state_bytes != e.backend->state_bytes()) {
    refuse_saved(
        "was made with another --kv-type, or with the MTP layer where there is none now or the other way round");
  }
  if (header.length < 0 || header.length > e.options().ctx_size) {
    refuse_saved(fmt::format("has {} positions; --ctx-size is {}", header.length, e.options().ctx_size));
  }
  const auto used = static_cast<size_t>(header.num_pages);
  const int64_t ahead = e.options().with_mtp ? 1 : 0;
  if (header.num_pages < static_cast<uint64_t>(pages_of(header.length)) ||
      header.num_pages > static_cast<uint64_t>(pages_of(header.length + ahead)) ||
      payload.size() != sizeof header + used * header.page_bytes + header.state_bytes)
    refuse_saved("is damaged");
  drop_pages();
  if (used > static_cast<size_t>(e.pages.num_free())) {
    refuse_saved(fmt::format("needs {} pages of KV memory; {} are free", used, e.pages.num_free()));
  }
  size_t at = sizeof header;
  for (size_t i = 0; i < used; ++i, at += header.page_bytes) {
    state_.pages.push_back(e.pages.take());
    e.backend->write_page(state_.pages.back(), payload.subspan(at, header.page_bytes));
  }
  e.backend->write_state(state_.slot, payload.subspan(at, header.state_bytes));
  state_.turn.reset();
  state_.length = header.length;
  pending_ = 0;
}

}  // namespace foretoken
