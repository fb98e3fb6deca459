#include "engine/text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <string>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

// The patterns are those of the models' own tokenizers, whose \s is Unicode's White_Space. PCRE2's \s has U+180E
// besides, so the set is spelled out: {S} stands for its members within a class.
constexpr std::string_view kWhiteSpace =
    R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

struct Named {
  std::string_view name;
  std::string_view pattern;
  bool normalises = true;
};

constexpr Named kPatterns[] = {
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^{S}\p{L}\p{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+)"},
    {"qwen35",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^{S}\p{L}\p{M}\p{N}]+[\r\n]*|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+)"},
    // Numbers are cut out digit by digit first and the rest is split piece by piece, so a run of spaces ends before a
    // digit as it does before the end of the text.
    {"smollm", R"('s|'t|'re|'ve|'m|'ll|'d|\p{N}| ?\p{L}+| ?[^{S}\p{L}\p{N}]+|[{S}]+(?![^{S}\p{N}])|[{S}]+)",
     /*normalises=*/false},
};

// Names that llama.cpp's converter gives to vocabularies of other models which are split in the same way.
struct Alias {
  std::string_view name;
  std::string_view of;
};
constexpr Alias kAliases[] = {{"deepseek-r1-qwen", "qwen2"}, {"kormo", "qwen2"}, {"f2llmv2", "qwen2"}};

std::string fill_in_white_space(std::string_view pattern) {
  std::string out(pattern);
  for (size_t at; (at = out.find("{S}")) != std::string::npos;) out.replace(at, 3, kWhiteSpace);
  return out;
}

std::string error_text(int code) {
  char buffer[256];
  const int length = pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof buffer);
  return length < 0 ? fmt::format("error {}", code) : std::string(buffer, static_cast<size_t>(length));
}

struct Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};

}  // namespace

struct Pretokenizer::Pattern {
  std::unique_ptr<pcre2_code, Deleter> code;
  std::unique_ptr<pcre2_match_context, Deleter> context;
  bool normalises = true;
  uint32_t match_options = PCRE2_NO_UTF_CHECK;  // the caller has checked
};

Pretokenizer::Pretokenizer(std::unique_ptr<const Pattern> pattern) : pattern_(std::move(pattern)) {}
Pretokenizer::~Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;

bool Pretokenizer::normalises() const {
  return pattern_->normalises;
}

std::string Pretokenizer::names() {
  std::vector<std::string_view> names;
  for (const Named& named : kPatterns) names.push_back(named.name);
  for (const Alias& alias : kAliases) names.push_back(alias.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

std::optional<Pretokenizer> Pretokenizer::find(std::string_view name, bool use_jit) {
  for (const Alias& alias : kAliases) {
    if (alias.name == name) return find(alias.of, use_jit);
  }
  for (const Named& named : kPatterns) {
    if (named.name != name) continue;
    const std::string source = fill_in_white_space(named.pattern);
    auto pattern = std::make_unique<Pattern>();
    pattern->normalises = named.normalises;
    int error = 0;
    PCRE2_SIZE error_offset = 0;
    // Anchored: a match begins exactly where the last one ended. It must be a compile option, PCRE2 would not use its
    // JIT otherwise.
    pattern->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(),
                                      PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &error_offset, nullptr));
    if (!pattern->code) {
      throw InputError(fmt::format(
          "pre-tokenizer {}: PCRE2 refuses its pattern at character {}: {}; install a PCRE2 with Unicode support", name,
          error_offset, error_text(error)));
    }
    pattern->context.reset(pcre2_match_context_create(nullptr));
    if (!pattern->context) throw InputError("pre-tokenizer: out of memory; free some");
    // The default limit of ten million steps would stop the interpreter within a long run of spaces. Every alternative
    // walks a run at most twice, so the steps are linear in the text and need no limit.
    pcre2_set_match_limit(pattern->context.get(), UINT32_MAX);
    // Where generated code is forbidden this fails, and PCRE2 then interprets: slower, same words.
    if (use_jit) (void)pcre2_jit_compile(pattern->code.get(), PCRE2_JIT_COMPLETE);
    if (!use_jit) pattern->match_options |= PCRE2_NO_JIT;
    return Pretokenizer(std::move(pattern));
  }
  return std::nullopt;
}

std::vector<std::string_view> Pretokenizer::split(std::string_view text) const {
  const std::unique_ptr<pcre2_match_data, Deleter> match(pcre2_match_data_create(1, nullptr));
  if (!match) throw InputError("pre-tokenizer: out of memory; free some");
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
  std::vector<std::string_view> words;
  words.reserve(text.size() / 4);
  for (size_t pos = 0; pos < text.size(); pos = range[1]) {
    const auto run = [&](uint32_t options) {
      return pcre2_match(pattern_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), pos, options,
                         match.get(), pattern_->context.get());
    };
    int result = run(pattern_->match_options);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = run(pattern_->match_options | PCRE2_NO_JIT);
    if (result < 0 && result != PCRE2_ERROR_NOMATCH) {
      throw InputError(fmt::format(
          "pre-tokenizer: PCRE2 gives up at byte {} of a text of {} bytes: {}; shorten the text or free some memory",
          pos, text.size(), error_text(result)));
    }
    // The alternatives cover every character between them.
    FT_CHECK(result > 0 && range[0] == pos && range[1] > pos);
    words.push_back(text.substr(pos, range[1] - pos));
  }
  return words;
}

}  // namespace foretoken
