// The first byte chooses: 'S': a JSON schema, else a grammar; after a zero byte, a text that is read against it. Either
// one error, or an automaton whose masks are what its steps say.

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "engine/text/grammar/matcher.h"
#include "kernels/base/error.h"
#include "tests/fuzz/memory_file.h"

namespace foretoken {
namespace {

std::shared_ptr<const TokenTrie> tokens() {
  static const std::vector<std::string_view> pieces = {"a",    "b", "ab", "{\"", "\"",   "\":",  " ",        "1",
                                                       "12",   "}", "],", "\n",  "\xc3", "\xa9", "\xc3\xa9", "true",
                                                       "null", "<", "</", ",",   ", \"", "\\",   "\\u00",    ""};
  static const auto trie = std::make_shared<const TokenTrie>(pieces, std::vector<TokenId>{23});
  return trie;
}

void run(std::string_view data) {
  if (data.empty()) return;
  const bool is_schema = data[0] == 'S';
  if (is_schema) data.remove_prefix(1);
  const size_t end = std::min(data.find('\0'), data.size());
  const std::string_view text = data.substr(std::min(end + 1, data.size()));
  try {
    std::string gbnf(data.substr(0, end));
    if (is_schema) {
      const auto schema = nlohmann::ordered_json::parse(gbnf, nullptr, /*allow_exceptions=*/false);
      if (schema.is_discarded()) return;
      gbnf = json_schema_to_gbnf(schema);
    }
    GrammarMatcher matcher(std::make_shared<const Grammar>(Grammar::parse(gbnf)), tokens());
    GrammarMatcher::State state = matcher.start();
    for (size_t i = 0; i < text.size() && i < 64 && state != GrammarMatcher::kDead; ++i) {
      const auto mask = matcher.mask(state);
      const std::vector<uint64_t> allowed(mask.begin(), mask.end());
      for (TokenId id = 0; id < tokens()->vocab_size(); ++id) {
        const bool in_mask = (allowed[0] >> id & 1) != 0;
        require(in_mask == (matcher.accept(state, id) != GrammarMatcher::kDead));
      }
      state = matcher.accept_bytes(state, text.substr(i, 1));
    }
  } catch (const InputError& error) {
    const std::string_view message = error.what();
    require(message.starts_with("grammar: ") || (is_schema && message.starts_with("json schema: ")));
  }
}

}  // namespace
}  // namespace foretoken

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  foretoken::run({reinterpret_cast<const char*>(data), size});
  return 0;
}
