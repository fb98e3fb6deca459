#include <algorithm>
#include <catch2/catch.hpp>

#include "kernels/delta_net/delta_net.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/rows/rms_norm.h"
#include "tests/kernels/cuda/cuda_pass_support.h"

namespace foretoken::cuda {
namespace {

using test::random_values;
using test::same_bits;

constexpr float kEps = 1e-6f;

struct Shape {
  int state_size, key_heads, value_heads, taps;
  [[nodiscard]] int channels() const { return state_size * (2 * key_heads + value_heads); }
};

// The plain loop: one token after the other, nothing deferred.
class Reference {
 public:
  Reference(const Shape& s, const std::vector<float>& weight, const std::vector<float>& a, const std::vector<float>& dt)
      : s_(s),
        weight_(weight),
        a_(a),
        dt_(dt),
        state_(static_cast<size_t>(s.value_heads * s.state_size * s.state_size), 0.0f),
        raw_(static_cast<size_t>(s.taps - 1), std::vector<float>(static_cast<size_t>(s.channels()), 0.0f)) {}

  std::vector<float> step(const float* raw, const float* b, const float* alpha) {
    raw_.emplace_back(raw, raw + s_.channels());
    std::vector<const float*> u;
    for (size_t j = raw_.size() - static_cast<size_t>(s_.taps); j < raw_.size(); ++j) u.push_back(raw_[j].data());
    std::vector<float> mixed(static_cast<size_t>(s_.channels()));
    causal_conv(Isa::kScalar, weight_.data(), s_.taps, u.data(), 0, s_.channels(), mixed.data());
    for (int h = 0; h < 2 * s_.key_heads; ++h)
      l2_norm(Isa::kScalar, &mixed[h * s_.state_size], s_.state_size, kEps, &mixed[h * s_.state_size]);
    std::vector<float> beta(static_cast<size_t>(s_.value_heads)), decay(beta.size()),
        out(static_cast<size_t>(s_.value_heads * s_.state_size));
    delta_gates(b, alpha, a_.data(), dt_.data(), s_.value_heads, beta.data(), decay.data());
    const AlignedBuffer scratch(static_cast<size_t>(s_.state_size * s_.state_size) * sizeof(float));
    for (int h = 0; h < s_.value_heads; ++h) {
      const int key_head = h % s_.key_heads;
      const DeltaRow row{&mixed[key_head * s_.state_size],
                         &mixed[(s_.key_heads + key_head) * s_.state_size],
                         &mixed[(2 * s_.key_heads + h) * s_.state_size],
                         decay[h],
                         beta[h],
                         &out[h * s_.state_size]};
      delta_net(Isa::kScalar, &state_[h * s_.state_size * s_.state_size], s_.state_size, &row, 1, 1, 0, s_.state_size,
                const_cast<float*>(scratch.data<float>()));
    }
    return out;
  }

 private:
  Shape s_;
  std::vector<float> weight_, a_, dt_;
  std::vector<float> state_;
  std::vector<std::vector<float>> raw_;
};

constexpr int kWindowRows = 9;

// The device's side of a layer: a part for each sequence, and the rows of the running pass.
struct Layer {
  Layer(const Stream& stream, const Shape& s, int num_sequences, const std::vector<float>& conv,
        const std::vector<float>& a_values, const std::vector<float>& dt_values)
      : weight(test::upload(stream, conv)),
        a(test::upload(stream, a_values)),
        dt(test::upload(stream, dt_values)),
        state(bytes(num_sequences * s.value_heads * s.state_size * s.state_size)),
        history(bytes(num_sequences * (s.taps - 1) * s.channels())) {
    fill_zero(stream, state.data(), state.size_bytes());
    fill_zero(stream, history.data(), history.size_bytes());
    banks.window_rows = kWindowRows;
    for (int i = 0; i < 2; ++i) banks.banks[i] = bank(memory[i], s, num_sequences * kWindowRows);
  }
  static size_t bytes(int floats) { return static_cast<size_t>(floats) * sizeof(float); }
  static DeltaBank bank(DeviceBuffer (&memory)[4], const Shape& s, int rows) {
    memory[0] = DeviceBuffer(bytes(rows * s.channels()));
    memory[1] = DeviceBuffer(bytes(rows * s.channels()));
    memory[2] = DeviceBuffer(bytes(rows * s.value_heads));
    memory[3] = DeviceBuffer(bytes(rows * s.value_heads));
    return {memory[0].data<float>(), memory[1].data<float>(), memory[2].data<float>(), memory[3].data<float>()};
  }

  DeviceBuffer weight, a, dt, state, history;
  DeviceBuffer memory[2][4];
  DeltaBanks banks;
};

// What a sequence does in one pass: so many rows, of which so many are kept; rows < 0: a prompt chunk of -rows rows;
// 0: it is not in the pass.
struct Rows {
  int rows, kept;
};

// A sequence's rows are random values of its own, so what it computes must not depend on its neighbours.
void check(const Shape& s, const std::vector<std::vector<Rows>>& sequences) {
  const Stream stream;
  const auto conv = random_values(static_cast<size_t>(s.channels() * s.taps), 1);
  auto a = random_values(static_cast<size_t>(s.value_heads), 2);
  for (float& x : a) x = -x * x;
  const auto dt = random_values(static_cast<size_t>(s.value_heads), 3);
  const size_t count = sequences.size();
  std::vector<Reference> references(count, Reference(s, conv, a, dt));
  std::vector<DeviceSpan> turns(count);  // what each sequence keeps of its last pass
  Layer layer(stream, s, static_cast<int>(count), conv, a, dt);
  const auto heads = static_cast<size_t>(s.value_heads);
  uint32_t seed = 10;
  for (size_t pass = 0; pass < sequences[0].size(); ++pass) {
    std::vector<DeviceSpan> spans;
    bool has_chunk = false;
    for (size_t i = 0; i < count; ++i) {
      const Rows rows = sequences[i][pass];
      if (rows.rows == 0) continue;
      DeviceSpan span = turns[i];
      span.sequence = static_cast<int32_t>(i);
      span.num_rows = rows.rows < 0 ? -rows.rows : rows.rows;
      span.is_window = rows.rows < 0 ? 0 : 1;
      has_chunk = has_chunk || rows.rows < 0;
      spans.push_back(span);
    }
    spans = test::in_a_row(spans);
    std::reverse(spans.begin(), spans.end());  // rows do not have to rise
    const test::PassOnDevice table(stream, spans);
    const auto num_rows = static_cast<size_t>(spans[0].first_row + spans[0].num_rows);

    const auto raw = random_values(num_rows * static_cast<size_t>(s.channels()), ++seed),
               b = random_values(num_rows * heads, ++seed), alpha = random_values(num_rows * heads, ++seed);
    const DeviceBuffer device_raw = test::upload(stream, raw), device_b = test::upload(stream, b),
                       device_alpha = test::upload(stream, alpha);
    const DeviceBuffer out(num_rows * heads * static_cast<size_t>(s.state_size) * 4);
    DeviceBuffer chunk_memory[4];
    DeltaBanks banks = layer.banks;
    if (has_chunk) banks.chunk = Layer::bank(chunk_memory, s, static_cast<int>(num_rows));
    banks.chunk.raw = nullptr;
    ConvolveDesc convolve;
    convolve.banks = banks;
    convolve.raw = device_raw.data<float>();
    convolve.weight = layer.weight.data<float>();
    convolve.taps = s.taps;
    convolve.history = layer.history.data<float>();
    convolve.state_size = s.state_size;
    convolve.num_key_heads = s.key_heads;
    convolve.num_value_heads = s.value_heads;
    convolve.eps = kEps;
    convolve.b = device_b.data<float>();
    convolve.alpha = device_alpha.data<float>();
    convolve.a = layer.a.data<float>();
    convolve.dt = layer.dt.data<float>();
    convolve.pass = table.pass();
    launch(convolve, stream);
    DeltaNetDesc net;
    net.banks = banks;
    net.state = layer.state.data<float>();
    net.state_size = s.state_size;
    net.num_key_heads = s.key_heads;
    net.num_value_heads = s.value_heads;
    net.out = out.data<float>();
    net.pass = table.pass();
    launch(net, stream);
    const auto got = test::download<float>(stream, out.data(), num_rows * heads * static_cast<size_t>(s.state_size));

    // The rows that are taken back are computed by a copy of the reference, the others by the reference itself.
    std::vector<float> wanted(got.size());
    for (const DeviceSpan& span : spans) {
      const auto i = static_cast<size_t>(span.sequence);
      const int kept = sequences[i][pass].kept;
      Reference taken_back = references[i];
      for (int r = 0; r < span.num_rows; ++r) {
        if (r == kept) taken_back = references[i];
        const auto at = static_cast<size_t>(span.first_row + r);
        const auto row = (r < kept ? references[i] : taken_back)
                             .step(&raw[at * static_cast<size_t>(s.channels())], &b[at * heads], &alpha[at * heads]);
        std::copy(row.begin(), row.end(), wanted.begin() + static_cast<int64_t>(at * row.size()));
      }
      turns[i].old_bank = 1 - span.old_bank;
      turns[i].kept = span.is_window == 0 ? 0 : kept;
      turns[i].replay = span.is_window == 0 ? 0 : kept - 1;
    }
    INFO("state " << s.state_size << ", " << count << " sequences, pass " << pass);
    CHECK(same_bits(got, wanted));
  }
}

TEST_CASE("delta net: windows kept in part are replayed, chunks applied whole; the same bits as token by token") {
  const std::vector<Rows> passes{{-7, 7}, {1, 1},  {4, 2},  {4, 4}, {3, 1}, {9, 6},
                                 {2, 2},  {-2, 2}, {-1, 1}, {5, 3}, {1, 1}, {1, 1}};
  test::for_each_order([&] { check({64, 2, 4, 4}, {passes}); });
  check({128, 1, 2, 4}, {passes});
  check({16, 2, 6, 3}, {passes});
  check({32, 1, 1, 2}, {passes});
}

TEST_CASE("delta net: several sequences in one pass, joining and leaving, windows beside prompt chunks") {
  const std::vector<std::vector<Rows>> three{
      {{-7, 7}, {1, 1}, {4, 2}, {4, 4}, {0, 0}, {3, 1}},
      {{0, 0}, {-3, 3}, {-12, 12}, {2, 1}, {9, 9}, {1, 1}},
      {{1, 1}, {5, 3}, {0, 0}, {-1, 1}, {2, 2}, {0, 0}},
  };
  test::for_each_order([&] { check({16, 2, 4, 4}, three); });
  check({64, 1, 2, 3}, three);
  std::vector<std::vector<Rows>> eight;
  for (int i = 0; i < 8; ++i) {
    eight.emplace_back();
    for (int pass = 0; pass < 5; ++pass) {
      const int rows = 1 + (i * 5 + pass * 3) % 9;
      if ((i + pass) % 4 == 3) {
        eight.back().push_back({-rows, rows});
      } else {
        eight.back().push_back({rows, 1 + (i + pass) % rows});
      }
    }
  }
  check({32, 1, 2, 4}, eight);
}

}  // namespace
}  // namespace foretoken::cuda
