// The first byte chooses: 'T': the rest is a text for the demonstration model's vocabulary; anything else: the whole
// input is a GGUF file with a vocabulary.

#include <iterator>
#include <string>
#include <string_view>

#include "engine/gguf/gguf.h"
#include "engine/text/nfc.h"
#include "engine/text/pretokenizer.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/error.h"
#include "tests/fuzz/memory_file.h"

namespace foretoken {
namespace {

const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer =
      Tokenizer::load(GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf"));
  return tokenizer;
}

void check_split(std::string_view text) {
  static const Pretokenizer compiled[] = {*Pretokenizer::find("qwen2"), *Pretokenizer::find("qwen35"),
                                          *Pretokenizer::find("smollm")};
  static const Pretokenizer interpreted[] = {*Pretokenizer::find("qwen2", false), *Pretokenizer::find("qwen35", false),
                                             *Pretokenizer::find("smollm", false)};
  for (size_t i = 0; i < std::size(compiled); ++i) {
    const auto words = compiled[i].split(text);
    require(words == interpreted[i].split(text));
    size_t pos = 0;
    for (std::string_view word : words) {
      require(word.data() == text.data() + pos && !word.empty());
      pos += word.size();
    }
    require(pos == text.size());
  }
}

void run_text(std::string_view text) {
  const Tokenizer& tokenizer = demo_tokenizer();
  const bool valid = find_invalid_utf8(text) == std::string_view::npos;
  try {
    const auto ids = tokenizer.encode(text, /*parse_special=*/false);
    require(valid);
    std::string storage;
    const std::string normal(to_nfc(text, storage));
    require(tokenizer.decode(ids) == normal);
    std::string again;
    require(to_nfc(normal, again) == normal);
    Utf8Stream stream;
    std::string streamed;
    for (TokenId id : ids) streamed += stream.push(tokenizer.piece(id));
    require(streamed + stream.finish() == normal);
    // With special tokens cut out, each id is in the vocabulary and plain text between them is normal.
    const auto special = tokenizer.encode(text);
    require(find_invalid_utf8(tokenizer.decode(special, /*keep_special=*/true)) == std::string_view::npos);
    check_split(normal);
  } catch (const InputError&) {
    require(!valid);
  }
}

void run_vocabulary(const uint8_t* data, size_t size) {
  const MemoryFile memory(data, size);
  try {
    const GgufFile file = GgufFile::open(memory.path());
    const Tokenizer tokenizer = Tokenizer::load(file);
    const std::string text = "Hello, w\xC3\xB6rld <|im_end|> 123\n  x e\xCC\x81 <a><ab>";
    const auto ids = tokenizer.encode(text, /*parse_special=*/false);
    for (TokenId id : tokenizer.encode(text)) require(id >= 0 && id < tokenizer.vocab_size());
    for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) (void)tokenizer.piece(id, /*keep_special=*/true);
    for (TokenId id : tokenizer.special_ids()) require(tokenizer.is_special(id));
    (void)tokenizer.decode(ids);
  } catch (const InputError& error) {
    const std::string_view message = error.what();
    require(message.starts_with(memory.path() + ": ") && message.find('\n') == std::string_view::npos);
  }
}

}  // namespace
}  // namespace foretoken

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0 && data[0] == 'T') {
    foretoken::run_text({reinterpret_cast<const char*>(data + 1), size - 1});
  } else if (size > 0) {
    foretoken::run_vocabulary(data, size);
  }
  return 0;
}
