#include "engine/cuda/cuda_weights.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "kernels/base/error.h"

namespace foretoken::cuda {

namespace {

// A matrix goes up in pieces of this size: while one is under way, the next is rearranged in the other buffer.
constexpr size_t kStagingBytes = size_t{32} << 20;

/// Two pinned buffers that take turns.
class Staging {
 public:
  explicit Staging(const Stream& stream, size_t size_bytes) : stream_(stream) {
    for (Buffer& buffer : buffers_) buffer.memory = PinnedBuffer(size_bytes);
  }

  /// fill(memory) writes `size_bytes` bytes, which then go to `to`.
  template <class Fill>
  void send(void* to, size_t size_bytes, Fill&& fill) {
    Buffer& buffer = buffers_[next_];
    next_ = 1 - next_;
    if (buffer.in_use) buffer.sent.synchronize();
    fill(buffer.memory.data());
    copy_to_device(stream_, to, buffer.memory.data(), size_bytes);
    buffer.sent.record(stream_);
    buffer.in_use = true;
  }

 private:
  struct Buffer {
    PinnedBuffer memory;
    Event sent;
    bool in_use = false;
  };
  const Stream& stream_;
  std::array<Buffer, 2> buffers_;
  size_t next_ = 0;
};

}  // namespace

CudaWeights::CudaWeights(const Model& model, bool with_mtp, const HotExperts* split)
    : layers(model.weights().layers.size()) {
  const ModelConfig& c = model.config();
  const ModelWeights& w = model.weights();
  declare(w.embed, embed);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int l = static_cast<int>(i);
    declare(c, w.layers[i], split == nullptr ? c.num_experts : split->placed(l),
            split == nullptr ? c.num_experts : split->capacity(l), layers[i]);
  }
  declare(w.output_norm, c.hidden_dim, output_norm);
  declare(w.head, head);
  if (with_mtp) {
    declare(w.mtp.embed, mtp.embed);
    declare(w.mtp.embed_norm, c.hidden_dim, mtp.embed_norm);
    declare(w.mtp.hidden_norm, c.hidden_dim, mtp.hidden_norm);
    declare(w.mtp.join, mtp.join);
    declare(c, w.mtp.layer, c.num_experts, c.num_experts, mtp.layer);
    declare(w.mtp.head_norm, c.hidden_dim, mtp.head_norm);
    declare(w.mtp.head, mtp.head);
  }
  // std::map keeps its nodes where they are, so the arena may set pointers in them.
  for (auto& [view, upload] : matrices_) {
    arena_.take_matrix(upload.from.type, upload.device_rows, upload.from.num_cols, upload.memory);
  }
  for (const VectorUpload& vector : vectors_) arena_.take(vector.count, *vector.to);
}

void CudaWeights::declare(const MatrixView& from, DeviceMatrix& to) {
  if (from.data == nullptr) return;
  Upload& upload = matrices_[{from.data, from.num_rows}];
  FT_CHECK(upload.users.empty() || (upload.from.type == from.type && upload.from.num_cols == from.num_cols));
  upload.from = from;
  upload.device_rows = from.num_rows;
  upload.users.push_back(&to);
  to = {nullptr, from.num_rows, from.num_cols, device_row_bytes(from.type, from.num_cols), from.type};
}

void CudaWeights::declare(const ExpertMatrices& from, int placed, int capacity, CudaExpertMatrices& to) {
  to.stride_rows = from.stride_rows;
  to.first_row = from.first_row;
  to.num_rows = from.num_rows;
  to.all.type = from.all.type;
  if (from.all.data == nullptr || capacity == 0) return;
  Upload& upload = matrices_[{from.all.data, from.all.num_rows}];
  upload.from = from.all.slice_rows(0, placed * from.stride_rows);
  upload.device_rows = capacity * from.stride_rows;
  upload.users.push_back(&to.all);
  to.all = {nullptr, upload.device_rows, from.all.num_cols, device_row_bytes(from.all.type, from.all.num_cols),
            from.all.type};
}

void CudaWeights::declare(const float* from, int64_t count, const float*& to) {
  if (from != nullptr) vectors_.push_back({from, count, &to});
}

void CudaWeights::declare(const ModelConfig& c, const MoeWeights& from, int placed, int capacity, CudaMoe& to) {
  to.num_experts = from.num_experts;
  to.capacity = capacity;
  to.top_k = from.top_k;
  declare(from.router, to.router);
  declare(from.gate, placed, capacity, to.gate);
  declare(from.up, placed, capacity, to.up);
  declare(from.down, placed, capacity, to.down);
  declare(from.shared_gate, to.shared_gate);
  declare(from.shared_up, to.shared_up);
  declare(from.shared_down, to.shared_down);
  declare(from.shared_router, c.hidden_dim, to.shared_router);
}

void CudaWeights::declare(const ModelConfig& c, const LayerWeights& from, int placed, int capacity, CudaLayer& to) {
  to.recurrent = from.recurrent;
  declare(from.mix_norm, c.hidden_dim, to.mix_norm);
  declare(from.ffn_norm, c.hidden_dim, to.ffn_norm);
  if (from.recurrent) {
    declare(from.delta_net.qkv, to.delta_net.qkv);
    declare(from.delta_net.gate, to.delta_net.gate);
    declare(from.delta_net.beta, to.delta_net.beta);
    declare(from.delta_net.alpha, to.delta_net.alpha);
    declare(from.delta_net.out, to.delta_net.out);
    declare(from.delta_net.conv, c.conv_channels() * c.conv_taps, to.delta_net.conv);
    declare(from.delta_net.dt, c.num_value_heads, to.delta_net.dt);
    declare(from.delta_net.a, c.num_value_heads, to.delta_net.a);
    declare(from.delta_net.norm, c.state_size, to.delta_net.norm);
  } else {
    declare(from.attention.q, to.attention.q);
    declare(from.attention.k, to.attention.k);
    declare(from.attention.v, to.attention.v);
    declare(from.attention.output, to.attention.output);
    declare(from.attention.q_norm, c.head_dim, to.attention.q_norm);
    declare(from.attention.k_norm, c.head_dim, to.attention.k_norm);
  }
  declare(c, from.moe, placed, capacity, to.moe);
}

void CudaWeights::upload(const Stream& stream) {
  arena_.allocate("the weights");
  size_t largest = 0;
  for (const auto& [view, upload] : matrices_) largest = std::max(largest, upload.memory.size_bytes());
  Staging staging(stream, std::min(kStagingBytes, largest));
  for (auto& [view, upload] : matrices_) {
    const MatrixView& from = upload.from;
    const int64_t row_bytes = upload.memory.row_bytes;
    const int64_t rows_per_piece = std::max<int64_t>(1, static_cast<int64_t>(kStagingBytes) / row_bytes);
    for (int64_t begin = 0; begin < from.num_rows; begin += rows_per_piece) {
      const int64_t end = std::min(begin + rows_per_piece, from.num_rows);
      auto* to = const_cast<std::byte*>(upload.memory.data) + begin * row_bytes;
      staging.send(to, static_cast<size_t>((end - begin) * row_bytes), [&](std::byte* memory) {
#pragma omp parallel for schedule(static)
        for (int64_t r = begin; r < end; ++r) pack_device_rows(from, r, r + 1, memory + (r - begin) * row_bytes);
      });
    }
    for (DeviceMatrix* user : upload.users) *user = upload.memory;
  }
  for (const VectorUpload& vector : vectors_) {
    copy_to_device(stream, const_cast<float*>(*vector.to), vector.from,
                   static_cast<size_t>(vector.count) * sizeof(float));
  }
  stream.synchronize();
}

}  // namespace foretoken::cuda
