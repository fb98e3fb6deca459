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

auto CudaWeights::declaration(int placed, int capacity) {
  return WeightVisit{
      [this](WeightRole, const MatrixView& from, DeviceMatrix& to) { declare(from, to); },
      [this](WeightRole, const VectorView& from, VectorView& to) { declare(from, to); },
      [this, placed, capacity](WeightRole, const ExpertMatrices& from, CudaExpertMatrices& to) {
        declare(from, placed, capacity, to);
      },
  };
}

CudaWeights::CudaWeights(const Model& model, bool with_mtp, const HotExperts* split) {
  const ModelWeights& w = model.weights();
  const int num_experts = model.config().num_experts;
  layers.resize(w.layers.size());
  tied_head = w.tied_head;
  declare(w.embed, embed);
  for (size_t i = 0; i < layers.size(); ++i) {
    const int l = static_cast<int>(i);
    const int placed = split == nullptr ? num_experts : split->placed(l);
    const int capacity = split == nullptr ? num_experts : split->capacity(l);
    layers[i].take_shape(w.layers[i]);
    if (!layers[i].is_dense()) layers[i].moe().capacity = capacity;
    CudaLayer::for_each(declaration(placed, capacity), w.layers[i], layers[i]);
  }
  declare(w.output_norm, output_norm);
  // A tied head is the embedding, which the host holds twice: in the file and interleaved.
  MatrixView trunk_head = tied_head ? w.embed : w.head;
  trunk_head.scale = w.head.scale;
  declare(trunk_head, head);
  if (with_mtp) {
    mtp.layer.take_shape(w.mtp.layer);
    declare(w.mtp.embed, mtp.embed);
    CudaMtp::for_each(declaration(num_experts, num_experts), w.mtp, mtp);
    declare(w.mtp.own_head ? w.mtp.head : trunk_head, mtp.head);
  }
  // std::map keeps its nodes where they are, so the arena may set pointers in them.
  for (auto& [view, upload] : matrices_) {
    arena_.take_matrix(upload.from.type, upload.device_rows, upload.from.num_cols, upload.memory);
  }
  for (const VectorUpload& vector : vectors_) arena_.take(vector.to->count, vector.to->data);
}

void CudaWeights::declare(const MatrixView& from, DeviceMatrix& to) {
  if (from.data == nullptr) return;
  Upload& upload = matrices_[{from.data, from.num_rows}];
  FT_CHECK(upload.users.empty() || (upload.from.type == from.type && upload.from.num_cols == from.num_cols));
  upload.from = from;
  upload.device_rows = from.num_rows;
  upload.users.push_back(&to);
  to = {nullptr, from.num_rows, from.num_cols, device_row_bytes(from.type, from.num_cols), from.type, from.scale};
}

void CudaWeights::declare(const ExpertMatrices& from, int placed, int capacity, CudaExpertMatrices& to) {
  to.stride_rows = from.stride_rows;
  to.first_row = from.first_row;
  to.num_rows = from.num_rows;
  to.all.type = from.all.type;
  to.all.num_cols = from.all.num_cols;
  if (from.all.data == nullptr || capacity == 0) return;
  Upload& upload = matrices_[{from.all.data, from.all.num_rows}];
  upload.from = from.all.slice_rows(0, placed * from.stride_rows);
  upload.device_rows = capacity * from.stride_rows;
  upload.users.push_back(&to.all);
  to.all = {nullptr,           upload.device_rows,
            from.all.num_cols, device_row_bytes(from.all.type, from.all.num_cols),
            from.all.type,     1.0f};
  if (from.scales.data == nullptr) return;
  to.scales.count = capacity;
  vectors_.push_back({{from.scales.data, placed}, &to.scales});
}

void CudaWeights::declare(const VectorView& from, VectorView& to) {
  if (from.data == nullptr) return;
  to.count = from.count;
  vectors_.push_back({from, &to});
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
    for (DeviceMatrix* user : upload.users) {
      const float scale = user->scale;
      *user = upload.memory;
      user->scale = scale;
    }
  }
  for (const VectorUpload& vector : vectors_) {
    copy_to_device(stream, const_cast<float*>(vector.to->data), vector.from.data,
                   static_cast<size_t>(vector.from.count) * sizeof(float));
  }
  stream.synchronize();
}

}  // namespace foretoken::cuda
