#include "engine/sequence/recurrent_state.h"

#include <cstring>

namespace foretoken {

RecurrentState::RecurrentState(std::span<const DeltaNetShape> layers, int max_window, int num_sequences)
    : num_layers_(static_cast<int>(layers.size())) {
  for (int i = 0; i < num_layers_ * num_sequences; ++i) {
    const DeltaNetShape& shape = layers[i % num_layers_];
    Layer layer;
    layer.shape = shape;
    layer.state = AlignedBuffer(static_cast<size_t>(shape.state_values()) * sizeof(float), "the recurrent state");
    layer.history = FloatRows(shape.conv_taps - 1, shape.conv_channels());
    for (Bank& bank : layer.banks) {
      bank.raw = FloatRows(max_window, shape.conv_channels());
      bank.mixed = FloatRows(max_window, shape.conv_channels());
      bank.beta = FloatRows(max_window, shape.num_value_heads);
      bank.decay = FloatRows(max_window, shape.num_value_heads);
    }
    layers_.push_back(std::move(layer));
  }
}

void RecurrentState::reset(int sequence_slot) {
  for (int i = 0; i < num_layers_; ++i) {
    Layer& layer = this->layer(i, sequence_slot);
    if (layer.state.size_bytes() == 0) continue;  // another rank of a cluster has its heads
    std::memset(layer.state.data(), 0, layer.state.size_bytes());
    if (layer.history.size_bytes() > 0) std::memset(layer.history.row(0), 0, layer.history.size_bytes());
  }
}

size_t RecurrentState::state_bytes() const {
  size_t bytes = 0;
  for (int i = 0; i < num_layers_; ++i) {
    const Layer& layer = layers_[i];
    bytes += layer.state.size_bytes() + layer.history.size_bytes();
  }
  return bytes;
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
    if (layer.state.size_bytes() == 0) continue;
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
    for (const Bank& s : layer.banks)
      bytes += s.raw.size_bytes() + s.mixed.size_bytes() + s.beta.size_bytes() + s.decay.size_bytes();
  }
  return bytes;
}

}  // namespace foretoken
