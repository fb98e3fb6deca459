#include "tools/cli/prompt.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "engine/text/chat_template.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"
#include "tools/cli/terminal.h"

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

/// The name of an encoding other than UTF-8 that a text is in; empty: none that is known here.
std::string_view foreign_encoding(std::string_view text) {
  using namespace std::string_view_literals;
  if (text.starts_with("\xff\xfe\0\0"sv) || text.starts_with("\0\0\xfe\xff"sv)) return "UTF-32";
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff")) return "UTF-16";
  // Without a mark: every other byte of Latin text is zero.
  const std::string_view head = text.substr(0, std::min<size_t>(text.size() / 2 * 2, 64));
  if (head.size() < 4) return {};
  for (const size_t zero : {size_t{0}, size_t{1}}) {
    size_t i = 0;
    while (i < head.size() && (head[i] == '\0') == (i % 2 == zero)) ++i;
    if (i == head.size()) return zero == 0 ? "UTF-16BE" : "UTF-16LE";
  }
  return {};
}

/// Throws InputError for a text in another encoding, with the command that converts it.
void drop_byte_order_mark(std::string_view source, std::string& text) {
  if (const std::string_view encoding = foreign_encoding(text); !encoding.empty()) {
    throw InputError(fmt::format("{}: the text is {}, UTF-8 is needed; convert it: iconv -f {} -t UTF-8", source,
                                 encoding, encoding));
  }
  if (!text.starts_with("\xef\xbb\xbf")) return;
  text.erase(0, 3);
  print_message("note: {}: the UTF-8 byte order mark at its start is left out\n", source);
}

/// The text as the user's turn in the chat template of the model or of --chat-template-file.
std::vector<TokenId> tokenize_chat(const Prompt& prompt, const Tokenizer& tokenizer) {
  const bool own_template = prompt.chat_template.empty();
  const std::string_view source = own_template ? tokenizer.chat_template() : std::string_view(prompt.chat_template);
  if (source.empty()) {
    for (std::string_view mark : {"<|im_start|>", "<|im_end|>"}) {
      if (tokenizer.find_control_token(mark) == mark) continue;
      throw InputError(
          fmt::format("--chat: the file has no chat template, and no {} token for the usual one (ChatML); leave --chat "
                      "out, or give "
                      "--chat-template-file",
                      mark));
    }
    print_message("note: the file has no chat template; --chat uses ChatML\n");
  }
  ChatInput input = ChatInput::of(tokenizer, std::time(nullptr));
  input.messages.push_back({{"role", "user"}, {"content", prompt.text}});
  if (!prompt.chat_template_kwargs.empty())
    input.variables = nlohmann::ordered_json::parse(prompt.chat_template_kwargs);
  std::vector<TextPart> parts;
  try {
    const ChatTemplate form = source.empty() ? ChatTemplate::chatml() : ChatTemplate::parse(source);
    parts = form.render(input);
  } catch (const InputError& error) {
    throw InputError(fmt::format("--chat: {}", error.what()));
  }
  if (parts.empty()) throw InputError("--chat: the chat template makes no text of the prompt");
  if (!parts.back().parse_special) {
    print_message("note: the chat template does not open the answer's turn\n");
  } else if (!source.empty()) {
    const std::string_view end = parts.back().text;
    print_message("chat template of the {}: the prompt ends in \"{}\"\n", own_template ? "file" : "flag",
                  printable(end.substr(end.size() - std::min<size_t>(end.size(), 60))));
  }
  return tokenizer.encode(parts);
}

}  // namespace

void PromptFlags::add_to(CommandLine& line) {
  line.add_text("prompt,p", &text, "TEXT", "the prompt; without -p, -f and --ids it is read from standard input");
  line.add_text("file,f", &text_path, "FILE", "read the prompt from a file");
  line.add_text("ids", &ids_path, "FILE", "read the prompt as token ids, separated by white space; -: standard input");
  line.add_switch("parse-special", &parse_special, "text that spells a special token (<|im_end|>) becomes that token");
  if (offers_chat) {
    line.add_switch("chat", &chat, "make the prompt a user's turn in the file's chat template");
    line.add_text("chat-template-file", &chat_template_path, "FILE",
                  "with --chat: a Jinja template in place of the file's");
    line.add_text("chat-template-kwargs", &chat_template_kwargs, "JSON",
                  "with --chat: an object of the template's variables, as {\"enable_thinking\": false}");
  }
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
  if (chat && line.given("ids")) throw UsageError("--chat: needs a prompt as text, not as ids");
  if (chat && parse_special)
    throw UsageError("--chat and --parse-special: a user's turn is plain text, the template's tokens are read anyway");
  for (const char* flag : {"chat-template-file", "chat-template-kwargs"}) {
    if (offers_chat && !chat && line.given(flag))
      throw UsageError(fmt::format("{} belongs to --chat", line.typed(flag)));
  }
  if (!chat_template_kwargs.empty() &&
      !nlohmann::ordered_json::parse(chat_template_kwargs, nullptr, /*allow_exceptions=*/false).is_object())
    throw UsageError("--chat-template-kwargs: a JSON object is needed, as {\"enable_thinking\": false}");
  if (line.given("ids") && ids_path.empty()) throw UsageError("--ids: the file's name is empty");
}

void check_prompt_text(Prompt& prompt) {
  drop_byte_order_mark(prompt.source, prompt.text);
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

namespace {

// How the text of a prompt is to be read.
void set_form(const PromptFlags& flags, Prompt& prompt) {
  prompt.parse_special = flags.parse_special;
  prompt.chat = flags.chat;
  prompt.chat_template_kwargs = flags.chat_template_kwargs;
  if (flags.chat_template_path.empty()) return;
  prompt.chat_template = read_file(flags.chat_template_path);
  if (prompt.chat_template.empty())
    throw InputError(fmt::format("{}: the template is empty", flags.chat_template_path));
}

}  // namespace

std::vector<Prompt> read_prompts(const std::string& path, const PromptFlags& flags) {
  std::vector<Prompt> prompts;
  Prompt form;
  set_form(flags, form);
  for (std::string& part : split_at_blank_lines(read_file(path))) {
    Prompt prompt = form;
    prompt.text = std::move(part);
    prompt.source = fmt::format("{}: prompt {}", path, prompts.size() + 1);
    check_prompt_text(prompt);
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) throw InputError(fmt::format("{}: no prompt in it; prompts are separated by blank lines", path));
  return prompts;
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
  set_form(flags, prompt);
  if (!flags.ids_path.empty()) {
    const bool from_stdin = flags.ids_path == "-";
    prompt.source = from_stdin ? "standard input" : flags.ids_path;
    prompt.is_ids = true;
    std::string text = from_stdin ? read_all(STDIN_FILENO, prompt.source) : read_file(flags.ids_path);
    drop_byte_order_mark(prompt.source, text);
    prompt.ids = parse_ids(prompt.source, text);
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

std::vector<TokenId> tokenize_prompt(const Prompt& prompt, const Tokenizer& tokenizer) {
  if (prompt.is_ids) {
    for (size_t i = 0; i < prompt.ids.size(); ++i) {
      if (prompt.ids[i] >= tokenizer.vocab_size()) {
        throw InputError(fmt::format("{}: id {} (number {}) is outside the vocabulary of {} tokens", prompt.source,
                                     prompt.ids[i], i + 1, tokenizer.vocab_size()));
      }
    }
    return prompt.ids;
  }
  if (!prompt.chat && !prompt.parse_special) {
    if (const std::string_view token = tokenizer.find_control_token(prompt.text); !token.empty()) {
      print_message("note: {}: {} is taken as plain text; --parse-special makes it a token\n", prompt.source,
                    printable(token));
    }
  }
  std::vector<TokenId> ids =
      prompt.chat ? tokenize_chat(prompt, tokenizer) : tokenizer.encode(prompt.text, prompt.parse_special);
  tokenizer.begin_prompt(ids);
  if (ids.empty()) throw InputError(fmt::format("{}: the prompt gives no tokens", prompt.source));
  return ids;
}

}  // namespace foretoken
