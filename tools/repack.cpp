#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <set>
#include <string>

#include "engine/gguf/gguf.h"
#include "engine/gguf/gguf_writer.h"
#include "engine/model/model.h"
#include "engine/model/model_file.h"
#include "engine/options.h"
#include "kernels/base/error.h"
#include "kernels/formats/interleave.h"
#include "kernels/formats/weight_codec.h"
#include "tools/cli/command_line.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/terminal.h"
#include "tools/commands.h"

namespace foretoken {

namespace {

// Tensors begin on pages of their own, as matrices in memory do.
constexpr uint32_t kTensorAlignment = 4096;

bool is_same_file(const std::string& a, const std::string& b) {
  struct stat of_a = {}, of_b = {};
  return stat(a.c_str(), &of_a) == 0 && stat(b.c_str(), &of_b) == 0 && of_a.st_dev == of_b.st_dev &&
         of_a.st_ino == of_b.st_ino;
}

void add_metadata(const GgufFile& file, GgufWriter& writer) {
  for (const auto& [key, value] : file.metadata()) {
    if (key != "general.alignment" && !key.starts_with("split.")) writer.add_raw(key, file.raw_value(key));
  }
  writer.set_alignment(kTensorAlignment);
  writer.add_uint32(kRepackVersionKey, static_cast<uint32_t>(kRepackVersion));
  writer.add_string(kRepackSourceKey, file.fingerprint());
}

/// One tensor in the layout `layout`, its scales checked as loading the original would.
void add_tensor(const GgufFile& file, const GgufTensor& tensor, Layout layout, GgufWriter& writer) {
  const MatrixView rows{tensor.data, tensor.num_values() / tensor.shape[0], tensor.shape[0], *tensor.type(),
                        Layout::kRows};
  const auto fill = [&file, &tensor, rows, layout](int64_t begin, int64_t end, std::byte* to) {
    const size_t row_bytes = rows.row_bytes();
    const std::byte* from = rows.data + static_cast<size_t>(begin) * row_bytes;
    for (int64_t r = begin; r < end; ++r) {
      if (!row_is_finite(rows.type, rows.data + static_cast<size_t>(r) * row_bytes, rows.num_cols)) {
        throw InputError(
            fmt::format("{}: tensor {}: row {} has a value or scale that is not finite; the file is damaged",
                        file.path(), tensor.name, r));
      }
    }
    if (layout == Layout::kInterleaved) {
      interleave_rows(rows.slice_rows(begin, end), 0, end - begin, to);
    } else {
      std::copy_n(from, static_cast<size_t>(end - begin) * row_bytes, to);
    }
    file.release(from, static_cast<size_t>(end - begin) * row_bytes);
  };
  writer.add_tensor(tensor.name, *tensor.type(), tensor.shape, fill, layout);
}

}  // namespace

int run_repack(int argc, const char* const* argv) {
  std::string in, out;
  CommandLine line(
      "repack", "IN.gguf OUT.gguf",
      "Writes a model's weights in the layout that the kernels read. The new file is as large as the old one "
      "(matrices\nof IQ1, IQ2 and IQ3 take a fifth to a half more) and is used in place, so that later starts "
      "take about as long\nas reading it. Ids and logits are the same. Other programs cannot read it: keep the "
      "original.");
  line.add_positional("in", &in, "IN.gguf", "file to read, or its folder; of a split model, any part");
  line.add_positional("out", &out, "OUT.gguf", "file to write, in one part");
  line.epilogue(environment_help());
  if (!line.parse(argc, argv)) return 0;
  (void)read_environment();  // a wrong value is an error here too
  if (in.empty() || out.empty())
    throw UsageError("repack IN.gguf OUT.gguf: name the file to read and the file to write");

  const auto begin = std::chrono::steady_clock::now();
  const GgufFile file = GgufFile::open(find_model(in));
  if (file.is_repacked())
    throw InputError(fmt::format("{}: is repacked already; repack the original file", file.path()));
  if (is_same_file(in, out))
    throw InputError(fmt::format("{}: would replace the file it is made from; name another", out));
  const std::set<std::string, std::less<>> interleaved = Model::outline(file).interleaved;
  GgufWriter writer;
  add_metadata(file, writer);
  for (const GgufTensor& tensor : file.tensors()) {
    // A tensor of a type that is not known is one that nothing reads, or the model would have been refused.
    if (!tensor.type()) continue;
    add_tensor(file, tensor, interleaved.contains(tensor.name) ? Layout::kInterleaved : Layout::kRows, writer);
  }
  {
    ProgressBar bar("writing", Unit::kBytes);
    writer.write(out, [&](size_t done, size_t all) { bar.show(done, all); });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ResultStream().write(fmt::format("{}: {} of {} tensors interleaved, {} in {:.1f} s\n", out, interleaved.size(),
                                   file.tensors().size(), format_bytes(static_cast<double>(writer.data_bytes())),
                                   seconds));
  return 0;
}

}  // namespace foretoken
