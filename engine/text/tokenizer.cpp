#include "engine/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <deque>
#include <optional>
#include <unordered_map>

#include "engine/gguf/gguf.h"
#include "engine/text/bpe.h"
#include "engine/text/nfc.h"
#include "engine/text/pretokenizer.h"
#include "engine/text/special_tokens.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr size_t kMaxVocab = size_t{1} << 24;  // the largest of real models is near 2^18
constexpr size_t kMaxSpecialBytes = 1024;      // of a control token's name; bounds the search at each place of a text
constexpr size_t kMaxTextBytes = (size_t{1} << 31) - 1;  // positions within a word are 32-bit

// tokenizer.ggml.token_type
enum TokenType : uint8_t {
  kUndefined = 0,
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

// The characters by which byte-level BPE spells bytes: printable Latin-1 ones stand for themselves, the other 68 are
// U+0100 onwards in rising order (GPT-2's encoder.py, bytes_to_unicode).
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      spelling_[byte] = itself ? static_cast<char32_t>(byte) : next++;
      byte_of_[spelling_[byte]] = static_cast<int16_t>(byte);
    }
  }
  [[nodiscard]] std::string spell(int byte) const {
    std::string out;
    append_utf8(spelling_[byte], out);
    return out;
  }
  // The bytes that `text` spells; `text` itself if it has another character. REQUIRES: valid UTF-8.
  void append_bytes(std::string_view text, std::string& out) const {
    const size_t begin = out.size();
    for (std::string_view rest = text; !rest.empty();) {
      const Utf8Char c = decode_utf8(rest);
      if (c.code_point >= byte_of_.size() || byte_of_[c.code_point] < 0) {
        out.resize(begin);
        out += text;
        return;
      }
      out += static_cast<char>(byte_of_[c.code_point]);
      rest.remove_prefix(c.length);
    }
  }

 private:
  std::array<char32_t, 256> spelling_;
  std::array<int16_t, 256 + 68> byte_of_;
};

// Whether text has the byte: as part of a character that Unicode has assigned or left to private use, control
// characters aside. A vocabulary needs no token for the others (SmolLM's has none for six of the control characters and
// for 0xF1 and 0xF2, under which no character is assigned).
bool is_text_byte(int byte) {
  if (byte < 0x20 || byte == 0x7F) return byte == '\t' || byte == '\n' || byte == '\r';
  return byte < 0xC0 || (byte >= 0xC2 && byte <= 0xF0) || byte == 0xF3 || byte == 0xF4;
}

// From a token's text to its id, while loading. Open addressing: 250,000 tokens and three look-ups a merge made
// std::unordered_map the larger part of the loading time.
class TokenIndex {
 public:
  explicit TokenIndex(const std::vector<std::string_view>& texts)
      : texts_(texts), slots_(std::bit_ceil(texts.size() * 2 + 2), kFree) {}

  // Returns the id that has the same text already, or -1 after adding it.
  TokenId add(TokenId id) {
    TokenId& slot = slots_[slot_of(texts_[id])];
    if (slot != kFree) return slot;
    slot = id;
    return -1;
  }
  [[nodiscard]] TokenId find(std::string_view text) const { return slots_[slot_of(text)]; }  // -1: none

 private:
  static constexpr TokenId kFree = -1;
  [[nodiscard]] size_t slot_of(std::string_view text) const {
    size_t slot = std::hash<std::string_view>()(text) & (slots_.size() - 1);
    while (slots_[slot] != kFree && texts_[slots_[slot]] != text) slot = (slot + 1) & (slots_.size() - 1);
    return slot;
  }
  const std::vector<std::string_view>& texts_;
  std::vector<TokenId> slots_;
};

// Names that end a generation wherever they stand in a vocabulary, as llama.cpp has them: files seldom list all of
// theirs. A model that fills in the middle goes on to the next file or repository, or pads, when it is done.
constexpr std::string_view kEndNames[] = {"<|im_end|>",
                                          "<|endoftext|>",
                                          "<|eot_id|>",
                                          "<|eom_id|>",
                                          "<|end|>",
                                          "<|return|>",
                                          "<|call|>",
                                          "<|calls|>",
                                          "<|flush|>",
                                          "<|end_of_text|>",
                                          "<end_of_turn>",
                                          "<turn|>",
                                          "<|tool_response>",
                                          "<end_of_utterance>",
                                          "<eos>",
                                          "<EOT>",
                                          "_<EOT>",
                                          "[EOT]",
                                          "[EOS]",
                                          "[e~[",
                                          "</s>",
                                          "<|fim_pad|>",
                                          "<fim-pad>",
                                          "<fim_pad>",
                                          "<PAD>",
                                          "[PAD]",
                                          "<|fim_repo|>",
                                          "<|repo_name|>",
                                          "<fim-repo>",
                                          "<REPO>",
                                          "<reponame>",
                                          "<|file_sep|>",
                                          "<\xEF\xBD\x9C"
                                          "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"};

// Keys of ids that end a generation.
constexpr std::string_view kEndKeys[] = {"tokenizer.ggml.eos_token_id",     "tokenizer.ggml.eot_token_id",
                                         "tokenizer.ggml.eom_token_id",     "tokenizer.ggml.fim_pad_token_id",
                                         "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id"};

constexpr std::string_view kTokensKey = "tokenizer.ggml.tokens";
constexpr std::string_view kTypesKey = "tokenizer.ggml.token_type";
constexpr std::string_view kMergesKey = "tokenizer.ggml.merges";

[[noreturn]] void fail(const GgufFile& file, std::string_view key, std::string_view what) {
  throw InputError(fmt::format("{}: metadata key {}: {}", printable(file.path(), 4096), key, what));
}

std::vector<uint8_t> read_types(const GgufFile& file, size_t vocab_size) {
  const auto values = file.find_int_array(kTypesKey);
  if (!values) return std::vector<uint8_t>(vocab_size, kNormal);
  if (values->size() != vocab_size) {
    fail(file, kTypesKey, fmt::format("{} entries for {} tokens; convert the file again", values->size(), vocab_size));
  }
  std::vector<uint8_t> types;
  types.reserve(vocab_size);
  for (int64_t value : *values) {
    if (value < kUndefined || value > kByte) {
      fail(file, kTypesKey,
           fmt::format("entry {} is {}; {} to {} allowed", types.size(), value, int{kUndefined}, int{kByte}));
    }
    types.push_back(static_cast<uint8_t>(value));
  }
  return types;
}

TokenId read_token_id(const GgufFile& file, std::string_view key, size_t vocab_size) {
  return static_cast<TokenId>(file.get_int(key, 0, static_cast<int64_t>(vocab_size) - 1, -1));
}

// Adds every token but the unused ones, which are filler that no text leads to and may be empty or alike.
TokenIndex index_tokens(const GgufFile& file, const std::vector<std::string_view>& texts,
                        const std::vector<uint8_t>& types) {
  TokenIndex index(texts);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (types[i] == kUnused) continue;
    const bool special = types[i] == kControl || types[i] == kUserDefined;
    if (texts[i].empty())
      fail(file, kTokensKey, fmt::format("token {} is empty; only unused tokens (type {}) may be", i, int{kUnused}));
    if (special && texts[i].size() > kMaxSpecialBytes) {
      fail(file, kTokensKey,
           fmt::format("special token {} has {} bytes; the limit is {}", i, texts[i].size(), kMaxSpecialBytes));
    }
    if (const size_t at = find_invalid_utf8(texts[i]); at != std::string_view::npos) {
      fail(file, kTokensKey,
           fmt::format("token {} is not UTF-8 at byte {}: \"{}\"; convert the file again", i, at, printable(texts[i])));
    }
    if (const TokenId other = index.add(static_cast<TokenId>(i)); other >= 0) {
      fail(file, kTokensKey,
           fmt::format("tokens {} and {} are the same, \"{}\"; only unused tokens (type {}) may be", other, i,
                       printable(texts[i]), int{kUnused}));
    }
  }
  return index;
}

Bpe read_merges(const GgufFile& file, const TokenIndex& index, const std::vector<uint8_t>& types) {
  // A merge never makes or takes a control token: plain text must not turn into one.
  const auto find_plain = [&](std::string_view text) {
    const TokenId id = index.find(text);
    return id >= 0 && types[id] != kControl ? id : -1;
  };
  const ByteAlphabet alphabet;
  std::array<TokenId, 256> byte_tokens;
  for (int byte = 0; byte < 256; ++byte) {
    byte_tokens[byte] = find_plain(alphabet.spell(byte));
    if (byte_tokens[byte] < 0 && is_text_byte(byte)) {
      fail(file, kTokensKey,
           fmt::format("no token for byte 0x{:02X} (\"{}\"); byte-level BPE needs one for each byte", byte,
                       alphabet.spell(byte)));
    }
  }
  const std::vector<std::string_view>& merges = file.get_string_array(kMergesKey);
  Bpe bpe(byte_tokens, types.size(), merges.size());
  std::unordered_map<std::string_view, TokenId> pieces;  // that are no tokens; of pruned vocabularies
  std::deque<std::string> names;                         // of `pieces`
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::string_view merge = merges[i];
    const auto fail_merge = [&](std::string_view what) {
      fail(file, kMergesKey, fmt::format("merge {}, \"{}\": {}; convert the file again", i, printable(merge), what));
    };
    const size_t space = merge.find(' ');
    if (space == std::string_view::npos || merge.find(' ', space + 1) != std::string_view::npos) {
      fail_merge("two tokens with one space between them are needed");
    }
    joined = merge.substr(0, space);
    joined += merge.substr(space + 1);
    const auto need = [&](std::string_view text) {
      if (text.empty()) fail_merge("two tokens with one space between them are needed");
      const TokenId id = index.find(text);
      if (id >= 0 && types[id] == kControl)
        fail_merge(fmt::format("\"{}\" is a control token, which no text may become", printable(text)));
      if (id >= 0) return id;
      if (find_invalid_utf8(text) != std::string_view::npos) fail_merge("is not UTF-8");
      // A vocabulary that was cut down may keep the merges of tokens that are gone. They still lead to others.
      const auto known = pieces.find(text);
      if (known != pieces.end()) return known->second;
      std::string bytes;
      alphabet.append_bytes(text, bytes);
      return pieces.emplace(names.emplace_back(text), bpe.add_piece(std::move(bytes))).first->second;
    };
    const TokenId left = need(merge.substr(0, space));
    const TokenId right = need(merge.substr(space + 1));
    if (!bpe.add_merge(left, right, need(joined))) fail_merge("is there twice");
  }
  return bpe;
}

}  // namespace

namespace {

// A view of a TextPart.
struct Part {
  std::string_view text;
  bool parse_special = false;
};

}  // namespace

struct Tokenizer::Impl {
  std::vector<uint8_t> types;
  std::string bytes;                 // of all tokens, one after the other
  std::vector<size_t> byte_begins;   // vocab_size + 1
  std::vector<TokenId> special_ids;  // rising
  std::vector<TokenId> end_ids;      // rising
  std::string chat_template;
  bool add_bos = false;
  TokenId bos = -1, eos = -1;
  SpecialTokens special_tokens;
  SpecialTokens user_tokens;  // of them, the user-defined ones
  std::optional<Bpe> bpe;
  std::optional<Pretokenizer> pretokenizer;

  [[nodiscard]] bool has(TokenId id) const { return id >= 0 && static_cast<size_t>(id) < types.size(); }
  [[nodiscard]] bool is_special(TokenId id) const { return types[id] == kControl || types[id] == kUserDefined; }
  [[nodiscard]] std::string_view bytes_of(TokenId id) const {
    return std::string_view(bytes).substr(byte_begins[id], byte_begins[id + 1] - byte_begins[id]);
  }

  [[nodiscard]] std::vector<TokenId> encode(std::span<const Part> parts) const;

  void store_pieces(const std::vector<std::string_view>& texts) {
    const ByteAlphabet alphabet;
    for (size_t i = 0; i < texts.size(); ++i) {
      byte_begins.push_back(bytes.size());
      const auto id = static_cast<TokenId>(i);
      if (is_special(id)) {
        bytes += texts[i];
        special_ids.push_back(id);
      } else if (types[i] != kUnused) {
        alphabet.append_bytes(texts[i], bytes);
      }
    }
    byte_begins.push_back(bytes.size());
    std::vector<SpecialTokens::Named> all, user;
    for (TokenId id : special_ids) {
      all.push_back({bytes_of(id), id});
      if (types[id] == kUserDefined) user.push_back({bytes_of(id), id});
    }
    special_tokens = SpecialTokens(std::move(all));
    user_tokens = SpecialTokens(std::move(user));
  }

  // In vocabularies whose answers have several parts, each ended by <|end|>, other tokens end the whole; and where
  // <|tool_response> ends it, </s> is a mark-up of text.
  [[nodiscard]] static bool is_end_of_part(const TokenIndex& index, std::string_view name) {
    const auto has = [&](std::string_view other) { return index.find(other) >= 0; };
    if (name == "</s>") return has("<|tool_response>");
    const bool calls = has("<|call|>") || has("<|calls|>");
    return name == "<|end|>" && calls && (has("<|return|>") || has("<|flush|>"));
  }

  void read_special_ids(const GgufFile& file, const TokenIndex& index) {
    const size_t vocab_size = types.size();
    for (std::string_view key : kEndKeys) {
      if (const TokenId id = read_token_id(file, key, vocab_size); id >= 0) end_ids.push_back(id);
    }
    eos = read_token_id(file, kEndKeys[0], vocab_size);
    for (std::string_view name : kEndNames) {
      const TokenId id = index.find(name);
      // A name such as <|im_end|> is no word, so it ends a text whatever the file calls it; <EOT> might be one.
      if (id >= 0 && (is_special(id) || name.starts_with("<|")) && !is_end_of_part(index, name)) end_ids.push_back(id);
    }
    std::sort(end_ids.begin(), end_ids.end());
    bos = read_token_id(file, "tokenizer.ggml.bos_token_id", vocab_size);
    add_bos = file.get_bool("tokenizer.ggml.add_bos_token", false);
    if (add_bos && bos < 0)
      fail(file, "tokenizer.ggml.bos_token_id", "missing, but add_bos_token is true; convert the file again");
  }
};

namespace {

// One call of encode().
class Encoder {
 public:
  Encoder(const Bpe& bpe, const Pretokenizer& pretokenizer, size_t text_bytes)
      : bpe_(bpe), pretokenizer_(pretokenizer), cache_(std::bit_ceil(std::clamp<size_t>(text_bytes / 8, 1, 16384))) {
    ids_.reserve(text_bytes / 3);
  }

  void add_token(TokenId id) { ids_.push_back(id); }

  void add_text(std::string_view text) {
    if (text.empty()) return;
    std::string storage;
    std::string_view normal = pretokenizer_.normalises() ? to_nfc(text, storage) : text;
    // The cache keeps views of words, so what it views must stay.
    if (normal.data() != text.data()) normal = normalised_.emplace_back(std::move(storage));
    for (std::string_view word : pretokenizer_.split(normal)) add_word(word);
  }

  std::vector<TokenId> take() { return std::move(ids_); }

 private:
  // A word met before in this text: its tokens are copied from where they went then.
  struct Seen {
    std::string_view word;
    size_t begin = 0;  // in ids_
    size_t count = 0;
  };

  void add_word(std::string_view word) {
    // Direct-mapped: bounded in memory, and no choice of words makes it slow.
    Seen& seen = cache_[std::hash<std::string_view>()(word) & (cache_.size() - 1)];
    const size_t begin = ids_.size();
    if (seen.word == word) {
      ids_.resize(begin + seen.count);
      std::copy_n(ids_.begin() + static_cast<ptrdiff_t>(seen.begin), seen.count,
                  ids_.begin() + static_cast<ptrdiff_t>(begin));
      return;
    }
    bpe_.encode_word(word, workspace_, ids_);
    seen = {word, begin, ids_.size() - begin};
  }

  const Bpe& bpe_;
  const Pretokenizer& pretokenizer_;
  std::vector<Seen> cache_;
  std::deque<std::string> normalised_;
  Bpe::Workspace workspace_;
  std::vector<TokenId> ids_;
};

}  // namespace

// REQUIRES: the parts lie side by side in one text, which is valid UTF-8.
std::vector<TokenId> Tokenizer::Impl::encode(std::span<const Part> parts) const {
  const std::string_view first = parts.front().text, last = parts.back().text;
  const std::string_view whole(first.data(), static_cast<size_t>(last.data() + last.size() - first.data()));
  if (whole.size() > kMaxTextBytes)
    throw InputError(fmt::format("text: {} bytes; the limit is {}; split it", whole.size(), kMaxTextBytes));
  Encoder encoder(*bpe, *pretokenizer, whole.size());
  // Special tokens are cut out of the text as it came and the rest is normalised piece by piece, as the models' own
  // tokenizers do: a combining mark after a special token must not change the token's last character.
  size_t begin = 0;  // of the text that is not encoded yet
  for (const Part& part : parts) {
    const auto offset = static_cast<size_t>(part.text.data() - whole.data());
    const SpecialTokens& tokens = part.parse_special ? special_tokens : user_tokens;
    for (SpecialTokens::Match match = tokens.find(part.text, 0); match.id >= 0;
         match = tokens.find(part.text, match.begin + match.length)) {
      encoder.add_text(whole.substr(begin, offset + match.begin - begin));
      encoder.add_token(match.id);
      begin = offset + match.begin + match.length;
    }
  }
  encoder.add_text(whole.substr(begin));
  return encoder.take();
}

Tokenizer::Tokenizer() : impl_(std::make_unique<Impl>()) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

Tokenizer Tokenizer::load(const GgufFile& file) {
  const std::string_view model = file.get_string("tokenizer.ggml.model");
  if (model != "gpt2") {
    fail(file, "tokenizer.ggml.model",
         fmt::format("\"{}\" is not supported; only gpt2 (byte-level BPE) is", printable(model)));
  }
  Tokenizer tokenizer;
  Impl& impl = *tokenizer.impl_;
  const std::string_view pre = file.get_string("tokenizer.ggml.pre");
  impl.pretokenizer = Pretokenizer::find(pre);
  if (!impl.pretokenizer) {
    fail(file, "tokenizer.ggml.pre",
         fmt::format("\"{}\" is not supported; {} are", printable(pre), Pretokenizer::names()));
  }
  const std::vector<std::string_view>& texts = file.get_string_array(kTokensKey);
  if (texts.empty() || texts.size() > kMaxVocab) {
    fail(file, kTokensKey, fmt::format("{} tokens; 1 to {} allowed", texts.size(), kMaxVocab));
  }
  impl.types = read_types(file, texts.size());
  const TokenIndex index = index_tokens(file, texts, impl.types);
  impl.bpe = read_merges(file, index, impl.types);
  impl.store_pieces(texts);
  impl.read_special_ids(file, index);
  impl.chat_template = file.get_string("tokenizer.chat_template", "");
  return tokenizer;
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool parse_special) const {
  if (const size_t at = find_invalid_utf8(text); at != std::string_view::npos) {
    throw InputError(fmt::format("text: byte {} (0x{:02X}) is not valid UTF-8; convert the text to UTF-8", at,
                                 static_cast<uint8_t>(text[at])));
  }
  const Part part{text, parse_special};
  return impl_->encode({&part, 1});
}

std::vector<TokenId> Tokenizer::encode(std::span<const TextPart> parts) const {
  std::string whole;
  for (const TextPart& part : parts) whole += part.text;
  if (const size_t at = find_invalid_utf8(whole); at != std::string_view::npos)
    throw InputError(fmt::format("text: byte {} is not valid UTF-8; convert the text to UTF-8", at));
  std::vector<Part> views;
  size_t begin = 0;
  for (const TextPart& part : parts) {
    views.push_back({std::string_view(whole).substr(begin, part.text.size()), part.parse_special});
    begin += part.text.size();
  }
  return impl_->encode(views);
}

std::string_view Tokenizer::find_control_token(std::string_view text) const {
  const SpecialTokens& tokens = impl_->special_tokens;
  for (SpecialTokens::Match match = tokens.find(text, 0); match.id >= 0;
       match = tokens.find(text, match.begin + match.length)) {
    if (impl_->types[match.id] == kControl) return text.substr(match.begin, match.length);
  }
  return {};
}

std::string_view Tokenizer::piece(TokenId id, bool keep_special) const {
  FT_CHECK(impl_->has(id));
  if (impl_->types[id] == kControl && !keep_special) return {};
  return impl_->bytes_of(id);
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool keep_special) const {
  std::string out;
  for (TokenId id : ids) {
    if (!impl_->has(id))
      throw InputError(fmt::format("token id {}: outside the vocabulary, 0 to {} allowed", id, vocab_size() - 1));
    out += piece(id, keep_special);
  }
  return out;
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->types.size());
}
bool Tokenizer::is_special(TokenId id) const {
  return impl_->has(id) && impl_->is_special(id);
}
std::span<const TokenId> Tokenizer::special_ids() const {
  return impl_->special_ids;
}
bool Tokenizer::is_end_of_generation(TokenId id) const {
  return std::binary_search(impl_->end_ids.begin(), impl_->end_ids.end(), id);
}
std::string_view Tokenizer::chat_template() const {
  return impl_->chat_template;
}
bool Tokenizer::add_bos() const {
  return impl_->add_bos;
}
TokenId Tokenizer::bos() const {
  return impl_->bos;
}
void Tokenizer::begin_prompt(std::vector<TokenId>& ids) const {
  if (add_bos() && bos() >= 0 && (ids.empty() || ids.front() != bos())) ids.insert(ids.begin(), bos());
}
TokenId Tokenizer::eos() const {
  return impl_->eos;
}

}  // namespace foretoken
