#include "tests/engine/model/engine_logits.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/session.h"
#include "tests/engine/model/reference.h"

namespace foretoken::test {

EngineLogits run_engine(const Model& model, std::span<const TokenId> ids, KvType kv_type, bool with_mtp, int chunk) {
  SessionOptions options;
  options.ctx_size = static_cast<int64_t>(ids.size()) + 1;
  options.kv_type = kv_type;
  options.prompt_chunk = chunk;
  options.with_mtp = with_mtp;
  options.threads = 2;
  Session session(model, options);
  EngineLogits out;
  out.vocab_size = model.config().vocab_size;
  const auto hidden_dim = static_cast<size_t>(model.config().hidden_dim);
  std::vector<float> hidden(hidden_dim, 0.0f);  // of the row before the pass, then of each of its rows
  const auto append = [&](std::vector<float>& to, const float* row) { to.insert(to.end(), row, row + out.vocab_size); };
  for (size_t begin = 0; begin < ids.size(); begin += static_cast<size_t>(chunk)) {
    const auto part = ids.subspan(begin, std::min(static_cast<size_t>(chunk), ids.size() - begin));
    const int rows = static_cast<int>(part.size());
    session.forward(part);
    hidden.resize(hidden_dim);
    for (int r = 0; r < rows; ++r) {
      session.compute_logits(r, r + 1);
      append(out.trunk, session.logits(r));
      hidden.insert(hidden.end(), session.hidden(r), session.hidden(r) + hidden_dim);
    }
    session.commit(rows);
    if (with_mtp) {
      std::vector<const float*> previous;
      for (size_t r = 0; r < part.size(); ++r) previous.push_back(hidden.data() + r * hidden_dim);
      session.mtp_forward(part, static_cast<int64_t>(begin), previous);
      for (int r = 0; r < rows; ++r) {
        session.mtp_compute_logits(r, r + 1);
        append(out.mtp, session.mtp_logits(r));
      }
    }
    std::copy(hidden.end() - static_cast<std::ptrdiff_t>(hidden_dim), hidden.end(), hidden.begin());
  }
  return out;
}

double worst_error(std::span<const float> got, std::span<const double> want, int64_t vocab_size) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  const auto n = static_cast<size_t>(vocab_size);
  double worst = 0;
  for (size_t begin = 0; begin < got.size(); begin += n) {
    const double error = relative_error(got.subspan(begin, n), want.subspan(begin, n));
    if (std::isnan(error)) return error;
    worst = std::max(worst, error);
  }
  return worst;
}

}  // namespace foretoken::test
