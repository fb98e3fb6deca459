// Any bytes as a GGUF file: either one line of error, or a file whose every value and tensor can be read.

#include <array>
#include <span>
#include <string_view>

#include "engine/gguf/gguf.h"
#include "engine/gguf/gguf_part.h"
#include "kernels/base/error.h"
#include "tests/fuzz/memory_file.h"

namespace foretoken {
namespace {

template <typename Call>
void allow_input_error(const std::string& path, const Call& call) {
  try {
    call();
  } catch (const InputError& error) {
    const std::string_view message = error.what();
    require(message.starts_with(path + ": ") && message.find('\n') == std::string_view::npos);
  }
}

void read_typed(const GgufFile& file, std::string_view key) {
  const auto allow = [&](const auto& call) { allow_input_error(file.path(), call); };
  allow([&] { (void)file.get_int(key, -1000, 1000); });
  allow([&] { (void)file.get_float(key); });
  allow([&] { (void)file.get_bool(key, false); });
  allow([&] { (void)file.get_string(key); });
  allow([&] { (void)file.get_string_array(key); });
  allow([&] { (void)file.find_int_array(key); });
}

void run(std::span<const uint8_t> data) {
  // First on libFuzzer's own copy: the sanitizer knows where it ends, which it does not know of a mapping.
  bool parsed = false;
  allow_input_error("memory", [&] {
    const GgufPart part = parse_gguf_part(std::as_bytes(data), "memory");
    parsed = true;
    for (const GgufTensor& tensor : part.tensors) {
      require(tensor.type().has_value() == (tensor.data != nullptr));
      if (tensor.data == nullptr) continue;
      const auto* begin = reinterpret_cast<const std::byte*>(data.data());
      require(tensor.data >= begin && tensor.size_bytes <= data.size() - static_cast<size_t>(tensor.data - begin));
      require(tensor.size_bytes > 0 && tensor.num_values() > 0);
    }
  });
  if (!parsed) return;
  const MemoryFile memory(data.data(), data.size());
  allow_input_error(memory.path(), [&] {
    const GgufFile file = GgufFile::open(memory.path());
    for (const auto& [key, value] : file.metadata()) {
      require(file.find(key) == &value);
      read_typed(file, key);
    }
    for (const GgufTensor& tensor : file.tensors()) {
      require(file.find_tensor(tensor.name) == &tensor);
      file.release(tensor);
    }
    require(file.fingerprint().size() == 64);
  });
}

}  // namespace
}  // namespace foretoken

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  foretoken::run({data, size});
  return 0;
}
