#include "tools/requantise/requantise.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "engine/gguf/gguf_writer.h"
#include "engine/gguf/tensor_name.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"
#include "kernels/formats/weight_quantiser.h"

namespace foretoken::requantise {

namespace {

size_t row_bytes(WeightType type, int64_t row_values) {
  const WeightTypeInfo& info = weight_type_info(type);
  return static_cast<size_t>(row_values / info.block_size * info.block_bytes);
}

/// Whether a block holds the tensors of an MTP layer.
bool is_mtp_block(const GgufFile& file, int block) {
  const std::string prefix = fmt::format("blk.{}.nextn.", block);
  const auto tensors = file.tensors();
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const GgufTensor& tensor) { return tensor.name.starts_with(prefix); });
}

std::optional<int> find_mtp_block(const GgufFile& file) {
  for (const GgufTensor& tensor : file.tensors()) {
    const auto [block, part] = split_tensor_name(tensor.name);
    if (block >= 0 && part.starts_with("nextn.")) return block;
  }
  return std::nullopt;
}

/// llama.cpp's number for a file of mostly one type; nothing for types that it has none for.
std::optional<uint32_t> file_type_of(WeightType type) {
  switch (type) {
    case WeightType::kF32:
      return 0;
    case WeightType::kF16:
      return 1;
    case WeightType::kQ4_0:
      return 2;
    case WeightType::kQ4_1:
      return 3;
    case WeightType::kQ8_0:
      return 7;
    case WeightType::kQ5_0:
      return 8;
    case WeightType::kQ5_1:
      return 9;
    case WeightType::kQ2_K:
      return 10;
    case WeightType::kQ3_K:
      return 11;
    case WeightType::kQ4_K:
      return 14;
    case WeightType::kQ5_K:
      return 16;
    case WeightType::kQ6_K:
      return 18;
    case WeightType::kIQ4_NL:
      return 25;
    case WeightType::kIQ4_XS:
      return 30;
    case WeightType::kBF16:
      return 32;
    case WeightType::kMXFP4:
      return 38;
    default:
      return std::nullopt;
  }
}

class Rewriter {
 public:
  Rewriter(const GgufFile& file, const TypeRules& rules) : file_(file), rules_(rules) {}

  Report write(const std::string& out, const std::function<void(size_t, size_t)>& progress) {
    add_metadata();
    for (const GgufTensor& tensor : file_.tensors()) add_tensor(tensor);
    add_draft_head();
    report_.bytes_before = file_.size_bytes();
    report_.bytes_after = writer_.write(out, progress);
    file_.check_unchanged("read");
    return std::move(report_);
  }

 private:
  [[noreturn]] void fail(const GgufTensor& tensor, std::string_view what) const {
    throw InputError(fmt::format("{}: tensor {}: {}", file_.path_of(tensor), printable(tensor.name), what));
  }

  void add_metadata() {
    for (const auto& [key, value] : file_.metadata()) {
      const bool of_the_old_file = key.starts_with("split.") || key == "general.alignment" ||
                                   key == "general.quantization_version" || key.starts_with("quantize.imatrix.") ||
                                   (key == "general.file_type" && rules_.all);
      if (!of_the_old_file) writer_.add_raw(key, file_.raw_value(key));
    }
    writer_.add_uint32("general.quantization_version", 2);
    if (!rules_.all) return;
    if (const auto type = file_type_of(*rules_.all)) writer_.add_uint32("general.file_type", *type);
  }

  [[nodiscard]] std::optional<WeightType> wanted_type(const GgufTensor& tensor) const {
    if (is_draft_head(tensor) && rules_.draft_head) return rules_.draft_head;
    const auto role = find_role(file_, tensor);
    if (!role) return std::nullopt;
    if (rules_[*role]) return rules_[*role];
    return role == Role::kRouter ? std::nullopt : rules_.all;
  }

  static bool is_draft_head(const GgufTensor& tensor) {
    return tensor.name.ends_with(".nextn.shared_head_head.weight");
  }

  void add_tensor(const GgufTensor& tensor) {
    if (!tensor.type()) {
      fail(tensor, fmt::format("type {} cannot be read here; make the file from one of another type",
                               gguf_type_name(tensor.type_id)));
    }
    add_as(tensor, tensor.name, wanted_type(tensor));
  }

  /// The head once more, as the MTP layer's own.
  void add_draft_head() {
    if (!rules_.draft_head) return;
    const auto block = find_mtp_block(file_);
    if (!block) {
      throw InputError(
          fmt::format("{}: --head-draft: the file has no MTP layer that could use a head of its own", file_.path()));
    }
    const std::string name = fmt::format("blk.{}.nextn.shared_head_head.weight", *block);
    if (file_.find_tensor(name) != nullptr) return;  // has been written
    const GgufTensor* head = file_.find_tensor("output.weight");
    if (head == nullptr) head = file_.find_tensor("token_embd.weight");
    if (head == nullptr) throw InputError(fmt::format("{}: --head-draft: the file has no head", file_.path()));
    add_as(*head, name, rules_.draft_head);
    const GgufTensor* scale = file_.find_tensor("output.scale");
    if (scale != nullptr)
      add_as(*scale, fmt::format("blk.{}.nextn.shared_head_head.scale", *block), /*wanted=*/std::nullopt);
  }

  void add_as(const GgufTensor& tensor, std::string_view name, std::optional<WeightType> wanted) {
    const WeightType from = *tensor.type();
    const int64_t row_values = tensor.shape[0];
    WeightType to = from;
    if (wanted) {
      to = fitting_type(*wanted, row_values);
      if (to != *wanted) ++report_.replaced[{*wanted, to}];
    }
    const auto count = [&](std::map<std::string_view, Report::Sum>& sums, WeightType type) {
      Report::Sum& sum = sums[weight_type_info(type).name];
      ++sum.num_tensors;
      sum.bytes += row_bytes(type, row_values) * static_cast<size_t>(tensor.num_values() / row_values);
    };
    if (name == tensor.name) count(report_.before, from);
    count(report_.after, to);
    writer_.add_tensor(
        name, to, tensor.shape, [this, &tensor, from, to, row_values](int64_t begin, int64_t end, std::byte* out) {
          const size_t from_bytes = row_bytes(from, row_values), to_bytes = row_bytes(to, row_values);
          const std::byte* rows = tensor.data + static_cast<size_t>(begin) * from_bytes;
          const size_t size_bytes = static_cast<size_t>(end - begin) * from_bytes;
          if (from == to) {
            std::memcpy(out, rows, size_bytes);
          } else {
            std::vector<float> values(static_cast<size_t>(row_values));
            for (int64_t row = begin; row < end; ++row, out += to_bytes) {
              const std::byte* bytes = rows + static_cast<size_t>(row - begin) * from_bytes;
              if (!row_is_finite(from, bytes, row_values))
                fail(tensor, fmt::format("row {} has a value or scale that is not finite; the file is damaged", row));
              decode_row(from, bytes, row_values, values.data());
              quantise_weights(to, values.data(), row_values, out);
              if (!row_is_finite(to, out, row_values)) {
                fail(tensor, fmt::format("row {} has a value that {} cannot hold; choose another type for it", row,
                                         weight_type_info(to).name));
              }
            }
          }
          file_.release(rows, size_bytes);
        });
  }

  const GgufFile& file_;
  const TypeRules& rules_;
  GgufWriter writer_;
  Report report_;
};

}  // namespace

std::optional<Role> find_role(const GgufFile& file, const GgufTensor& tensor) {
  const std::string_view name = tensor.name;
  if (tensor.shape.size() < 2 || !name.ends_with(".weight") || name.ends_with("norm.weight") ||
      name.ends_with("ssm_conv1d.weight")) {
    return std::nullopt;
  }
  if (name == "output.weight") return Role::kHead;
  if (name == "token_embd.weight") return file.find_tensor("output.weight") == nullptr ? Role::kHead : Role::kEmbedding;
  const auto [block, part] = split_tensor_name(name);
  if (block < 0) return std::nullopt;
  if (part.find("ffn_gate_inp") != std::string_view::npos) return Role::kRouter;
  if (part.starts_with("nextn.shared_head_head")) return Role::kHead;
  if (is_mtp_block(file, block)) return Role::kMtp;
  if (part == "ffn_down_exps.weight") return Role::kExpertsDown;
  if (part.find("_exps.") != std::string_view::npos) return Role::kExperts;
  if (part.starts_with("ffn_")) return Role::kFeedForward;
  const bool recurrent = file.find_tensor(fmt::format("blk.{}.ssm_out.weight", block)) != nullptr;
  return recurrent ? Role::kDeltaNet : Role::kAttention;
}

WeightType fitting_type(WeightType wanted, int64_t row_values) {
  const auto fits = [&](WeightType type) { return row_values % weight_type_info(type).block_size == 0; };
  if (fits(wanted)) return wanted;
  WeightType smaller = WeightType::kQ8_0;
  switch (wanted) {
    case WeightType::kQ2_K:
    case WeightType::kQ3_K:
      smaller = WeightType::kQ4_0;
      break;
    case WeightType::kQ4_K:
      smaller = WeightType::kQ5_0;
      break;
    case WeightType::kQ5_K:
      smaller = WeightType::kQ5_1;
      break;
    case WeightType::kIQ4_XS:
      smaller = WeightType::kIQ4_NL;
      break;
    default:
      break;
  }
  return fits(smaller) ? smaller : WeightType::kF16;
}

Report write_requantised(const GgufFile& file, const std::string& out, const TypeRules& rules,
                         const std::function<void(size_t done, size_t all)>& progress) {
  return Rewriter(file, rules).write(out, progress);
}

}  // namespace foretoken::requantise
