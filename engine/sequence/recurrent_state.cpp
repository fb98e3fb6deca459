#include "engine/sequence/recurrent_state.h"

#include <algorithm>
#include <cstring>

namespace foretoken {

RecurrentState::RecurrentState(const ModelConfig& config, int max_window, int num_sequences)
    : num_layers_(static_cast<int>(std::count(config.recurrent.begin(), config.recurrent.end(), true))) {
  const int64_t state = int64_t{config.num_value_heads} * config.state_size * config.state_size;
  for (int i = 0; i < num_layers_ * num_sequences; ++i) {
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

void RecurrentState::reset(int sequence_slot) {
  for (int i = 0; i < num_layers_; ++i) {
    Layer& layer = this->layer(i, sequence_slot);
    std::memset(layer.state.data(), 0, layer.state.size_bytes());
    if (layer.history.size_bytes() > 0) std::memset(layer.history.row(0), 0, layer.history.size_bytes());
  }
}

size_t RecurrentState::state_bytes() const {
  return layers_.empty()
             ? 0
             : static_cast<size_t>(num_layers_) * (layers_[0].state.size_bytes() + layers_[0].history.size_bytes());
}

void RecurrentState::read(int sequence_slot, std::span<std::byte> to) {
  std::byte* at = to.data();
  for (int i = 0; i < num_layers_; ++i) {
    Layer& layer = this->layer(i, sequence_slot);
    at = std::copy_n(layer.state.data(), layer.state.size_bytes(), at);
    if (layer.history.size_bytes() == 0) continue;
    at = std::copy_n(reinterpret_cast<const std::byte*>(layer.history.row(0)), layer.history.size_bytes(), at);
  }
}

void RecurrentState::write(int sequence_slot, std::span<const std::byte> from) {
  const std::byte* at = from.data();
  for (int i = 0; i < num_layers_; ++i) {
    Layer& layer = this->layer(i, sequence_slot);
    std::memcpy(layer.state.data(), at, layer.state.size_bytes());
    at += layer.state.size_bytes();
    if (layer.history.size_bytes() == 0) continue;
    std::memcpy(layer.history.row(0), at, layer.history.size_bytes());
    at += layer.history.size_bytes();
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
