#include "engine/text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

namespace {

bool is_inert_text(std::string_view text) {
  // A lead byte below 0xCC begins a character below U+0300, and continuation bytes are below 0xCC too.
  const auto is_low = [](char c) { return static_cast<unsigned char>(c) < 0xCC; };
  while (true) {
    const auto high = std::find_if_not(text.begin(), text.end(), is_low);
    if (high == text.end()) return true;
    text.remove_prefix(static_cast<size_t>(high - text.begin()));
    const Utf8Char c = decode_utf8(text);
    if (!is_nfc_inert(c.code_point)) return false;
    text.remove_prefix(c.length);
  }
}

// Sorts each run of combining marks by class. utf8proc_decompose() does this by exchanging neighbours: quadratic in the
// length of a run, hours for a megabyte of marks, so it is not used.
void sort_marks(std::vector<utf8proc_int32_t>& code_points) {
  const auto mark_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  auto end = code_points.begin();
  while (true) {
    const auto begin = std::find_if(end, code_points.end(), [&](utf8proc_int32_t c) { return mark_class(c) != 0; });
    if (begin == code_points.end()) return;
    end = std::find_if(begin, code_points.end(), [&](utf8proc_int32_t c) { return mark_class(c) == 0; });
    std::stable_sort(begin, end, [&](utf8proc_int32_t a, utf8proc_int32_t b) { return mark_class(a) < mark_class(b); });
  }
}

}  // namespace

bool is_nfc_inert(char32_t c) {
  return c < 0x300 ||                     // Latin
         (c >= 0x400 && c <= 0x482) ||    // Cyrillic; the marks U+0483 to U+0487 are left out
         (c >= 0x2010 && c <= 0x2027) ||  // dashes, quotation marks
         (c >= 0x2500 && c <= 0x27BF) ||  // box drawing, symbols
         (c >= 0x3000 && c <= 0x3029) ||  // CJK punctuation
         (c >= 0x3041 && c <= 0x3096) ||  // hiragana; the voicing marks U+3099 and U+309A are left out
         (c >= 0x309D && c <= 0x30FF) ||  // katakana
         (c >= 0x4E00 && c <= 0x9FFF) ||  // CJK ideographs
         (c >= 0xAC00 && c <= 0xD7A3) ||  // Hangul syllables; the jamo that join them are left out
         (c >= 0xFF00 && c <= 0xFFEF) ||  // full-width forms
         (c >= 0x1F300 && c <= 0x1FAFF);  // emoji
}

std::string_view to_nfc(std::string_view text, std::string& storage) {
  if (is_inert_text(text)) return text;
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> code_points;
  code_points.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char c = decode_utf8(rest);
    rest.remove_prefix(c.length);
    std::array<utf8proc_int32_t, 32> parts;  // the longest canonical decomposition has 4
    int boundary_class = 0;
    const auto num_parts = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.code_point), parts.data(),
                                                   parts.size(), kOptions, &boundary_class);
    FT_CHECK(num_parts >= 0 && num_parts <= static_cast<utf8proc_ssize_t>(parts.size()));
    code_points.insert(code_points.end(), parts.begin(), parts.begin() + num_parts);
  }
  sort_marks(code_points);
  const auto length =
      utf8proc_normalize_utf32(code_points.data(), static_cast<utf8proc_ssize_t>(code_points.size()), kOptions);
  FT_CHECK(length >= 0);
  storage.clear();
  storage.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) append_utf8(static_cast<char32_t>(code_points[i]), storage);
  return storage;
}

}  // namespace foretoken
