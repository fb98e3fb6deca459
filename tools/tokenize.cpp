#include <fmt/format.h>

#include "engine/gguf/gguf.h"
#include "engine/model/model_file.h"
#include "kernels/base/error.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/output.h"
#include "tools/cli/prompt.h"
#include "tools/commands.h"

namespace foretoken {

int run_tokenize(int argc, const char* const* argv) {
  ModelFlags model;
  PromptFlags prompt;
  bool decode = false;
  CommandLine line("tokenize", "-m MODEL [-p TEXT | -f FILE | --ids FILE]",
                   "Prints the token ids that a text has as a prompt, one a line. With --decode the other way: "
                   "white-space separated ids "
                   "in, text out.\n"
                   "Reads the vocabulary alone, so the model's architecture does not matter.");
  model.add_model(line);
  prompt.offers_chat = true;
  prompt.add_to(line);
  line.add_switch("decode", &decode, "ids to text; -p, -f or standard input hold ids");
  line.epilogue(environment_help());
  if (!line.parse(argc, argv)) return 0;
  (void)read_environment();  // a wrong value is an error here too
  prompt.resolve(line);
  if (model.model_path.empty()) throw UsageError("-m MODEL is missing: name a GGUF file");

  Prompt input = read_prompt(prompt);
  const Tokenizer tokenizer = Tokenizer::load(GgufFile::open(find_model(model.model_path)));
  if (decode || input.is_ids) {
    if (!input.is_ids) {
      input.ids = parse_ids(input.source, input.text);
      input.is_ids = true;
    }
    ResultStream().write(tokenizer.decode(tokenize_prompt(input, tokenizer), /*keep_special=*/true));
    return 0;
  }
  std::string text;
  for (TokenId id : tokenize_prompt(input, tokenizer)) text += fmt::format("{}\n", id);
  ResultStream().write(text);
  return 0;
}

}  // namespace foretoken
