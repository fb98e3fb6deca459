#include "engine/text/tokenizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <climits>
#include <ctime>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "engine/gguf/gguf.h"
#include "engine/gguf/gguf_writer.h"
#include "engine/text/nfc.h"
#include "engine/text/pretokenizer.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "tests/engine/gguf/gguf_bytes.h"
#include "tests/engine/gguf/temp_files.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

namespace foretoken {
namespace {

const GgufFile& demo_file() {
  static const GgufFile file = GgufFile::open(FORETOKEN_SOURCE_DIR "/models/foretoken-demo.gguf");
  return file;
}

const Tokenizer& demo_tokenizer() {
  static const Tokenizer tokenizer = Tokenizer::load(demo_file());
  return tokenizer;
}

std::string utf8(std::initializer_list<char32_t> code_points) {
  std::string out;
  for (char32_t c : code_points) append_utf8(c, out);
  return out;
}

// utf8proc's own whole-text form C, which the engine does not use because it is quadratic.
std::string reference_nfc(std::string_view text) {
  utf8proc_uint8_t* result = nullptr;
  const auto length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()), static_cast<utf8proc_ssize_t>(text.size()),
                   &result, static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  REQUIRE(length >= 0);
  std::string out(reinterpret_cast<char*>(result), static_cast<size_t>(length));
  std::free(result);
  return out;
}

// Random text of several scripts, rich in what tokenizers stumble over.
std::string random_text(std::mt19937& random, int num_chars) {
  const auto pick = [&](std::u32string_view from) { return from[random() % from.size()]; };
  const auto range = [&](char32_t first, char32_t last) { return first + random() % (last - first + 1); };
  const unsigned kinds = random();  // which kinds this text has
  std::string out;
  while (num_chars > 0) {
    const unsigned kind = random() % 12;
    if ((kinds >> kind & 1) == 0 && random() % 8 != 0) continue;
    --num_chars;
    char32_t c = 'a';
    switch (kind) {
      case 0:
        c = range(0x20, 0x7E);
        break;
      case 1:
        c = range('a', 'z');
        break;
      case 2:
        c = pick(U" \t\n\r\v\f\u00A0\u0085\u1680\u180E\u2003\u2028\u202F\u3000\u200B\u001C");
        break;
      case 3:
        c = pick(U"\u0301\u0323\u0338\u0345\u0308\u0307\u05B0\u093F\u3099");
        break;
      case 4:
        c = pick(U"'sStTrRvVeEmMlLdD\u017F\u2019");
        break;
      case 5:
        c = range(0x4E00, 0x9FFF);
        break;
      case 6:
        c = range(0xAC00, 0xD7A3);
        break;
      case 7:
        c = range(0x1100, 0x11FF);
        break;
      case 8:
        c = pick(U"0123456789\u00BD\u0663\u2167");
        break;
      case 9:
        c = range(0x80, 0x17F);
        break;
      case 10:
        c = range(0x0, 0xD7FF);
        break;
      default:
        c = range(0xE000, 0x10FFFF);
    }
    append_utf8(c, out);
  }
  return out;
}

// Merging as its definition says, for comparison: look at all pairs, join the best, again from the beginning.
class PlainBpe {
 public:
  explicit PlainBpe(const GgufFile& file) {
    const auto& tokens = file.get_string_array("tokenizer.ggml.tokens");
    for (size_t i = 0; i < tokens.size(); ++i) ids_[std::string(tokens[i])] = static_cast<TokenId>(i);
    for (std::string_view merge : file.get_string_array("tokenizer.ggml.merges")) {
      const int rank = static_cast<int>(ranks_.size());
      ranks_[std::string(merge)] = rank;
    }
  }
  std::vector<TokenId> encode_word(std::string_view word) const {
    std::vector<std::string> parts;
    for (char byte : word) {
      // GPT-2's characters: printable ones are themselves, the others follow from U+0100 on.
      const int value = static_cast<unsigned char>(byte);
      const auto itself = [](int b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; };
      int others_before = 0;
      for (int b = 0; b < value; ++b) others_before += itself(b) ? 0 : 1;
      parts.push_back(
          utf8({itself(value) ? static_cast<char32_t>(value) : static_cast<char32_t>(256 + others_before)}));
    }
    while (true) {
      int best = -1;
      int best_rank = INT_MAX;
      for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = ranks_.find(parts[i] + ' ' + parts[i + 1]);
        if (found != ranks_.end() && found->second < best_rank) best = static_cast<int>(i), best_rank = found->second;
      }
      if (best < 0) break;
      parts[best] += parts[best + 1];
      parts.erase(parts.begin() + best + 1);
    }
    std::vector<TokenId> out;
    for (const std::string& part : parts) out.push_back(ids_.at(part));
    return out;
  }

 private:
  std::map<std::string, TokenId> ids_;
  std::map<std::string, int> ranks_;
};

TEST_CASE("Texts become the ids that the tokenizers library gives", "[tokenizer]") {
  std::ifstream in(FORETOKEN_TEST_DATA "/tokenizer_vectors.json");
  const nlohmann::json vectors = nlohmann::json::parse(in);
  REQUIRE(vectors.size() == 41);
  for (const auto& vector : vectors) {
    const auto text = vector.at("text").get<std::string>();
    CAPTURE(printable(text));
    CHECK(demo_tokenizer().encode(text) == vector.at("ids").get<std::vector<TokenId>>());
  }
}

// The demonstration model's vocabulary under another pre-tokenizer, and without some of its tokens if asked.
Tokenizer demo_tokenizer_as(const std::string& pre, const std::function<bool(std::string_view)>& keep = {}) {
  const GgufFile& file = demo_file();
  GgufBytes out;
  std::vector<std::string> tokens, merges;
  for (std::string_view token : file.get_string_array("tokenizer.ggml.tokens"))
    tokens.push_back(!keep || keep(token) ? std::string(token) : fmt::format("gone{}", tokens.size()));
  for (std::string_view merge : file.get_string_array("tokenizer.ggml.merges")) merges.emplace_back(merge);
  std::vector<int32_t> types;
  const auto listed = file.find_int_array("tokenizer.ggml.token_type").value();
  for (int64_t type : listed) types.push_back(static_cast<int32_t>(type));
  out.key("tokenizer.ggml.model", "gpt2")
      .key("tokenizer.ggml.pre", pre)
      .key("tokenizer.ggml.tokens", 9, GgufBytes::array(tokens))
      .key("tokenizer.ggml.merges", 9, GgufBytes::array(merges))
      .key("tokenizer.ggml.token_type", 9, GgufBytes::array(5, types));
  const TempFolder folder;
  return Tokenizer::load(GgufFile::open(folder.write("v.gguf", out.bytes())));
}

TEST_CASE("Texts become the ids that the tokenizers library gives, smollm's way", "[tokenizer]") {
  std::ifstream in(FORETOKEN_TEST_DATA "/tokenizer_vectors_smollm.json");
  const nlohmann::json vectors = nlohmann::json::parse(in);
  const Tokenizer tokenizer = demo_tokenizer_as("smollm");
  REQUIRE(vectors.size() == 300);
  for (const auto& vector : vectors) {
    const auto text = vector.at("text").get<std::string>();
    CAPTURE(printable(text));
    CHECK(tokenizer.encode(text, /*parse_special=*/false) == vector.at("ids").get<std::vector<TokenId>>());
  }
}

TEST_CASE("Merges lead through pieces that are no tokens, and such a piece alone falls into its bytes", "[tokenizer]") {
  // A token's loss changes nothing in texts that merge beyond it, and elsewhere its own bytes alone.
  const GgufFile& file = demo_file();
  const PlainBpe plain(file);
  const auto gone = [](std::string_view token) {
    const bool may_be_byte = token.size() <= 2;
    return !may_be_byte && !token.starts_with("<|") && std::hash<std::string_view>()(token) % 3 == 0;
  };
  const Tokenizer tokenizer = demo_tokenizer_as("qwen2", [&](std::string_view token) { return !gone(token); });
  std::mt19937 random(9);
  for (int round = 0; round < (SANITIZED ? 100 : 1000); ++round) {
    const std::string text = reference_nfc(random_text(random, 40));
    std::vector<TokenId> expected;
    for (TokenId id : demo_tokenizer().encode(text, false)) {
      const std::string_view name = file.get_string_array("tokenizer.ggml.tokens")[id];
      if (!gone(name)) {
        expected.push_back(id);
      } else {
        for (char byte : demo_tokenizer().piece(id)) expected.push_back(plain.encode_word({&byte, 1})[0]);
      }
    }
    if (tokenizer.encode(text, false) != expected) FAIL(printable(text, 1000));
  }
}

TEST_CASE("The demonstration model's tokenizer knows its special tokens", "[tokenizer]") {
  const Tokenizer& tokenizer = demo_tokenizer();
  CHECK(tokenizer.vocab_size() == 4096);
  CHECK(std::vector<TokenId>(tokenizer.special_ids().begin(), tokenizer.special_ids().end()) ==
        std::vector<TokenId>{4093, 4094, 4095});
  CHECK(tokenizer.is_special(4094));
  CHECK_FALSE(tokenizer.is_special(0));
  CHECK_FALSE(tokenizer.is_special(-1));
  CHECK_FALSE(tokenizer.is_special(4096));
  CHECK(tokenizer.piece(4093, true) == "<|endoftext|>");
  CHECK(tokenizer.piece(4093).empty());
  CHECK(tokenizer.is_end_of_generation(4093));
  CHECK_FALSE(tokenizer.is_end_of_generation(4094));
  CHECK(tokenizer.is_end_of_generation(4095));
  CHECK_FALSE(tokenizer.is_end_of_generation(-1));
  CHECK_FALSE(tokenizer.add_bos());
  CHECK(tokenizer.bos() == 4093);
  CHECK(tokenizer.chat_template().empty());
}

TEST_CASE("Parts of a text are plain or not, and words go on over their ends", "[tokenizer]") {
  const Tokenizer& tokenizer = demo_tokenizer();
  const std::vector<TextPart> parts = {
      {"<|im_start|>us", true}, {"er<|im_end|>\n", false}, {"\n<|im_end|>", true}, {"", false}};
  const auto ids = tokenizer.encode(parts);
  CHECK(ids.front() == 4094);
  CHECK(ids.back() == 4095);
  CHECK(std::count(ids.begin(), ids.end(), 4095) == 1);
  std::vector<TokenId> expected = {4094};
  for (TokenId id : tokenizer.encode("user<|im_end|>\n\n", false)) expected.push_back(id);
  expected.push_back(4095);
  CHECK(ids == expected);
  CHECK(tokenizer.find_control_token("a <|im_end|> <|im_start|>") == "<|im_end|>");
  CHECK(tokenizer.find_control_token("a <|im_end").empty());
}

TEST_CASE("Special tokens are cut out whole, the leftmost and longest, unless the text is plain", "[tokenizer]") {
  const Tokenizer& tokenizer = demo_tokenizer();
  const std::string text = "<|im_start|>user\nHi<|im_end|><|endoftext|";
  const auto ids = tokenizer.encode(text);
  CHECK(ids.front() == 4094);
  CHECK(std::count(ids.begin(), ids.end(), 4095) == 1);
  CHECK(std::count(ids.begin(), ids.end(), 4093) == 0);
  CHECK(tokenizer.decode(ids, true) == text);
  CHECK(tokenizer.decode(ids) == "user\nHi<|endoftext|");
  for (TokenId id : tokenizer.encode(text, false)) CHECK_FALSE(tokenizer.is_special(id));
  CHECK(tokenizer.decode(tokenizer.encode(text, false)) == text);
  // The text around a special token is normalised by itself: a mark behind it does not change its last character.
  const std::string marked = "<|im_end|>" + utf8({0x338});
  CHECK(tokenizer.encode(marked).front() == 4095);
  CHECK(tokenizer.decode(tokenizer.encode(marked), true) == marked);
}

TEST_CASE("Text in form C comes back from its tokens, other text in form C", "[tokenizer]") {
  std::mt19937 random(1);
  for (int round = 0; round < (SANITIZED ? 500 : 5000); ++round) {
    const std::string text = random_text(random, 1 + static_cast<int>(random() % 60));
    const std::string normal = reference_nfc(text);
    const auto ids = demo_tokenizer().encode(text);
    if (demo_tokenizer().decode(ids) != normal) FAIL(printable(text, 1000));
    if (demo_tokenizer().encode(normal) != ids) FAIL(printable(text, 1000));
  }
}

TEST_CASE("Merging with a heap equals merging by definition", "[tokenizer]") {
  const PlainBpe plain(demo_file());
  std::mt19937 random(2);
  std::vector<std::string> words = {"aaaaaaaaaaaaaaaaaaaaaaaa", "                                                  ",
                                    "selfselfselfself",         "----------------------------------------",
                                    "ininininininin",           "returnreturnretur"};
  for (int round = 0; round < (SANITIZED ? 200 : 2000); ++round) {
    std::string word;
    const auto& ids = demo_file().get_string_array("tokenizer.ggml.tokens");
    while (word.size() < 1 + random() % 40) {
      const std::string_view token = demo_tokenizer().piece(static_cast<TokenId>(random() % (ids.size() - 3)));
      word += token.substr(0, 1 + random() % token.size());
    }
    words.push_back(word);
  }
  const auto pretokenizer = Pretokenizer::find("qwen2");
  for (const std::string& text : words) {
    if (find_invalid_utf8(text) != std::string_view::npos) continue;
    const std::string normal = reference_nfc(text);
    std::vector<TokenId> expected;
    for (std::string_view word : pretokenizer->split(normal)) {
      const auto ids = plain.encode_word(word);
      expected.insert(expected.end(), ids.begin(), ids.end());
    }
    if (demo_tokenizer().encode(text, false) != expected) FAIL(printable(text, 1000));
  }
}

TEST_CASE("Words are split as the models' patterns say", "[tokenizer]") {
  using Words = std::vector<std::string_view>;
  struct Case {
    std::string text;
    Words qwen2;
    Words qwen35;
  };
  const std::string mark = utf8({0x301});         // combining acute
  const std::string vowel = utf8({0x180E});       // Mongolian vowel separator: a format character, no white space
  const std::string long_s = utf8({0x17F});       // folds to s
  const std::string a_mark = "a" + mark + "b c";  // only for the splitter: form C would join the first two
  const std::string dot_mark = ".." + mark + ".";
  const std::string space_mark = " " + mark + "x";
  const std::string vowels = "a" + vowel + vowel + " b";
  const std::string elided = "it'" + long_s + "s";
  const std::string ideographic = "a" + utf8({0x3000, 0x3000}) + "b";
  const auto same = [](const std::string& text, const Words& words) { return Case{text, words, words}; };
  const Case cases[] = {
      same("", {}),
      same("Hello world", {"Hello", " world"}),
      same("I'll don't THEY'RE", {"I", "'ll", " don", "'t", " THEY", "'RE"}),
      same("x=12+y", {"x", "=", "1", "2", "+y"}),
      same("a  b   \n\n  c \t", {"a", " ", " b", "   \n\n", " ", " c", " \t"}),
      same("f(x);\r\n\r\ny", {"f", "(x", ");\r\n\r\n", "y"}),
      same("\tif\n", {"\tif", "\n"}),
      same(" 1 ?!\n", {" ", "1", " ?!\n"}),
      same(elided, {"it", std::string_view(elided).substr(2, 3), "s"}),
      same(vowels, {"a", std::string_view(vowels).substr(1, 6), " b"}),
      same(ideographic, {"a", std::string_view(ideographic).substr(1, 3), std::string_view(ideographic).substr(4)}),
      {a_mark, {"a", std::string_view(a_mark).substr(1, 3), " c"}, {std::string_view(a_mark).substr(0, 4), " c"}},
      {dot_mark, {dot_mark}, {"..", std::string_view(dot_mark).substr(2, 2), "."}},
      {space_mark, {std::string_view(space_mark).substr(0, 3), "x"}, {space_mark}},
  };
  for (bool use_jit : {true, false}) {
    const auto qwen2 = Pretokenizer::find("qwen2", use_jit);
    const auto qwen35 = Pretokenizer::find("qwen35", use_jit);
    REQUIRE((qwen2 && qwen35));
    for (const Case& c : cases) {
      CAPTURE(printable(c.text), use_jit);
      CHECK(qwen2->split(c.text) == c.qwen2);
      CHECK(qwen35->split(c.text) == c.qwen35);
    }
  }
  for (const char* name : {"deepseek-r1-qwen", "kormo", "f2llmv2"}) {
    const auto alias = Pretokenizer::find(name);
    REQUIRE(alias);
    CHECK(alias->normalises());
    for (const Case& c : cases) CHECK(alias->split(c.text) == c.qwen2);
  }
  CHECK_FALSE(Pretokenizer::find("qwen"));
  CHECK_FALSE(Pretokenizer::find(""));
}

TEST_CASE("PCRE2's interpreter splits as its compiled code does, long runs included", "[tokenizer]") {
  std::mt19937 random(3);
  std::vector<std::string> texts = {std::string(300000, ' ') + "x", std::string(300000, '\n') + " x",
                                    std::string(300000, 'a'), std::string(300000, '-')};
  for (int round = 0; round < (SANITIZED ? 50 : 500); ++round) texts.push_back(random_text(random, 100));
  for (const char* name : {"qwen2", "qwen35", "smollm"}) {
    const auto compiled = Pretokenizer::find(name, true);
    const auto interpreted = Pretokenizer::find(name, false);
    for (const std::string& text : texts) {
      if (compiled->split(text) != interpreted->split(text)) FAIL(name << ": " << printable(text, 1000));
    }
  }
}

TEST_CASE("Form C is utf8proc's, and the characters that skip it are safe", "[tokenizer][nfc]") {
  std::string storage;
  CHECK(to_nfc(utf8({'e', 0x301}), storage) == utf8({0xE9}));
  CHECK(to_nfc(utf8({0x1100, 0x1161, 0x11A8}), storage) == utf8({0xAC01}));
  CHECK(to_nfc(utf8({0xAC00, 0x11A8}), storage) == utf8({0xAC01}));
  CHECK(to_nfc(utf8({'a', 0x307, 0x323}), storage) == utf8({0x1EA1, 0x307}));
  CHECK(to_nfc(utf8({0x212B}), storage) == utf8({0xC5}));
  CHECK(to_nfc(utf8({0x304B, 0x3099}), storage) == utf8({0x304C}));
  CHECK(to_nfc(utf8({0x958}), storage) == utf8({0x915, 0x93C}));  // decomposes for good
  const std::string plain = "plain \xC3\xA9 \xE6\x97\xA5";
  CHECK(to_nfc(plain, storage).data() == plain.data());  // not copied
  std::mt19937 random(4);
  for (int round = 0; round < (SANITIZED ? 1000 : 20000); ++round) {
    const std::string text = random_text(random, 1 + static_cast<int>(random() % 20));
    if (to_nfc(text, storage) != reference_nfc(text)) FAIL(printable(text, 1000));
  }
  // An inert character stays alone, behind a letter, behind a starter of Hangul, and has no class that sorting could
  // move.
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (!is_nfc_inert(c)) continue;
    const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    bool safe = property->combining_class == 0;
    for (char32_t before : {U'a', U'<', U'\u1100', U'\uAC00', U'\u0915', U'\u304B'}) {
      const std::string text = utf8({before, c, before});
      safe = safe && reference_nfc(text) == text;
    }
    if (!safe) FAIL("U+" << std::hex << static_cast<uint32_t>(c));
  }
}

TEST_CASE("No text of a megabyte takes long", "[tokenizer]") {
  // Processor time, so that other programs do not make this fail; 0.35 s is the longest measured.
  constexpr size_t kBytes = SANITIZED ? size_t{1} << 16 : size_t{1} << 20;
  std::mt19937 random(6);
  const auto fill = [&](const auto& append) {
    std::string out;
    while (out.size() < kBytes) append(out);
    return out;
  };
  const std::map<std::string, std::string> texts = {
      {"one letter", std::string(kBytes, 'a')},
      {"spaces", std::string(kBytes, ' ')},
      {"spaces before a letter", std::string(kBytes, ' ') + "x"},
      {"line ends", std::string(kBytes, '\n')},
      {"hyphens", std::string(kBytes, '-')},
      {"beginnings of special tokens", fill([](std::string& out) { out += "<|im_en"; })},
      {"special tokens", fill([](std::string& out) { out += "<|im_end|>"; })},
      {"random letters", fill([&](std::string& out) { out += static_cast<char>('a' + random() % 26); })},
      {"random bytes as UTF-8", fill([&](std::string& out) { append_utf8(random() % 256, out); })},
      {"random characters", fill([&](std::string& out) { append_utf8(0xE000 + random() % 0x100000, out); })},
      {"marks in falling classes",
       "a" + fill([&](std::string& out) { append_utf8(out.size() < kBytes / 2 ? 0x301 : 0x323, out); })},
      {"marks in turn", fill([&](std::string& out) { append_utf8(0x301, out), append_utf8(0x323, out); })},
  };
  for (const auto& [name, text] : texts) {
    const std::clock_t begin = std::clock();
    const auto ids = demo_tokenizer().encode(text);
    const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    CAPTURE(name, seconds);
    CHECK(seconds < 1.0);
    CHECK_FALSE(ids.empty());
  }
}

TEST_CASE("Text that is not UTF-8 is refused with the byte's place", "[tokenizer]") {
  CHECK_THROWS_AS(demo_tokenizer().encode("ab\xC3("), InputError);
  CHECK_THROWS_WITH(demo_tokenizer().encode("ab\xC3("),
                    "text: byte 2 (0xC3) is not valid UTF-8; convert the text to UTF-8");
  CHECK_THROWS_WITH(demo_tokenizer().encode("12345678\xED\xA0\x80", false), Catch::StartsWith("text: byte 8 (0xED)"));
  const std::vector<TokenId> outside[] = {{-1}, {4096}, {5, INT32_MAX}};
  for (const auto& ids : outside) CHECK_THROWS_AS(demo_tokenizer().decode(ids), InputError);
  CHECK_THROWS_WITH(demo_tokenizer().decode(outside[1]), "token id 4096: outside the vocabulary, 0 to 4095 allowed");
}

TEST_CASE("One tokenizer serves several threads", "[tokenizer]") {
  std::mt19937 random(8);
  std::vector<std::string> texts;
  for (int i = 0; i < 50; ++i) texts.push_back(random_text(random, 200));
  std::vector<std::vector<TokenId>> expected;
  for (const std::string& text : texts) expected.push_back(demo_tokenizer().encode(text));
  std::atomic<int> wrong = 0;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (size_t i = 0; i < texts.size(); ++i) {
        if (demo_tokenizer().encode(texts[i]) != expected[i]) ++wrong;
      }
    });
  }
  threads.clear();
  CHECK(wrong == 0);
}

// A vocabulary of the 256 bytes, a few words and special tokens, that a test can spoil.
struct SmallVocabulary {
  std::string model = "gpt2";
  std::string pre = "qwen2";
  std::vector<std::string> tokens = byte_tokens();
  std::vector<int32_t> types = std::vector<int32_t>(256, 1);
  std::vector<std::string> merges = {"a b", "ab c"};
  bool with_types = true;
  std::map<std::string, int64_t> ids = {{"eos", 259}};
  std::optional<bool> add_bos;

  SmallVocabulary() {
    add("ab")
        .add("abc")
        .add("<|im_end|>", 3)
        .add("<eos>", 3)
        .add("<think>", 4)
        .add("<think>>", 4)
        .add("<|endoftext|>", 3);
  }
  SmallVocabulary& add(const std::string& token, int32_t type = 1) {
    tokens.push_back(token);
    types.push_back(type);
    return *this;
  }
  static std::vector<std::string> byte_tokens() {
    std::vector<std::string> out;
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      out.push_back(utf8({static_cast<char32_t>(itself ? byte : next++)}));
    }
    return out;
  }
  std::string bytes() const {
    GgufBytes file;
    file.key("tokenizer.ggml.model", model)
        .key("tokenizer.ggml.pre", pre)
        .key("tokenizer.ggml.tokens", 9, GgufBytes::array(tokens))
        .key("tokenizer.ggml.merges", 9, GgufBytes::array(merges));
    if (with_types) file.key("tokenizer.ggml.token_type", 9, GgufBytes::array(5, types));
    for (const auto& [name, id] : ids) file.key("tokenizer.ggml." + name + "_token_id", 11, GgufBytes::number(id));
    if (add_bos) file.key("tokenizer.ggml.add_bos_token", 7, GgufBytes::number(uint8_t{*add_bos}));
    return file.bytes();
  }
};

Tokenizer load(const SmallVocabulary& vocabulary) {
  const TempFolder folder;
  return Tokenizer::load(GgufFile::open(folder.write("v.gguf", vocabulary.bytes())));
}

TEST_CASE("A small vocabulary works, outlives its file, and has its kinds of tokens", "[tokenizer]") {
  SmallVocabulary vocabulary;
  vocabulary.add("", 5).add("", 5).add("\xFF\xFE", 5).add("ab", 5).add(utf8({0x65E5}), 1).add("a b", 1);
  vocabulary.ids["eot"] = 260;
  vocabulary.ids["bos"] = 7;
  vocabulary.add_bos = true;
  const Tokenizer tokenizer = load(vocabulary);
  CHECK(tokenizer.vocab_size() == 269);
  CHECK(tokenizer.encode("abcab") == std::vector<TokenId>{257, 256});
  CHECK(tokenizer.encode("a<think>>b<think>") == std::vector<TokenId>{'a', 261, 'b', 260});
  CHECK(tokenizer.encode("a<eos>b") == std::vector<TokenId>{'a', 259, 'b'});
  // User-defined tokens are part of the text, control tokens are not, unused ones are nothing.
  CHECK(tokenizer.decode(std::vector<TokenId>{'a', 260, 259, 263, 265, 266, 'b'}) == "a<think>b");
  CHECK(tokenizer.decode(std::vector<TokenId>{259, 260}, true) == "<eos><think>");
  // A token with characters that spell no byte stands for its own text.
  CHECK(tokenizer.piece(267) == utf8({0x65E5}));
  CHECK(tokenizer.piece(268) == "a b");
  // User-defined tokens are part of plain text, control tokens are not.
  CHECK(tokenizer.encode("a<think>>b<think>", false) == tokenizer.encode("a<think>>b<think>", true));
  CHECK(tokenizer.encode("a<eos>b", false) != tokenizer.encode("a<eos>b", true));
  for (TokenId id : {258, 259, 260, 262}) CHECK(tokenizer.is_end_of_generation(id));
  for (TokenId id : {0, 256, 261, 263}) CHECK_FALSE(tokenizer.is_end_of_generation(id));
  CHECK(tokenizer.add_bos());
  CHECK(tokenizer.bos() == 7);
}

TEST_CASE("A generation ends at every token whose name or key says so", "[tokenizer]") {
  const auto ends = [](const std::vector<std::pair<std::string, int>>& tokens, const std::string& key = "") {
    SmallVocabulary vocabulary;
    const auto first = static_cast<TokenId>(vocabulary.tokens.size());
    for (const auto& [name, type] : tokens) vocabulary.add(name, type);
    if (!key.empty()) vocabulary.ids[key] = first;
    return load(vocabulary).is_end_of_generation(first);
  };
  for (const char* name : {"<|fim_pad|>",
                           "<|repo_name|>",
                           "<|file_sep|>",
                           "<fim-pad>",
                           "<fim_pad>",
                           "<PAD>",
                           "[PAD]",
                           "<|fim_repo|>",
                           "<fim-repo>",
                           "<REPO>",
                           "<reponame>",
                           "<|eot_id|>",
                           "<|eom_id|>",
                           "<|end|>",
                           "<|return|>",
                           "<|call|>",
                           "<end_of_turn>",
                           "</s>",
                           "<|end_of_text|>",
                           "[EOS]",
                           "<EOT>",
                           "<turn|>",
                           "<｜end▁of▁sentence｜>"}) {
    INFO(name);
    CHECK(ends({{name, 3}}));
    CHECK(ends({{name, 4}}));
    CHECK(ends({{name, 1}}) == std::string(name).starts_with("<|"));
  }
  for (const char* name : {"<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|tool|>", "<tool>"}) {
    INFO(name);
    CHECK_FALSE(ends({{name, 3}}));
  }
  for (const char* key : {"eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"}) CHECK(ends({{"<x>", 3}}, key));
  for (const char* key : {"bos", "fim_pre", "fim_mid", "fim_suf"}) CHECK_FALSE(ends({{"<x>", 3}}, key));
  // Where a call or a return ends the answer, <|end|> ends a part of it.
  CHECK_FALSE(ends({{"<|end|>", 3}, {"<|return|>", 3}, {"<|call|>", 3}}));
  CHECK_FALSE(ends({{"</s>", 3}, {"<|tool_response>", 3}}));
}

TEST_CASE("Control characters that a vocabulary lacks are left out of a text", "[tokenizer]") {
  SmallVocabulary vocabulary;
  vocabulary.pre = "smollm";
  for (int byte : {0x04, 0x1D, 0xF1, 0xF2}) vocabulary.tokens[byte] = fmt::format("filler{}", byte);
  const Tokenizer tokenizer = load(vocabulary);
  CHECK(tokenizer.encode("\x04").empty());
  CHECK(tokenizer.encode("a\x04"
                         "b\x1D") == std::vector<TokenId>{'a', 'b'});
}

TEST_CASE("A merge may name pieces that the vocabulary lacks", "[tokenizer]") {
  SmallVocabulary vocabulary;
  vocabulary.merges = {"b c", "bc d", "a bcd", "z z"};
  vocabulary.add("abcd");
  const auto abcd = static_cast<TokenId>(vocabulary.tokens.size() - 1);
  const Tokenizer tokenizer = load(vocabulary);
  CHECK(tokenizer.encode("abcd") == std::vector<TokenId>{abcd});
  CHECK(tokenizer.encode("bcd") == std::vector<TokenId>{'b', 'c', 'd'});
  CHECK(tokenizer.encode("zzz") == std::vector<TokenId>{'z', 'z', 'z'});
}

TEST_CASE("A vocabulary may lack token types, an end token and the bytes that UTF-8 does not use", "[tokenizer]") {
  SmallVocabulary vocabulary;
  vocabulary.with_types = false;
  vocabulary.ids.clear();
  for (int byte : {0xC0, 0xC1, 0xF5, 0xFF}) vocabulary.tokens[byte] = fmt::format("filler{}", byte);
  const Tokenizer tokenizer = load(vocabulary);
  CHECK(tokenizer.special_ids().empty());
  CHECK(tokenizer.encode("abc") == std::vector<TokenId>{257});
  CHECK_FALSE(tokenizer.is_end_of_generation(259));
  CHECK(tokenizer.bos() == -1);
}

TEST_CASE("A vocabulary that is wrong is refused with one line that says what is wrong", "[tokenizer][bad-file]") {
  const auto refused = [](const std::string& what, const auto& change) {
    SmallVocabulary vocabulary;
    change(vocabulary);
    const TempFolder folder;
    const std::string path = folder.write("v.gguf", vocabulary.bytes());
    const GgufFile file = GgufFile::open(path);
    std::string message = "no error";
    try {
      (void)Tokenizer::load(file);
    } catch (const InputError& error) {
      message = error.what();
    }
    INFO(message);
    CHECK(message.starts_with(path + ": metadata key tokenizer.ggml."));
    CHECK(message.find(what) != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  };
  using V = SmallVocabulary;
  refused("model: \"llama\\x0A\" is not supported; only gpt2", [](V& v) { v.model = "llama\n"; });
  refused("pre: \"gpt-4o\" is not supported; qwen2, qwen35, smollm, deepseek-r1-qwen, kormo, f2llmv2 are",
          [](V& v) { v.pre = "gpt-4o"; });
  refused("tokens: 0 tokens; 1 to 16777216 allowed", [](V& v) { v.tokens.clear(); });
  refused("token_type: 264 entries for 263 tokens", [](V& v) { v.types.push_back(1); });
  refused("token_type: 0 entries for 263 tokens", [](V& v) { v.types.clear(); });
  refused("token_type: entry 5 is 7; 0 to 6 allowed", [](V& v) { v.types[5] = 7; });
  refused("token_type: entry 5 is -1; 0 to 6 allowed", [](V& v) { v.types[5] = -1; });
  refused("tokens: token 263 is empty", [](V& v) { v.add(""); });
  refused("tokens: token 263 is empty", [](V& v) { v.add("", 3); });
  refused("tokens: token 263 is not UTF-8 at byte 1: \"a\\xFF\"", [](V& v) { v.add("a\xFF"); });
  refused("tokens: tokens 256 and 263 are the same, \"ab\"", [](V& v) { v.add("ab"); });
  refused("tokens: tokens 259 and 263 are the same, \"<eos>\"", [](V& v) { v.add("<eos>", 4); });
  refused("tokens: special token 263 has 1025 bytes; the limit is 1024",
          [](V& v) { v.add(std::string(1025, 's'), 3); });
  refused("tokens: no token for byte 0x41 (\"A\")", [](V& v) { v.tokens['A'] = "other"; });
  refused("tokens: no token for byte 0x0A", [](V& v) { v.types['\n'] = 5; });
  refused("tokens: no token for byte 0x20", [](V& v) { v.types[' '] = 3; });
  refused("merges: merge 2, \"<eos >\": \"<eos>\" is a control token", [](V& v) { v.merges.push_back("<eos >"); });
  refused("merges: merge 2, \"<eos> a\": \"<eos>\" is a control token", [](V& v) { v.merges.push_back("<eos> a"); });
  refused("merges: merge 2, \"a \\xFF\": is not UTF-8", [](V& v) { v.merges.push_back("a \xFF"); });
  refused("merges: merge 2, \"ab\": two tokens with one space", [](V& v) { v.merges.push_back("ab"); });
  refused("merges: merge 2, \"a b c\": two tokens with one space", [](V& v) { v.merges.push_back("a b c"); });
  refused("merges: merge 2, \"\": two tokens with one space", [](V& v) { v.merges.push_back(""); });
  refused("merges: merge 2, \" a\": two tokens with one space", [](V& v) { v.merges.push_back(" a"); });
  refused("merges: merge 2, \"a b\": is there twice", [](V& v) { v.merges.push_back("a b"); });
  refused("eos_token_id: the integer 263; an integer from 0 to 262 is needed", [](V& v) { v.ids["eos"] = 263; });
  refused("eos_token_id: the integer -1; an integer", [](V& v) { v.ids["eos"] = -1; });
  refused("eot_token_id: the integer 999; an integer", [](V& v) { v.ids["eot"] = 999; });
  refused("bos_token_id: the integer 4294967295; an integer", [](V& v) { v.ids["bos"] = 4294967295; });
  refused("bos_token_id: missing, but add_bos_token is true", [](V& v) { v.add_bos = true; });
}

TEST_CASE("A file without a vocabulary says which key is missing", "[tokenizer][bad-file]") {
  const TempFolder folder;
  GgufBytes file;
  const auto message = [&] {
    try {
      (void)Tokenizer::load(GgufFile::open(folder.write("v.gguf", file.bytes())));
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  CHECK(message().find("v.gguf: metadata key tokenizer.ggml.model: missing") != std::string::npos);
  file.key("tokenizer.ggml.model", "gpt2");
  CHECK(message().find("metadata key tokenizer.ggml.pre: missing") != std::string::npos);
  file.key("tokenizer.ggml.pre", "qwen2");
  CHECK(message().find("metadata key tokenizer.ggml.tokens: missing") != std::string::npos);
  file.key("tokenizer.ggml.tokens", 9, GgufBytes::array(SmallVocabulary::byte_tokens()));
  CHECK(message().find("metadata key tokenizer.ggml.merges: missing") != std::string::npos);
  file.key("tokenizer.ggml.merges", 9, GgufBytes::array({}));
  CHECK(message() == "no error");
}

TEST_CASE("A vocabulary of 248,320 tokens loads in about a second", "[tokenizer]") {
  SmallVocabulary vocabulary;
  vocabulary.merges.clear();
  // Words of two to four letters by merging shorter ones with a letter, as many as fit.
  const size_t num_merged = SANITIZED ? 20000 : 247000;
  std::vector<std::string> words;
  for (char c = 'a'; c <= 'z'; ++c) words.push_back(std::string(1, c));
  // "ab" and "abc" come again.
  vocabulary.tokens.erase(vocabulary.tokens.begin() + 256, vocabulary.tokens.begin() + 258);
  vocabulary.types.erase(vocabulary.types.begin() + 256, vocabulary.types.begin() + 258);
  vocabulary.ids["eos"] = 257;
  for (size_t i = 0; words.size() < num_merged; ++i) {
    for (char c = 'a'; c <= 'z'; ++c) {
      vocabulary.merges.push_back(fmt::format("{} {}", words[i], c));
      words.push_back(words[i] + c);
      vocabulary.add(words.back());
    }
  }
  while (!SANITIZED && vocabulary.tokens.size() < 248320)
    vocabulary.add(fmt::format("filler{}", vocabulary.tokens.size()));
  const TempFolder folder;
  const GgufFile file = GgufFile::open(folder.write("v.gguf", vocabulary.bytes()));
  const std::clock_t begin = std::clock();
  const Tokenizer tokenizer = Tokenizer::load(file);
  const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
  CHECK(seconds < 1.0);  // 0.27 s measured
  CHECK(tokenizer.encode("abc").size() == 1);
}

}  // namespace
}  // namespace foretoken
