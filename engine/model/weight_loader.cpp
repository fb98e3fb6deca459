#include "engine/model/weight_loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <optional>

#include "engine/gguf/tensor_name.h"
#include "engine/machine.h"
#include "engine/model/zero_rows.h"
#include "kernels/base/error.h"
#include "kernels/formats/interleave.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/threads/thread_team.h"

namespace foretoken {

namespace {

// File bytes that one thread moves at a time: a few huge pages, so that progress is smooth and pages go back early.
constexpr size_t kChunkBytes = size_t{8} << 20;
// Kernels read floats through aligned pointers; a file may be aligned to less.
constexpr size_t kInPlaceAlignment = 4;

double gib(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

// A matrix in whose rows zeros are looked for: an interleaved one's are its groups.
MatrixView zero_view(const MatrixView& m) {
  if (m.layout == Layout::kRows) return m;
  return {m.data, m.num_rows / kInterleave, m.num_cols * kInterleave, m.type, Layout::kRows};
}

// The tensor that scales what a matrix computes.
std::string scale_name(std::string_view matrix) {
  constexpr std::string_view kEnding = "weight";
  if (matrix == "token_embd.weight") return "output.scale";  // a tied head
  return std::string(matrix.substr(0, matrix.size() - kEnding.size())) + "scale";
}

// Norms that are all zero would leave nothing of a layer; biases and gates may be zero.
bool must_not_be_zero(std::string_view name) {
  return name.ends_with("norm.weight") || name.ends_with("ssm_conv1d.weight") || name.ends_with("ssm_a");
}

}  // namespace

WeightLoader::WeightLoader(const GgufFile& file, const LoadOptions& options, ModelWeights& weights)
    : file_(file), options_(options), weights_(weights) {}

template <class Declare>
void WeightLoader::guarded(Declare&& declare) {
  if (problems_ == nullptr) return declare();
  try {
    declare();
  } catch (const InputError& error) {
    problems_->push_back(error.what());
  }
}

void WeightLoader::fail(const std::string& name, const std::string& what) const {
  const GgufTensor* tensor = file_.find_tensor(name);
  if (tensor == nullptr) {  // the file that has the rest of its block: an MTP layer's own, or a part of a split
    const int block = split_tensor_name(name).first;
    const auto same_block = [block](const GgufTensor& other) { return split_tensor_name(other.name).first == block; };
    const auto found = std::find_if(file_.tensors().begin(), file_.tensors().end(), same_block);
    if (block >= 0 && found != file_.tensors().end()) tensor = &*found;
  }
  const std::string& path = tensor != nullptr ? file_.path_of(*tensor) : file_.path();
  throw InputError(fmt::format("{}: tensor {}: {}", path, name, what));
}

const GgufTensor& WeightLoader::find(const std::string& name, const std::vector<int64_t>& shape) {
  const GgufTensor* tensor = file_.find_tensor(name);
  if (tensor == nullptr) fail(name, "is missing; the file does not hold the whole model that its metadata describes");
  declared_.insert(tensor->name);
  if (!tensor->type()) {
    fail(name,
         fmt::format(
             "type {} (id {}) is not supported; `foretoken inspect` lists the tensors, convert the file to another "
             "type",
             tensor_type_name(tensor->type_id), tensor->type_id));
  }
  std::vector<int64_t> found = tensor->shape;
  while (found.size() > shape.size() && found.back() == 1) found.pop_back();
  if (found != shape) {
    fail(name,
         fmt::format("shape [{}]; the metadata asks for [{}]", fmt::join(tensor->shape, ", "), fmt::join(shape, ", ")));
  }
  return *tensor;
}

float WeightLoader::scale_of(const std::string& name) {
  const std::string scale = scale_name(name);
  if (!has(scale)) return 1.0f;
  const GgufTensor& tensor = find_vector(scale, 1);
  float value;
  decode_row(*tensor.type(), tensor.data, 1, &value);
  if (!std::isfinite(value)) fail(scale, "value 0 is not finite; the file is damaged");
  return value;
}

WeightLoader::Job& WeightLoader::declare(const GgufTensor& tensor, int64_t num_rows, int64_t granule_rows,
                                         int64_t num_cols, bool in_place, std::vector<MatrixView*> to) {
  Job job;
  job.tensor = &tensor;
  job.from = {tensor.data, num_rows, num_cols, *tensor.type(), tensor.layout()};
  const bool interleaved = tensor.layout() == Layout::kInterleaved;
  if (interleaved && (in_place || !can_interleave(job.from.type, granule_rows, num_cols)))
    fail(std::string(tensor.name), "is interleaved, and single rows of it are needed; repack the original file again");
  job.to = std::move(to);
  job.unit_rows = granule_rows;
  const bool aligned =
      reinterpret_cast<uintptr_t>(tensor.data) % kInPlaceAlignment == 0 || !weight_type_info(*tensor.type()).is_float();
  job.in_place = in_place || (interleaved ? options_.nodes.count() == 1 : !options_.repack && aligned);
  job.interleave =
      !interleaved && !job.in_place && options_.repack && can_interleave(job.from.type, granule_rows, num_cols);
  for (MatrixView* view : job.to) {
    *view = job.from;
    if (!job.in_place) view->data = nullptr;
    if (job.interleave) view->layout = Layout::kInterleaved;
  }
  return jobs_.emplace_back(std::move(job));
}

void WeightLoader::matrix(const std::string& name, int64_t num_rows, int64_t num_cols, MatrixView& to) {
  guarded([&] {
    declare(find(name, {num_cols, num_rows}), num_rows, num_rows, num_cols, /*in_place=*/false, {&to});
    to.scale = scale_of(name);
  });
}

void WeightLoader::matrices(const std::string& name, int64_t num_cols,
                            const std::vector<std::pair<int64_t, MatrixView*>>& to) {
  guarded([&] {
    std::vector<RowRange> parts;
    std::vector<MatrixView*> views;
    int64_t num_rows = 0, granule = 0;
    for (const auto& [rows, view] : to) {
      parts.push_back({num_rows, num_rows + rows});
      views.push_back(view);
      num_rows += rows;
      granule = std::gcd(granule, rows);
    }
    Job& job = declare(find(name, {num_cols, num_rows}), num_rows, granule, num_cols, /*in_place=*/false, views);
    for (size_t i = 0; i < views.size(); ++i) {
      views[i]->num_rows = parts[i].end - parts[i].begin;
      if (job.in_place) views[i]->data += static_cast<size_t>(parts[i].begin) * job.from.row_bytes();
    }
    job.parts = std::move(parts);
    const float scale = scale_of(name);
    for (MatrixView* view : views) view->scale = scale;
  });
}

void WeightLoader::picked_rows(const std::string& name, int64_t tensor_rows, int64_t num_cols,
                               std::vector<RowRange> rows, MatrixView& to) {
  guarded([&] {
    const int64_t num_rows = count_rows(rows);
    Job& job = declare(find(name, {num_cols, tensor_rows}), num_rows, num_rows, num_cols, /*in_place=*/false, {&to});
    if (job.from.layout == Layout::kInterleaved)
      fail(name, "is interleaved, and some rows of it are needed by themselves; repack the original file again");
    take_rows(job, std::move(rows), num_rows);
    to.scale = scale_of(name);
  });
}

void WeightLoader::head(const std::string& name, int64_t num_rows, int64_t num_cols,
                        const std::vector<MatrixView*>& to) {
  guarded([&] {
    Job& job = declare(find(name, {num_cols, num_rows}), num_rows, num_rows, num_cols, /*in_place=*/false, to);
    job.unit_rows = kHeadUnitRows;
    const float scale = scale_of(name);
    for (MatrixView* view : to) view->scale = scale;
  });
}

void WeightLoader::expert_matrices(const std::string& name, int64_t num_experts, int64_t num_rows, int64_t num_cols,
                                   const std::vector<ExpertMatrices*>& to) {
  guarded([&] {
    const int64_t stride = num_rows * static_cast<int64_t>(to.size());
    std::vector<MatrixView*> views;
    for (ExpertMatrices* part : to) {
      *part = {{}, stride, num_rows * static_cast<int64_t>(views.size()), num_rows, {}};
      views.push_back(&part->all);
    }
    declare(find(name, {num_cols, stride, num_experts}), num_experts * stride, num_rows, num_cols,
            /*in_place=*/false, std::move(views));
    const std::string scale = scale_name(name);
    if (!has(scale)) return;
    const GgufTensor& tensor = find_vector(scale, num_experts);
    for (ExpertMatrices* part : to) {
      part->scales = {nullptr, num_experts};
      vectors_.push_back({&tensor, &part->scales, 0, {}});
    }
  });
}

void WeightLoader::lookup(const std::string& name, int64_t num_rows, int64_t num_cols, MatrixView& to) {
  guarded([&] { declare(find(name, {num_cols, num_rows}), num_rows, num_rows, num_cols, /*in_place=*/true, {&to}); });
}

const GgufTensor& WeightLoader::find_vector(const std::string& name, int64_t count) {
  const GgufTensor* named = file_.find_tensor(name);
  if (named == nullptr) fail(name, "is missing; the file does not hold the whole model that its metadata describes");
  declared_.insert(named->name);
  if (!named->type() || named->layout() != Layout::kRows)
    fail(name, fmt::format("type {} (id {}) is not supported", tensor_type_name(named->type_id), named->type_id));
  if (named->num_values() != count) {
    fail(name, fmt::format("shape [{}], {} values; the metadata asks for {}", fmt::join(named->shape, ", "),
                           named->num_values(), count));
  }
  return *named;
}

void WeightLoader::vector(const std::string& name, int64_t count, VectorView& to) {
  vectors(name, {{count, &to}});
}

void WeightLoader::vectors(const std::string& name, const std::vector<std::pair<int64_t, VectorView*>>& to) {
  guarded([&] {
    int64_t count = 0;
    for (const auto& [part, view] : to) count += part;
    const GgufTensor& tensor = find_vector(name, count);
    int64_t begin = 0;
    for (const auto& [part, view] : to) {
      *view = {nullptr, part};
      vectors_.push_back({&tensor, view, begin, {}});
      begin += part;
    }
  });
}

void WeightLoader::load_vectors() {
  for (const Vector& vector : vectors_) {
    const int64_t count = vector.tensor->num_values();
    auto values = std::make_unique<float[]>(static_cast<size_t>(count));
    decode_row(*vector.tensor->type(), vector.tensor->data, count, values.get());
    const float* end = values.get() + count;
    const float* bad =
        std::find_if_not(values.get(), const_cast<float*>(end), [](float v) { return std::isfinite(v); });
    if (bad != end) {
      fail(std::string(vector.tensor->name),
           fmt::format("value {} is not finite; the file is damaged", bad - values.get()));
    }
    if (must_not_be_zero(vector.tensor->name) &&
        std::all_of(values.get(), values.get() + count, [](float v) { return v == 0; })) {
      zero_vectors_.push_back(vector.tensor);
    }
    vector.to->data = values.get() + vector.begin;
    weights_.vectors.push_back(std::move(values));
    if (vector.kept.empty()) continue;
    auto kept = std::make_unique<float[]>(static_cast<size_t>(vector.to->count));
    float* at = kept.get();
    for (const RowRange& range : vector.kept)
      at = std::copy(vector.to->data + range.begin, vector.to->data + range.end, at);
    vector.to->data = kept.get();
    weights_.vectors.push_back(std::move(kept));
  }
}

std::set<std::string, std::less<>> WeightLoader::interleaved() const {
  std::set<std::string, std::less<>> names;
  for (const Job& job : jobs_) {
    if (job.interleave && job.picked.empty()) names.emplace(job.tensor->name);
  }
  for (const Job& job : jobs_) {
    if (!job.interleave || !job.picked.empty()) names.erase(std::string(job.tensor->name));
  }
  return names;
}

size_t WeightLoader::loaded_bytes(const Job& job) {
  return static_cast<size_t>(job.from.num_rows) * job.to[0]->row_bytes();
}

size_t WeightLoader::bytes_needed() const {
  size_t bytes = 0;
  for (const Job& job : jobs_) bytes += job.in_place ? 0 : loaded_bytes(job);
  return bytes;
}

int64_t WeightLoader::Job::tensor_row(int64_t r) const {
  if (picked.empty()) return (from.data - tensor->data) / static_cast<std::ptrdiff_t>(from.row_bytes()) + r;
  for (const RowRange& range : picked) {
    if (r < range.end - range.begin) return range.begin + r;
    r -= range.end - range.begin;
  }
  FT_CHECK(false);
  return -1;
}

// ---- a share of the rows ----

std::vector<WeightLoader::Job>::iterator WeightLoader::find_job(const MatrixView& matrix) {
  return std::find_if(jobs_.begin(), jobs_.end(),
                      [&](const Job& job) { return std::find(job.to.begin(), job.to.end(), &matrix) != job.to.end(); });
}

// The job that loads this matrix and nothing else.
WeightLoader::Job& WeightLoader::own_job(MatrixView& matrix) {
  const auto shared = find_job(matrix);
  FT_CHECK(shared != jobs_.end());
  Job own = *shared;
  own.to = {&matrix};
  const auto at = std::find(shared->to.begin(), shared->to.end(), &matrix) - shared->to.begin();
  shared->to.erase(shared->to.begin() + at);
  if (!shared->parts.empty()) {
    const RowRange part = shared->parts[at];
    shared->parts.erase(shared->parts.begin() + at);
    own.parts.clear();
    own.from.data += static_cast<size_t>(part.begin) * own.from.row_bytes();
    own.from.num_rows = part.end - part.begin;
  }
  if (shared->to.empty()) return *shared = std::move(own);
  return jobs_.emplace_back(std::move(own));
}

// `rows`: of the tensor.
void WeightLoader::take_rows(Job& job, std::vector<RowRange> rows, int64_t granule_rows) {
  const int64_t num_rows = count_rows(rows);
  const MatrixView whole = job.whole();
  const bool contiguous = rows.size() <= 1;
  const RowRange first = rows.empty() ? RowRange{} : rows.front();
  const bool on_groups =
      first.begin % kInterleave == 0 && first.end % kInterleave == 0 && granule_rows % kInterleave == 0;
  job.from = {whole.data + static_cast<size_t>(first.begin) * whole.row_bytes(), num_rows, whole.num_cols, whole.type,
              whole.layout};
  job.picked.clear();
  const bool interleaved = whole.layout == Layout::kInterleaved;
  if (!contiguous || (interleaved && !on_groups)) {
    // Put together row by row, in the file's own layout.
    job.picked = std::move(rows);
    job.from.data = nullptr;
    job.from.layout = Layout::kRows;
    job.in_place = false;
  }
  job.unit_rows = std::max<int64_t>(1, job.unit_rows == kHeadUnitRows ? kHeadUnitRows : granule_rows);
  job.interleave = job.from.layout == Layout::kRows && !job.in_place && options_.repack &&
                   can_interleave(job.from.type, granule_rows, job.from.num_cols);
  for (MatrixView* view : job.to) {
    const float scale = view->scale;
    *view = job.from;
    view->scale = scale;
    if (!job.in_place) view->data = nullptr;
    if (job.interleave) view->layout = Layout::kInterleaved;
  }
}

void WeightLoader::keep_rows(MatrixView& matrix, const std::vector<RowRange>& rows) {
  const auto found = find_job(matrix);
  FT_CHECK(found != jobs_.end());
  Job& job = found->parts.empty() ? *found : own_job(matrix);
  std::vector<RowRange> in_tensor;
  for (const RowRange& range : rows) {
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t row = job.tensor_row(r);
      append_rows(in_tensor, {row, row + 1});
    }
  }
  const int64_t num_rows = count_rows(in_tensor);
  take_rows(job, std::move(in_tensor), num_rows);
}

void WeightLoader::keep_rows(ExpertMatrices& part, const RowRange& experts, const std::vector<RowRange>& rows) {
  Job& job = own_job(part.all);
  std::vector<RowRange> in_tensor;
  const int64_t num_rows = count_rows(rows);
  for (int64_t e = experts.begin; e < experts.end; ++e) {
    const int64_t base = e * part.stride_rows + part.first_row;
    for (const RowRange& range : rows) append_rows(in_tensor, {base + range.begin, base + range.end});
  }
  take_rows(job, std::move(in_tensor), num_rows);
  part.stride_rows = part.num_rows = num_rows;
  part.first_row = 0;
}

void WeightLoader::keep_values(VectorView& vector, std::vector<RowRange> values) {
  const auto found = std::find_if(vectors_.begin(), vectors_.end(), [&](const Vector& v) { return v.to == &vector; });
  FT_CHECK(found != vectors_.end());
  vector.count = count_rows(values);
  if (values.empty()) values.push_back({0, 0});
  found->kept = std::move(values);
}

void WeightLoader::drop(MatrixView& matrix) {
  const auto job = find_job(matrix);
  if (job == jobs_.end()) return;
  const auto at = std::find(job->to.begin(), job->to.end(), &matrix) - job->to.begin();
  job->to.erase(job->to.begin() + at);
  if (!job->parts.empty()) job->parts.erase(job->parts.begin() + at);
  if (job->to.empty()) jobs_.erase(job);
  matrix.data = nullptr;
  matrix.num_rows = 0;
}

void WeightLoader::drop(VectorView& vector) {
  std::erase_if(vectors_, [&](const Vector& v) { return v.to == &vector; });
  vector = {};
}

void WeightLoader::check_rows(MatrixView& lookup, const RowRange& rows) {
  const auto job = find_job(lookup);
  FT_CHECK(job != jobs_.end() && job->in_place && job->to.size() == 1);
  job->from = job->from.slice_rows(rows.begin, rows.end);
}

// ---- reading ----

// Rows [begin, end) of what the job brings in; rows from here and there are put together in `scratch`.
MatrixView WeightLoader::rows_in_file(const Job& job, int64_t begin, int64_t end, std::vector<std::byte>& scratch) {
  if (job.picked.empty()) return job.from.slice_rows(begin, end);
  const size_t row_bytes = job.from.row_bytes();
  const MatrixView whole = job.whole();
  scratch.resize(static_cast<size_t>(end - begin) * row_bytes);
  std::byte* to = scratch.data();
  int64_t before = 0;
  for (const RowRange& range : job.picked) {
    const int64_t first = std::max(begin, before) - before + range.begin;
    before += range.end - range.begin;
    const int64_t last = std::min(end, before) - before + range.end;
    if (first >= last) continue;
    if (whole.layout == Layout::kInterleaved) {
      for (int64_t r = first; r < last; ++r, to += row_bytes) extract_row(whole, r, to);
      continue;
    }
    const size_t size_bytes = static_cast<size_t>(last - first) * row_bytes;
    std::memcpy(to, whole.data + static_cast<size_t>(first) * row_bytes, size_bytes);
    to += size_bytes;
  }
  return {scratch.data(), end - begin, job.from.num_cols, job.from.type, Layout::kRows};
}

// Checks these rows, which are rows [row_begin, ...) of what the job brings in, and puts them where they belong.
void WeightLoader::fill(Job& job, const MatrixView& rows, int64_t row_begin) const {
  const bool interleaved = rows.layout == Layout::kInterleaved;
  if (interleaved) {
    file_.populate(rows.data, rows.size_bytes());
    if (!interleaved_rows_are_finite(rows, 0, rows.num_rows)) {
      fail(std::string(job.tensor->name),
           fmt::format("rows {} to {} have a scale that is not finite; the file is damaged", job.tensor_row(row_begin),
                       job.tensor_row(row_begin) + rows.num_rows - 1));
    }
  }
  for (int64_t r = 0; r < rows.num_rows && !interleaved; ++r) {
    if (row_is_finite(rows.type, rows.data + static_cast<size_t>(r) * rows.row_bytes(), rows.num_cols)) continue;
    fail(std::string(job.tensor->name),
         fmt::format("row {} has a value or scale that is not finite; the file is damaged",
                     job.tensor_row(row_begin + r)));
  }
  if (job.in_place) return;
  std::byte* to = const_cast<std::byte*>(job.to[0]->data) +  // where the first part begins
                  static_cast<size_t>(row_begin) * job.to[0]->row_bytes();
  if (job.interleave) {
    interleave_rows(rows, 0, rows.num_rows, to);
  } else {
    std::memcpy(to, rows.data, rows.size_bytes());
  }
}

// Adds to `to` which of these rows, or groups of rows where the tensor is interleaved, are zero; by their place in the
// tensor.
void WeightLoader::note_zero_rows(const Job& job, const MatrixView& rows, int64_t row_begin,
                                  std::vector<RowRange>& to) const {
  if (rows.layout != job.whole().layout) return;  // taken out of a repacked file, which was looked at before
  const MatrixView view = zero_view(rows);
  if (view.num_rows == 0) return;
  const int64_t unit = rows.num_rows / view.num_rows;
  std::vector<RowRange> zero_rows;
  find_zero_rows(view, 0, view.num_rows, zero_rows);
  for (const RowRange& range : zero_rows) {
    for (int64_t r = range.begin; r < range.end; ++r) {
      const int64_t at = job.tensor_row(row_begin + r * unit) / unit;
      to.push_back({at, at + 1});
    }
  }
}

// Neighbours' rows between them are read again if somebody still needs them.
void WeightLoader::release_picked(const Job& job, const RowRange& rows) const {
  const MatrixView whole = job.whole();
  const int64_t begin = job.tensor_row(rows.begin), end = job.tensor_row(rows.end - 1) + 1;
  if (end > begin)
    file_.release(whole.data + static_cast<size_t>(begin) * whole.row_bytes(),
                  static_cast<size_t>(end - begin) * whole.row_bytes());
}

void WeightLoader::allocate(Job& job, const NumaNodes& nodes) {
  AlignedBuffer& buffer = weights_.buffers.emplace_back(loaded_bytes(job), fmt::format("tensor {}", job.tensor->name));
  const size_t row_bytes = job.to[0]->row_bytes();
  for (size_t i = 0; i < job.to.size(); ++i) {
    const int64_t first_row = job.parts.empty() ? 0 : job.parts[i].begin;
    job.to[i]->data = buffer.data() + static_cast<size_t>(first_row) * row_bytes;
  }
  // A huge page would take its neighbour's rows along to one node. The shares of a single expert are smaller than one.
  for (int node = 1; node < nodes.count(); ++node) {
    for (const RowRange& rows : nodes.rows_of(node, job.from.num_rows, job.unit_rows)) {
      buffer.refuse_huge_page(static_cast<size_t>(rows.begin) * row_bytes);
      buffer.refuse_huge_page(static_cast<size_t>(rows.end) * row_bytes);
    }
  }
}

// Cuts what of the matrix lies on `node`, in file order.
void WeightLoader::append_chunks(Job& job, const NumaNodes& nodes, int node, std::vector<Chunk>& chunks) {
  const size_t row_bytes = job.from.row_bytes();
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(kChunkBytes / row_bytes) / kInterleave) * kInterleave;
  int64_t room = 0;  // rows that the last chunk still takes
  for (const RowRange& rows : nodes.rows_of(node, job.from.num_rows, job.unit_rows)) {
    for (int64_t begin = rows.begin, end; begin < rows.end; begin = end) {
      if (room == 0) {
        chunks.push_back({&job, {}, 0});
        room = most;
      }
      end = std::min(begin + room, rows.end);
      chunks.back().ranges.push_back({begin, end});
      chunks.back().size_bytes += static_cast<size_t>(end - begin) * row_bytes;
      room -= end - begin;
    }
  }
}

void WeightLoader::check_zeros() const {
  const GgufTensor* first = nullptr;  // in file order, matrices before vectors
  size_t first_offset = 0, count = zero_vectors_.size();
  for (size_t i = 0; i < jobs_.size(); ++i) {
    const Job& job = jobs_[i];
    // Several jobs may each load a part of one tensor; they follow each other.
    if (i > 0 && jobs_[i - 1].tensor == job.tensor) continue;
    std::vector<RowRange> zero_rows;
    for (size_t j = i; j < jobs_.size() && jobs_[j].tensor == job.tensor; ++j)
      zero_rows.insert(zero_rows.end(), jobs_[j].zero_rows.begin(), jobs_[j].zero_rows.end());
    const bool is_last = std::none_of(file_.tensors().begin(), file_.tensors().end(), [&](const GgufTensor& other) {
      return other.file_idx == job.tensor->file_idx && other.file_offset > job.tensor->file_offset;
    });
    const auto offset = find_unwritten(zero_view(job.whole()), std::move(zero_rows), is_last,
                                       job.whole().layout == Layout::kInterleaved);
    if (!offset) continue;
    ++count;
    if (first != nullptr) continue;
    first = job.tensor;
    first_offset = *offset;
  }
  if (count == 0) return;
  if (first == nullptr) first = zero_vectors_.front();
  const std::string where =
      first_offset == 0 ? "is all zeros" : fmt::format("has zeros only from its byte {} on", first_offset);
  const std::string others = count > 1 ? fmt::format(", and so it is with {} tensors more", count - 1) : "";
  fail(std::string(first->name),
       fmt::format("{}{}; this part of the file, byte {} and what follows, was never written: download it again", where,
                   others, first->file_offset + first_offset));
}

void WeightLoader::load() {
  const size_t needed = bytes_needed(), available = available_memory_bytes();
  if (needed > available) {
    throw InputError(fmt::format(
        "{}: the weights need {:.2f} GiB, {:.2f} GiB of memory are available; free memory, use a smaller model, or {}",
        file_.path(), gib(needed), gib(available),
        file_.is_repacked() ? "FORETOKEN_NUMA=off to use the file in place"
                            : "--no-repack to compute from the mapped file"));
  }
  if (file_.is_repacked()) file_.prefer_huge_pages();
  load_vectors();
  std::stable_sort(jobs_.begin(), jobs_.end(), [](const Job& a, const Job& b) {
    return std::pair(a.tensor->file_idx, a.tensor->file_offset) < std::pair(b.tensor->file_idx, b.tensor->file_offset);
  });
  ThreadTeam team(available_cores(), options_.nodes);
  const NumaNodes& nodes = team.nodes();
  size_t all_bytes = 0;
  for (Job& job : jobs_) {
    if (!job.in_place) allocate(job, nodes);
    if (!job.in_place || !options_.repack || job.from.layout == Layout::kInterleaved)
      weights_.matrix_bytes += loaded_bytes(job);
    all_bytes += job.from.size_bytes();
  }
  std::vector<Chunk> chunks;
  std::vector<int64_t> node_ends;
  for (int node = 0; node < nodes.count(); ++node) {
    for (Job& job : jobs_) append_chunks(job, nodes, node, chunks);
    node_ends.push_back(static_cast<int64_t>(chunks.size()));
  }

  // What is computed from in place stays.
  const auto stays = [](const Job& job) { return job.in_place && job.from.layout == Layout::kInterleaved; };
  std::optional<InputError> error;
  std::mutex mutex;  // of the error, the progress and the zero rows
  std::atomic<size_t> done{0};
  std::atomic<bool> failed{false};
  team.parallel_for(node_ends, [&](int64_t c, int thread_idx) {
    if (failed.load(std::memory_order_relaxed)) return;
    const Chunk& chunk = chunks[c];
    const size_t row_bytes = chunk.job->from.row_bytes();
    // Who has taken another node's chunk goes there for it.
    const auto node = static_cast<int>(std::upper_bound(node_ends.begin(), node_ends.end(), c) - node_ends.begin());
    std::optional<ThreadPin> there;
    if (node != team.node_of(thread_idx)) there.emplace(nodes.nodes()[node]);
    try {
      std::vector<std::byte> scratch;
      for (const RowRange& rows : chunk.ranges) {
        const MatrixView in_file = rows_in_file(*chunk.job, rows.begin, rows.end, scratch);
        fill(*chunk.job, in_file, rows.begin);
        std::vector<RowRange> zero_rows;
        note_zero_rows(*chunk.job, in_file, rows.begin, zero_rows);
        if (!zero_rows.empty()) {
          const std::lock_guard lock(mutex);
          std::vector<RowRange>& all = chunk.job->zero_rows;
          all.insert(all.end(), zero_rows.begin(), zero_rows.end());
        }
        const size_t begin = static_cast<size_t>(rows.begin) * row_bytes,
                     end = static_cast<size_t>(rows.end) * row_bytes;
        if (options_.repack && !chunk.job->picked.empty()) release_picked(*chunk.job, rows);
        if (options_.repack && chunk.job->picked.empty() && !stays(*chunk.job))
          file_.release(chunk.job->from.data + begin, end - begin);
      }
      const size_t now = done.fetch_add(chunk.size_bytes) + chunk.size_bytes;
      if (options_.progress) {
        const std::lock_guard lock(mutex);
        options_.progress(now, all_bytes);
      }
    } catch (const InputError& e) {
      const std::lock_guard lock(mutex);
      if (!failed.exchange(true)) error = e;
    }
  });
  if (error) throw *error;
  check_zeros();
  file_.check_unchanged("loaded");
  if (!options_.repack || nodes.count() == 1) return;
  // Shares begin and end within pages of the file, which a neighbour may have read after they were released.
  for (const Job& job : jobs_) {
    if (!stays(job)) file_.release(*job.tensor);
  }
}

}  // namespace foretoken
