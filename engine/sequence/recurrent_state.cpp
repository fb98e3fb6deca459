#include "engine/sequence/recurrent_state.h"

#include <algorithm>
#include <cstring>

namespace foretoken {

RecurrentState::RecurrentState(const ModelConfig& config, int max_window) {
  const auto count = std::count(config.recurrent.begin(), config.recurrent.end(), true);
  const int64_t state = int64_t{config.num_value_heads} * config.state_size * config.state_size;
  for (int64_t i = 0; i < count; ++i) {
    Layer layer;
    layer.state = AlignedBuffer(static_cast<size_t>(state) * sizeof(float), "the recurrent state");
    layer.history = FloatRows(config.conv_taps - 1, config.conv_channels());
    for (Slot& slot : layer.slots) {
      slot.raw = FloatRows(max_window, config.conv_channels());
      slot.mixed = FloatRows(max_window, config.conv_channels());
      slot.beta = FloatRows(max_window, config.num_value_heads);
      slot.decay = FloatRows(max_window, config.num_value_heads);
    }
    layers_.push_back(std::move(layer));
  }
}

void RecurrentState::reset() {
  turn_.reset();
  for (Layer& layer : layers_) {
    std::memset(layer.state.data(), 0, layer.state.size_bytes());
    if (layer.history.size_bytes() > 0) std::memset(layer.history.row(0), 0, layer.history.size_bytes());
  }
}

size_t RecurrentState::size_bytes() const {
  size_t bytes = 0;
  for (const Layer& layer : layers_) {
    bytes += layer.state.size_bytes() + layer.history.size_bytes();
    for (const Slot& s : layer.slots)
      bytes += s.raw.size_bytes() + s.mixed.size_bytes() + s.beta.size_bytes() + s.decay.size_bytes();
  }
  return bytes;
}

}  // namespace foretoken
