#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/gguf/gguf_writer.h"
#include "kernels/formats/weight_type.h"

namespace foretoken::synth {

/// Values of one row: fill(row, out).
using RowFill = std::function<void(int64_t row, float* out)>;
using IsZeroRow = std::function<bool(int64_t row)>;

/// Ready-made weights to fill big matrices from: 4096 pieces of up to 256 normal values, encoded once. A row is put
/// together from pieces picked by its hash, some gigabytes a second where encoding every value of a K-quant makes 0.1.
/// Two rows have the same piece at the same place with a chance of 1 in 4096, so a matrix of real size has full rank
/// and rows as good as independent.
class PiecePool {
 public:
  PiecePool(WeightType type, int64_t piece_values, float deviation);
  /// The values of a piece for rows of this length: the largest of 256, 128, 64, 32 that divides it and that blocks
  /// divide; 0: none.
  [[nodiscard]] static int64_t piece_values(WeightType type, int64_t row_values);
  [[nodiscard]] size_t piece_bytes() const { return piece_bytes_; }
  [[nodiscard]] const std::byte* piece(uint64_t bits) const { return bytes_.data() + bits % kPieces * piece_bytes_; }

 private:
  static constexpr uint64_t kPieces = 4096;
  size_t piece_bytes_;
  std::vector<std::byte> bytes_;
};

/// Declares tensors whose values come from a seed and the tensor's name.
class WeightWriter {
 public:
  explicit WeightWriter(uint64_t seed) : seed_(seed) {}

  /// F32, center + spread * normal.
  void add_vector(const std::string& name, int64_t n, float center, float spread);
  /// Rows of any kind, encoded as `type`.
  void add_rows(const std::string& name, WeightType type, std::vector<int64_t> shape, RowFill fill);
  /// Normal values, deviation scale / sqrt(shape[0]); rows for which `is_zero` holds are 0. Matrices of 2^22 weights
  /// and more come from a pool.
  void add_matrix(const std::string& name, WeightType type, std::vector<int64_t> shape, double scale = 1,
                  IsZeroRow is_zero = {});

  [[nodiscard]] uint64_t key(std::string_view name) const;
  [[nodiscard]] GgufWriter& file() { return file_; }
  [[nodiscard]] int num_tensors() const { return num_tensors_; }
  [[nodiscard]] double num_weights() const { return num_weights_; }

 private:
  void add(const std::string& name, WeightType type, std::vector<int64_t> shape, GgufWriter::Fill fill);

  uint64_t seed_;
  GgufWriter file_;
  std::map<std::tuple<WeightType, int64_t, float>, std::shared_ptr<const PiecePool>> pools_;
  int num_tensors_ = 0;
  double num_weights_ = 0;
};

}  // namespace foretoken::synth
