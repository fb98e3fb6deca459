#include "engine/session.h"

#include <numeric>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

SessionOptions for_one(SessionOptions options) {
  options.parallel = 1;
  options.kv_memory_bytes = 0;
  return options;
}

}  // namespace

Session::Session(const Model& model, const SessionOptions& options)
    : engine_(model, for_one(options)), sequence_(engine_) {
  reset();
}

void Session::reset() {
  sequence_.reset();
  FT_CHECK(sequence_.reserve(options().ctx_size));
}

void Session::forward(std::span<const TokenId> ids) {
  const Engine::Input input{&sequence_, ids, static_cast<int>(ids.size()) <= options().max_window};
  engine_.forward({&input, 1});
}

void Session::compute_logits(int row_begin, int row_end) {
  FT_CHECK(row_begin >= 0 && row_begin < row_end);
  rows_.resize(row_end - row_begin);
  std::iota(rows_.begin(), rows_.end(), row_begin);
  engine_.compute_logits(rows_);
  logits_begin_ = row_begin;
}

void Session::mtp_forward(std::span<const TokenId> ids, int64_t position, std::span<const float* const> hidden,
                          int first_output) {
  FT_CHECK(first_output < static_cast<int>(ids.size()));
  const Engine::MtpInput input{&sequence_, position, ids, hidden, first_output};
  engine_.mtp_forward({&input, 1});
  mtp_first_ = first_output;
}

void Session::mtp_compute_logits(int row_begin, int row_end) {
  FT_CHECK(row_begin >= mtp_first_ && row_begin < row_end);
  rows_.resize(row_end - row_begin);
  std::iota(rows_.begin(), rows_.end(), row_begin - mtp_first_);
  engine_.mtp_compute_logits(rows_);
  mtp_logits_begin_ = row_begin;
}

}  // namespace foretoken
