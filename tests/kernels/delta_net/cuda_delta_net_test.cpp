#include <catch2/catch.hpp>

#include "kernels/delta_net/delta_net.h"
#include "kernels/delta_net/delta_net_cuda.h"
#include "kernels/rows/rms_norm.h"
#include "tests/kernels/cuda/cuda_test_support.h"

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
      l2_norm(Isa::kScalar, &mixed[static_cast<size_t>(h * s_.state_size)], s_.state_size, kEps,
              &mixed[static_cast<size_t>(h * s_.state_size)]);
    std::vector<float> beta(static_cast<size_t>(s_.value_heads)), decay(beta.size()),
        out(static_cast<size_t>(s_.value_heads * s_.state_size));
    delta_gates(b, alpha, a_.data(), dt_.data(), s_.value_heads, beta.data(), decay.data());
    const AlignedBuffer scratch(static_cast<size_t>(s_.state_size * s_.state_size) * sizeof(float));
    for (int h = 0; h < s_.value_heads; ++h) {
      const int key_head = h % s_.key_heads;
      const DeltaRow row{&mixed[static_cast<size_t>(key_head * s_.state_size)],
                         &mixed[static_cast<size_t>((s_.key_heads + key_head) * s_.state_size)],
                         &mixed[static_cast<size_t>((2 * s_.key_heads + h) * s_.state_size)],
                         decay[static_cast<size_t>(h)],
                         beta[static_cast<size_t>(h)],
                         &out[static_cast<size_t>(h * s_.state_size)]};
      delta_net(Isa::kScalar, &state_[static_cast<size_t>(h * s_.state_size * s_.state_size)], s_.state_size, &row, 1,
                1, 0, s_.state_size, const_cast<float*>(scratch.data<float>()));
    }
    return out;
  }

 private:
  Shape s_;
  std::vector<float> weight_, a_, dt_;
  std::vector<float> state_;
  std::vector<std::vector<float>> raw_;
};

// The device's side of a layer.
struct Layer {
  Layer(const Stream& stream, const Shape& s, int max_rows, const std::vector<float>& conv,
        const std::vector<float>& a_values, const std::vector<float>& dt_values)
      : weight(test::upload(stream, conv)),
        a(test::upload(stream, a_values)),
        dt(test::upload(stream, dt_values)),
        state(bytes(s.value_heads * s.state_size * s.state_size)),
        history(bytes((s.taps - 1) * s.channels())),
        raw(bytes(max_rows * s.channels())),
        b(bytes(max_rows * s.value_heads)),
        alpha(bytes(max_rows * s.value_heads)),
        out(bytes(max_rows * s.value_heads * s.state_size)),
        pass(sizeof(PassScalars)) {
    fill_zero(stream, state.data(), state.size_bytes());
    fill_zero(stream, history.data(), history.size_bytes());
    for (int i = 0; i < 3; ++i) {
      memory[i][0] = DeviceBuffer(bytes(max_rows * s.channels()));
      memory[i][1] = DeviceBuffer(bytes(max_rows * s.channels()));
      memory[i][2] = DeviceBuffer(bytes(max_rows * s.value_heads));
      memory[i][3] = DeviceBuffer(bytes(max_rows * s.value_heads));
      (i < 2 ? slots.slots[i] : chunk) = {memory[i][0].data<float>(), memory[i][1].data<float>(),
                                          memory[i][2].data<float>(), memory[i][3].data<float>()};
    }
    chunk.raw = nullptr;
  }
  static size_t bytes(int floats) { return static_cast<size_t>(floats) * sizeof(float); }

  DeviceBuffer weight, a, dt, state, history, raw, b, alpha, out, pass;
  DeviceBuffer memory[3][4];
  DeltaSlots slots;
  DeltaSlot chunk;
  PassScalars scalars;
};

// Passes of these many rows, of which so many are kept; rows < 0: a prompt chunk of -rows rows.
struct Pass {
  int rows, kept;
};

void check(const Shape& s, const std::vector<Pass>& passes) {
  const Stream stream;
  const int max_rows = 9;
  const auto conv = random_values(static_cast<size_t>(s.channels() * s.taps), 1);
  auto a = random_values(static_cast<size_t>(s.value_heads), 2);
  for (float& x : a) x = -x * x;
  const auto dt = random_values(static_cast<size_t>(s.value_heads), 3);
  Reference reference(s, conv, a, dt);
  Layer layer(stream, s, max_rows, conv, a, dt);
  const auto heads = static_cast<size_t>(s.value_heads);
  uint32_t seed = 10;
  for (const Pass& p : passes) {
    const bool is_chunk = p.rows < 0;
    const int num_rows = is_chunk ? -p.rows : p.rows;
    const auto raw = random_values(static_cast<size_t>(num_rows * s.channels()), ++seed),
               b = random_values(num_rows * heads, ++seed), alpha = random_values(num_rows * heads, ++seed);
    copy_to_device(stream, layer.raw.data(), raw.data(), raw.size() * 4);
    copy_to_device(stream, layer.b.data(), b.data(), b.size() * 4);
    copy_to_device(stream, layer.alpha.data(), alpha.data(), alpha.size() * 4);
    layer.scalars.num_rows = num_rows;
    copy_to_device(stream, layer.pass.data(), &layer.scalars, sizeof layer.scalars);
    DeltaSlots slots = layer.slots;
    if (is_chunk) slots.chunk = layer.chunk;
    ConvolveDesc convolve;
    convolve.slots = slots;
    convolve.raw = layer.raw.data<float>();
    convolve.weight = layer.weight.data<float>();
    convolve.taps = s.taps;
    convolve.history = layer.history.data<float>();
    convolve.state_size = s.state_size;
    convolve.num_key_heads = s.key_heads;
    convolve.num_value_heads = s.value_heads;
    convolve.eps = kEps;
    convolve.b = layer.b.data<float>();
    convolve.alpha = layer.alpha.data<float>();
    convolve.a = layer.a.data<float>();
    convolve.dt = layer.dt.data<float>();
    convolve.pass = layer.pass.data<PassScalars>();
    launch(convolve, stream);
    DeltaNetDesc net;
    net.slots = slots;
    net.state = layer.state.data<float>();
    net.state_size = s.state_size;
    net.num_key_heads = s.key_heads;
    net.num_value_heads = s.value_heads;
    net.out = layer.out.data<float>();
    net.pass = layer.pass.data<PassScalars>();
    launch(net, stream);
    const auto got = test::download<float>(stream, layer.out.data(),
                                           static_cast<size_t>(num_rows) * heads * static_cast<size_t>(s.state_size));

    // The rows that are taken back are computed by a copy of the reference, the others by the reference itself.
    std::vector<float> wanted;
    Reference taken_back = reference;
    for (int r = 0; r < num_rows; ++r) {
      if (r == p.kept) taken_back = reference;
      const auto at = static_cast<size_t>(r);
      const auto out = (r < p.kept ? reference : taken_back)
                           .step(&raw[at * static_cast<size_t>(s.channels())], &b[at * heads], &alpha[at * heads]);
      wanted.insert(wanted.end(), out.begin(), out.end());
    }
    INFO("state " << s.state_size << ", pass of " << p.rows << " rows, " << p.kept << " kept");
    CHECK(same_bits(got, wanted));
    layer.scalars.old_slot = 1 - layer.scalars.old_slot;
    layer.scalars.kept = is_chunk ? 0 : p.kept;
    layer.scalars.replay = is_chunk ? 0 : p.kept - 1;
  }
}

TEST_CASE("delta net: windows kept in part are replayed, chunks applied whole; the same bits as token by token") {
  const std::vector<Pass> passes{{-7, 7}, {1, 1},  {4, 2},  {4, 4}, {3, 1}, {9, 6},
                                 {2, 2},  {-2, 2}, {-1, 1}, {5, 3}, {1, 1}, {1, 1}};
  test::for_each_order([&] { check({64, 2, 4, 4}, passes); });
  check({128, 1, 2, 4}, passes);
  check({16, 2, 6, 3}, passes);
  check({32, 1, 1, 2}, passes);
}

}  // namespace
}  // namespace foretoken::cuda
