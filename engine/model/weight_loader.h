#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/gguf/gguf.h"
#include "engine/model/weights.h"
#include "engine/options.h"

namespace foretoken {

/// Declares tensors, checks each against its expected shape by the file's headers alone, then brings all of them into
/// memory in one parallel pass in file order: interleaved where type and shape fit, copied otherwise, with the file's
/// pages released as it goes. With LoadOptions::repack false, or for a declaration in place, the views point into the
/// mapped file where its alignment allows. Matrices that the file holds interleaved are used in place in any case,
/// unless there are several nodes of memory.
///
/// Over several nodes of memory a matrix's rows are first written by threads of the node that is to hold them, the
/// share that RowItems hands to that node's threads later: a page lies where it is first touched. What is not brought
/// into memory lies where the system has read the file.
///
/// A tensor NAME.scale beside a matrix NAME.weight multiplies what the matrix computes (MatrixView::scale): one value, or
/// one for each expert. A head tied to the embeddings has output.scale. Rows that are looked up have none.
///
/// Destinations must stay where they are until load() returns. All errors are InputErrors that name file and tensor.
class WeightLoader {
 public:
  WeightLoader(const GgufFile& file, const LoadOptions& options, ModelWeights& weights);

  [[nodiscard]] bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  /// A matrix of num_rows outputs and num_cols inputs.
  void matrix(const std::string& name, int64_t num_rows, int64_t num_cols, MatrixView& to);
  /// Matrices of num_cols inputs whose rows follow each other in one tensor: number of rows, and where each goes.
  void matrices(const std::string& name, int64_t num_cols, const std::vector<std::pair<int64_t, MatrixView*>>& to);
  /// A matrix of those rows of a tensor of tensor_rows that `rows` lists, in that order. It is always copied.
  void picked_rows(const std::string& name, int64_t tensor_rows, int64_t num_cols, std::vector<RowRange> rows,
                   MatrixView& to);
  /// The same as matrix(), shared out over nodes in units of kHeadUnitRows. Several parts may use it.
  void head(const std::string& name, int64_t num_rows, int64_t num_cols, const std::vector<MatrixView*>& to);
  /// num_experts matrices of num_rows rows for each of `to`, in one tensor: of an expert's rows the first num_rows are
  /// the first one's. The parts' boundaries stay on group boundaries, or the tensor stays in file layout.
  void expert_matrices(const std::string& name, int64_t num_experts, int64_t num_rows, int64_t num_cols,
                       const std::vector<ExpertMatrices*>& to);
  /// A matrix of which single rows are looked up: stays in the mapped file.
  void lookup(const std::string& name, int64_t num_rows, int64_t num_cols, MatrixView& to);
  /// A small tensor of `count` values, decoded to floats.
  void vector(const std::string& name, int64_t count, VectorView& to);
  /// Small vectors that follow each other in one tensor: number of values, and where each goes.
  void vectors(const std::string& name, const std::vector<std::pair<int64_t, VectorView*>>& to);

  // What one process of several holds; after the declarations, before load(). Rows are named as they were declared.

  /// Of this matrix these rows alone are loaded, in that order. A head is cut for all parts that use it.
  void keep_rows(MatrixView& matrix, const std::vector<RowRange>& rows);
  /// The same of each of these experts; expert e is then number e - experts.begin.
  void keep_rows(ExpertMatrices& part, const RowRange& experts, const std::vector<RowRange>& rows);
  /// Of this vector these values alone.
  void keep_values(VectorView& vector, std::vector<RowRange> values);
  void drop(MatrixView& matrix);
  void drop(VectorView& vector);
  /// A lookup() stays whole, and only these rows of it are checked while loading.
  void check_rows(MatrixView& lookup, const RowRange& rows);

  /// From here on a declaration that cannot be met adds what it would throw to `problems`; load() must not be called
  /// then.
  void collect(std::vector<std::string>& problems) { problems_ = &problems; }

  /// Names of the tensors that have been declared.
  [[nodiscard]] const std::set<std::string_view, std::less<>>& declared() const { return declared_; }

  /// Names of the tensors that load() brings into memory interleaved and needs in no other form.
  [[nodiscard]] std::set<std::string, std::less<>> interleaved() const;

  /// Bytes that load() will allocate.
  [[nodiscard]] size_t bytes_needed() const;
  /// Checks the memory, allocates and fills.
  void load();

 private:
  struct Job {
    const GgufTensor* tensor;
    MatrixView from;  // in the file, in the layout that it has there
    std::vector<MatrixView*> to;
    int64_t unit_rows;  // that are shared out over nodes together
    bool in_place;      // only checked
    bool interleave;
    std::vector<RowRange> parts;      // of the matrix, for each of `to`; empty: all of it for each
    std::vector<RowRange> picked;     // rows of the tensor that make up `from`; empty: those at from.data
    std::vector<RowRange> zero_rows;  // found while loading

    /// All of the tensor.
    [[nodiscard]] MatrixView whole() const {
      return {tensor->data, tensor->num_values() / from.num_cols, from.num_cols, *tensor->type(), tensor->layout()};
    }
    /// Where row `r` of `from` stands in the tensor.
    [[nodiscard]] int64_t tensor_row(int64_t r) const;
  };
  /// What one work item of load() brings in: rows of one node's share.
  struct Chunk {
    Job* job;
    std::vector<RowRange> ranges;
    size_t size_bytes;
  };
  struct Vector {
    const GgufTensor* tensor;
    VectorView* to;
    int64_t begin;               // its first value in the tensor
    std::vector<RowRange> kept;  // of its values; empty: all
  };
  template <class Declare>
  void guarded(Declare&& declare);
  const GgufTensor& find(const std::string& name, const std::vector<int64_t>& shape);
  /// Parts of granule_rows are read by loops of their own.
  Job& declare(const GgufTensor& tensor, int64_t num_rows, int64_t granule_rows, int64_t num_cols, bool in_place,
               std::vector<MatrixView*> to);
  /// The value of the tensor that scales what matrix `name` computes; 1 if there is none.
  float scale_of(const std::string& name);
  [[noreturn]] void fail(const std::string& name, const std::string& what) const;
  void load_vectors();
  const GgufTensor& find_vector(const std::string& name, int64_t count);
  /// Bytes of the matrix in memory: in the layout that it gets.
  [[nodiscard]] static size_t loaded_bytes(const Job& job);
  [[nodiscard]] std::vector<Job>::iterator find_job(const MatrixView& matrix);
  Job& own_job(MatrixView& matrix);
  void take_rows(Job& job, std::vector<RowRange> rows, int64_t granule_rows);
  [[nodiscard]] static MatrixView rows_in_file(const Job& job, int64_t begin, int64_t end,
                                               std::vector<std::byte>& scratch);
  void release_picked(const Job& job, const RowRange& rows) const;
  void allocate(Job& job, const NumaNodes& nodes);
  static void append_chunks(Job& job, const NumaNodes& nodes, int node, std::vector<Chunk>& chunks);
  void fill(Job& job, const MatrixView& rows, int64_t row_begin) const;
  void note_zero_rows(const Job& job, const MatrixView& rows, int64_t row_begin, std::vector<RowRange>& to) const;
  /// Throws InputError for what a broken download left as zeros.
  void check_zeros() const;

  const GgufFile& file_;
  const LoadOptions options_;
  ModelWeights& weights_;
  std::vector<std::string>* problems_ = nullptr;  // where they are collected; nullptr: the first is thrown
  std::vector<Job> jobs_;
  std::vector<Vector> vectors_;
  std::set<std::string_view, std::less<>> declared_;
  std::vector<const GgufTensor*> zero_vectors_;  // that cannot rightly be all zeros
};

}  // namespace foretoken
