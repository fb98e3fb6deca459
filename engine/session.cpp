#include "engine/session.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/backend.h"
#include "engine/cpu/cpu_backend.h"
#include "engine/machine.h"
#include "kernels/base/error.h"
#include "kernels/formats/matrix.h"

namespace foretoken {

namespace {

MakeDeviceBackend device_backend = nullptr;

SessionOptions filled(const Model& model, SessionOptions o) {
  if (o.ctx_size == 0) o.ctx_size = std::min(model.config().context_length, kDefaultContext);
  if (o.threads == 0) o.threads = available_cores();
  FT_CHECK(o.ctx_size > 0 && o.threads > 0 && o.prompt_chunk > 0 && o.max_window > 0);
  FT_CHECK(!o.with_mtp || model.has_mtp());
  FT_CHECK(!o.cublas || o.device != Device::kCpu);
  if (o.ctx_size > model.config().context_length) {
    throw InputError(fmt::format("--ctx-size {}: {} was made for at most {} positions", o.ctx_size, model.path(),
                                 model.config().context_length));
  }
  o.prompt_chunk = static_cast<int>(std::min<int64_t>(o.prompt_chunk, o.ctx_size));
  return o;
}

std::unique_ptr<Backend> make_backend(const Model& model, const SessionOptions& options) {
  if (options.device == Device::kCpu) return make_cpu_backend(model, options);
  if (device_backend == nullptr) {
    throw InputError(
        "--device: this program was built without CUDA (-DFORETOKEN_CUDA=ON builds it in); run with --device cpu");
  }
  return device_backend(model, options);
}

}  // namespace

void set_device_backend(MakeDeviceBackend make) {
  device_backend = make;
}

struct Session::Impl {
  Impl(const Model& m, const SessionOptions& o) : model(m), backend(make_backend(m, filled(m, o))) {}

  const SessionOptions& options() const { return backend->options(); }

  void check_ids(std::span<const TokenId> ids, int64_t position) const {
    FT_CHECK(!ids.empty() && static_cast<int64_t>(ids.size()) <= pass_rows(options()));
    FT_CHECK(position >= 0 && position + static_cast<int64_t>(ids.size()) <= options().ctx_size);
    for (TokenId id : ids) FT_CHECK(id >= 0 && id < model.config().vocab_size);
  }

  void check_group(int32_t group) const {
    FT_CHECK(options().with_mtp && group >= 0 && int64_t{group} * kInterleave < model.config().vocab_size);
  }

  const Model& model;
  const std::unique_ptr<Backend> backend;

  int pending = 0;
  int last_rows = 0;                     // of the last forward(), committed or not
  bool in_slot = true;                   // the last pass was no wider than a window
  int logits_begin = 0, logits_end = 0;  // rows of the last forward() whose logits are held
  int mtp_first = 0, mtp_rows = 0;       // rows [mtp_first, mtp_rows) of the last mtp_forward() have outputs
  int mtp_logits_begin = 0, mtp_logits_end = 0;
};

Session::Session(const Model& model, const SessionOptions& options) : impl_(std::make_unique<Impl>(model, options)) {}
Session::~Session() = default;

SessionMemory Session::memory_needed(const Model& model, const SessionOptions& options) {
  return cpu_memory_needed(model, filled(model, options));
}

const Model& Session::model() const {
  return impl_->model;
}
const SessionOptions& Session::options() const {
  return impl_->options();
}
SessionMemory Session::memory() const {
  return impl_->backend->memory();
}
ThreadTeam& Session::team() {
  return impl_->backend->team();
}
WorkProfile* Session::profile() {
  return impl_->backend->profile();
}
ExpertReads*& Session::expert_reads() {
  return impl_->backend->expert_reads();
}
ExpertPlaces Session::expert_places() const {
  return impl_->backend->expert_places();
}
DeviceCycle* Session::device_cycle() {
  return impl_->backend->device_cycle();
}
int64_t Session::length() const {
  return impl_->backend->length();
}
int Session::pending() const {
  return impl_->pending;
}
int Session::max_rows() const {
  return pass_rows(impl_->options());
}
int Session::logits_capacity() const {
  return logits_rows(impl_->options());
}
double Session::distinct_experts() const {
  return impl_->backend->distinct_experts();
}

void Session::reset() {
  Impl& s = *impl_;
  s.pending = s.last_rows = s.mtp_rows = 0;
  s.logits_begin = s.logits_end = s.mtp_logits_begin = s.mtp_logits_end = 0;
  s.backend->reset();
}

void Session::forward(std::span<const TokenId> ids) {
  Impl& s = *impl_;
  FT_CHECK_EQ(s.pending, 0);
  s.check_ids(ids, length());
  const int num_rows = static_cast<int>(ids.size());
  s.in_slot = num_rows <= s.options().max_window;
  s.backend->forward(ids, s.in_slot);
  s.pending = s.last_rows = num_rows;
  s.logits_begin = s.logits_end = 0;
}

const float* Session::hidden(int row) const {
  return impl_->backend->hidden(row);
}

void Session::compute_logits(int row_begin, int row_end) {
  Impl& s = *impl_;
  FT_CHECK(row_begin >= 0 && row_begin < row_end && row_end <= s.last_rows && row_end - row_begin <= logits_capacity());
  s.backend->compute_logits(row_begin, row_end);
  s.logits_begin = row_begin;
  s.logits_end = row_end;
}

const float* Session::logits(int row) const {
  FT_CHECK(row >= impl_->logits_begin && row < impl_->logits_end);
  return impl_->backend->logits(row - impl_->logits_begin);
}

void Session::commit(int num_rows) {
  Impl& s = *impl_;
  FT_CHECK(num_rows >= (s.in_slot ? 1 : s.pending) && num_rows <= s.pending);
  s.backend->commit(num_rows, s.in_slot);
  s.pending = 0;
}

void Session::mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                          int first_output) {
  Impl& s = *impl_;
  FT_CHECK(s.options().with_mtp);
  FT_CHECK_EQ(ids.size(), hidden.size());
  s.check_ids(ids, position);
  FT_CHECK(first_output >= 0 && first_output < static_cast<int>(ids.size()));
  s.backend->mtp_forward(ids, position, hidden, first_output);
  s.mtp_first = first_output;
  s.mtp_rows = static_cast<int>(ids.size());
  s.mtp_logits_begin = s.mtp_logits_end = 0;
}

const float* Session::mtp_hidden(int row) const {
  FT_CHECK(row >= impl_->mtp_first && row < impl_->mtp_rows);
  return impl_->backend->mtp_hidden(row - impl_->mtp_first);
}

void Session::mtp_compute_logits(int row_begin, int row_end) {
  Impl& s = *impl_;
  FT_CHECK(row_begin >= s.mtp_first && row_begin < row_end && row_end <= s.mtp_rows &&
           row_end - row_begin <= logits_capacity());
  s.backend->mtp_compute_logits(row_begin - s.mtp_first, row_end - s.mtp_first);
  s.mtp_logits_begin = row_begin;
  s.mtp_logits_end = row_end;
}

const float* Session::mtp_logits(int row) const {
  FT_CHECK(row >= impl_->mtp_logits_begin && row < impl_->mtp_logits_end);
  return impl_->backend->mtp_logits(row - impl_->mtp_logits_begin);
}

void Session::set_draft_groups(std::span<const int32_t> groups) {
  for (size_t i = 0; i < groups.size(); ++i) {
    impl_->check_group(groups[i]);
    FT_CHECK(i == 0 || groups[i] > groups[i - 1]);
  }
  impl_->backend->set_draft_groups(groups);
}

void Session::add_draft_group(int32_t group) {
  impl_->check_group(group);
  impl_->backend->add_draft_group(group);
}

}  // namespace foretoken
