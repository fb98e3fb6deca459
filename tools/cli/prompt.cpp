#include "tools/cli/prompt.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "kernels/base/error.h"

namespace foretoken {

namespace {

constexpr std::string_view kSpace = " \t\r\n\f\v";

std::string read_all(int fd, std::string_view source) {
  std::string text;
  std::array<char, 1 << 16> part;
  while (true) {
    const ssize_t n = ::read(fd, part.data(), part.size());
    if (n == 0) return text;
    if (n > 0) {
      text.append(part.data(), static_cast<size_t>(n));
    } else if (errno != EINTR) {
      throw InputError(fmt::format("{}: cannot read: {}", source, std::strerror(errno)));
    }
  }
}

/// ChatML, the form of the Qwen models: a user's turn, then the answer's turn opened.
std::string wrap_chatml(const Tokenizer& tokenizer, std::string_view text) {
  constexpr std::array<std::string_view, 2> kMarks = {"<|im_start|>", "<|im_end|>"};
  const std::string_view chat_template = tokenizer.chat_template();
  if (!chat_template.empty() && chat_template.find(kMarks[0]) == std::string_view::npos) {
    throw InputError(
        "--chat: this model's chat template is not ChatML, the only chat form known here; leave --chat out");
  }
  for (std::string_view mark : kMarks) {
    const auto special = tokenizer.special_ids();
    if (std::none_of(special.begin(), special.end(), [&](TokenId id) { return tokenizer.piece(id, true) == mark; })) {
      throw InputError(
          fmt::format("--chat: this model's vocabulary has no {} token, and ChatML is the only chat form known here; "
                      "leave --chat out",
                      mark));
    }
  }
  return fmt::format("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", text);
}

}  // namespace

void PromptFlags::add_to(CommandLine& line) {
  line.add_text("prompt,p", &text, "TEXT", "the prompt; without -p, -f and --ids it is read from standard input");
  line.add_text("file,f", &text_path, "FILE", "read the prompt from a file");
  line.add_text("ids", &ids_path, "FILE", "read the prompt as token ids, separated by white space; -: standard input");
}

void PromptFlags::resolve(const CommandLine& line) {
  text_given = line.given("prompt");
  text_flag = line.typed("prompt");
  std::vector<std::string> sources;
  for (const char* name : {"prompt", "file", "ids"}) {
    if (line.given(name)) sources.push_back(line.typed(name));
  }
  if (sources.size() > 1)
    throw UsageError(fmt::format("{}: give one prompt, not several", fmt::join(sources, " and ")));
  if (line.given("file") && text_path.empty())
    throw UsageError(fmt::format("{}: the file's name is empty", line.typed("file")));
  if (line.given("ids") && ids_path.empty()) throw UsageError("--ids: the file's name is empty");
}

void check_prompt_text(const Prompt& prompt) {
  if (prompt.text.empty())
    throw InputError(fmt::format("{}: the prompt is empty; give at least one character", prompt.source));
  const size_t bad = find_invalid_utf8(prompt.text);
  if (bad != std::string_view::npos) {
    throw InputError(fmt::format("{}: not valid UTF-8 at byte offset {} (0x{:02x}); convert the text to UTF-8",
                                 prompt.source, bad, static_cast<unsigned char>(prompt.text[bad])));
  }
}

std::vector<std::string> split_at_blank_lines(std::string_view text) {
  std::vector<std::string> parts;
  std::string part;
  const auto close = [&] {
    if (!part.empty()) parts.push_back(std::move(part));
    part.clear();
  };
  while (!text.empty()) {
    const size_t line_end = std::min(text.find('\n'), text.size() - 1) + 1;
    const std::string_view line = text.substr(0, line_end);
    if (line.find_first_not_of(kSpace) == std::string_view::npos) {
      close();
    } else {
      part += line;
    }
    text.remove_prefix(line_end);
  }
  close();
  return parts;
}

std::string read_file(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw InputError(fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  try {
    std::string text = read_all(fd, path);
    ::close(fd);
    return text;
  } catch (...) {
    ::close(fd);
    throw;
  }
}

std::vector<TokenId> parse_ids(std::string_view source, std::string_view text) {
  std::vector<TokenId> ids;
  size_t at = text.find_first_not_of(kSpace);
  while (at != std::string_view::npos) {
    const size_t end = std::min(text.find_first_of(kSpace, at), text.size());
    TokenId id = 0;
    const auto [stop, error] = std::from_chars(text.data() + at, text.data() + end, id);
    if (error != std::errc() || stop != text.data() + end || id < 0) {
      throw InputError(fmt::format("{}: byte offset {}: \"{}\" is not a token id; ids are whole numbers from 0 on",
                                   source, at, text.substr(at, std::min<size_t>(end - at, 40))));
    }
    ids.push_back(id);
    at = text.find_first_not_of(kSpace, end);
  }
  return ids;
}

Prompt read_prompt(const PromptFlags& flags) {
  Prompt prompt;
  if (!flags.ids_path.empty()) {
    const bool from_stdin = flags.ids_path == "-";
    prompt.source = from_stdin ? "standard input" : flags.ids_path;
    prompt.is_ids = true;
    prompt.ids =
        parse_ids(prompt.source, from_stdin ? read_all(STDIN_FILENO, prompt.source) : read_file(flags.ids_path));
    if (prompt.ids.empty())
      throw InputError(fmt::format("{}: the prompt is empty; give at least one id", prompt.source));
    return prompt;
  }
  if (flags.text_given) {
    prompt.source = flags.text_flag;
    prompt.text = flags.text;
  } else if (!flags.text_path.empty() && flags.text_path != "-") {
    prompt.source = flags.text_path;
    prompt.text = read_file(flags.text_path);
  } else {
    prompt.source = "standard input";
    prompt.text = read_all(STDIN_FILENO, prompt.source);
  }
  check_prompt_text(prompt);
  return prompt;
}

std::vector<TokenId> tokenize_prompt(const Prompt& prompt, const Tokenizer& tokenizer, bool chat) {
  if (prompt.is_ids) {
    if (chat) throw UsageError("--chat: needs a prompt as text, not as ids");
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      if (prompt.ids[i] >= tokenizer.vocab_size()) {
        throw InputError(fmt::format("{}: id {} (number {}) is outside the vocabulary of {} tokens", prompt.source,
                                     prompt.ids[i], i + 1, tokenizer.vocab_size()));
      }
    }
    return prompt.ids;
  }
  std::vector<TokenId> ids = tokenizer.encode(chat ? wrap_chatml(tokenizer, prompt.text) : prompt.text);
  if (tokenizer.add_bos() && tokenizer.bos() >= 0 && (ids.empty() || ids.front() != tokenizer.bos())) {
    ids.insert(ids.begin(), tokenizer.bos());
  }
  if (ids.empty()) throw InputError(fmt::format("{}: the prompt gives no tokens", prompt.source));
  return ids;
}

}  // namespace foretoken
