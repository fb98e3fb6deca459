#include <catch2/catch.hpp>
#include <filesystem>
#include <vector>

#include "kernels/base/error.h"
#include "mtp/decoder.h"
#include "tests/tools/subprocess.h"
#include "tools/cli/command_line.h"
#include "tools/cli/model_flags.h"
#include "tools/cli/npy_writer.h"
#include "tools/cli/prompt.h"
#include "tools/cli/summary.h"

using namespace foretoken;
using foretoken::test::read_all;
using foretoken::test::TempFolder;

namespace {

struct Values {
  int64_t count = 5;
  std::optional<int> threads;
  double share = 0.5;
  uint64_t seed = 0;
  bool flag = false;
  std::string text, word = "a", maybe = "0", file;
};

Values parse(std::vector<const char*> arguments) {
  Values v;
  CommandLine line("test", "", "");
  line.add_int("count,n", &v.count, 1, 10, "N", "");
  line.add_int("threads,t", &v.threads, 1, 4, "N", "");
  line.add_float("share", &v.share, 0, 1, "X", "");
  line.add_seed("seed", &v.seed, "");
  line.add_switch("flag", &v.flag, "");
  line.add_text("text,p", &v.text, "TEXT", "");
  line.add_text("maybe", &v.maybe, "auto", "K", "");
  line.add_choice("word", &v.word, {"a", "b"}, "");
  line.add_positional("file", &v.file, "FILE", "");
  arguments.insert(arguments.begin(), "test");
  // Outside of any assertion: it throws, and the callers check what.
  const bool parsed = line.parse(static_cast<int>(arguments.size()), arguments.data());
  CHECK(parsed);
  return v;
}

}  // namespace

TEST_CASE("A flag's value stands behind it, or behind an equal sign after a long flag", "[flags]") {
  CHECK(parse({}).count == 5);
  CHECK(parse({"-n", "7"}).count == 7);
  CHECK(parse({"--count", "7"}).count == 7);
  CHECK(parse({"--count=7"}).count == 7);
  CHECK_FALSE(parse({}).threads.has_value());
  CHECK(parse({"-t", "3"}).threads == 3);
  CHECK(parse({"--seed", "18446744073709551615"}).seed == UINT64_MAX);
  CHECK(parse({"--flag"}).flag);
  CHECK(parse({"-p", "-a dash and words"}).text == "-a dash and words");
  CHECK(parse({"-p", ""}).text.empty());
  CHECK(parse({"--maybe"}).maybe == "auto");
  CHECK(parse({"--maybe", "3"}).maybe == "3");
  CHECK(parse({"--maybe", "--flag"}).maybe == "auto");
  CHECK(parse({"--word", "b"}).word == "b");
  CHECK(parse({"model.gguf", "-n", "2"}).file == "model.gguf");
  CHECK(parse({"--maybe", "3", "model.gguf"}).file == "model.gguf");
  CHECK(parse({"-n", "2", "--", "--count"}).file == "--count");
  CHECK(parse({"-"}).file == "-");
  CHECK(parse({"-p", "-5 is a number"}).text == "-5 is a number");
  CHECK(parse({"-p", "-fa"}).text == "-fa");  // no flag of this command
  CHECK(parse({"--text=-n"}).text == "-n");
  CHECK(parse({"--text=a=b"}).text == "a=b");
}

namespace {

/// The message of a refusal.
std::string refusal(const std::vector<const char*>& arguments) {
  try {
    parse(arguments);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "not refused";
}

}  // namespace

TEST_CASE("Nothing is glued to a short flag, and the message says what was typed", "[flags]") {
  struct Case {
    std::vector<const char*> arguments;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {{"-n7"}, {"-n7:", "-n 7"}},
      {{"-n=7"}, {"-n=7:", "-n 7"}},
      {{"-p=x"}, {"-p=x:", "-p x"}},
      {{"-p="}, {"-p=:"}},
      {{"-px"}, {"-px:"}},
      {{"-text", "x"}, {"-text:", "--text"}},
      {{"-t4"}, {"-t4:", "-t 4"}},
      {{"-fa"}, {"-fa:", "leave it out"}},
      {{"-ngl99"}, {"-ngl99:", "--device"}},
      {{"-ngl=99"}, {"-ngl=99:", "--device"}},
      {{"--n-gpu-layers=99"}, {"--n-gpu-layers=99:", "--device"}},
      {{"--cout", "3"}, {"--cout:", "--count"}},
      {{"--coun", "3"}, {"--coun:", "--count"}},
      {{"-n", "11"}, {"-n 11:", "--count", "1 to 10"}},
      {{"--count", "11"}, {"--count 11:", "1 to 10"}},
      {{"--count=11"}, {"--count 11:", "1 to 10"}},
      {{"-t", "5"}, {"-t 5:", "--threads", "1 to 4"}},
      {{"-n"}, {"-n:", "value is missing"}},
      {{"-p", "--flag"}, {"-p:", "value is missing", "--text=--flag"}},
      {{"-n", "2", "--count", "3"}, {"-n", "--count", "same flag"}},
      {{"--flag=3"}, {"--flag=3", "no value"}},
      {{"-n", "2", "", "b"}, {"'b'"}},
  };
  for (const Case& c : cases) {
    const std::string message = refusal(c.arguments);
    INFO(message);
    for (const std::string& word : c.words) {
      INFO(word);
      CHECK(message.find(word) != std::string::npos);
    }
  }
}

TEST_CASE("Of several wrong values the one typed first is named", "[flags]") {
  CHECK(refusal({"-n", "11", "-t", "5"}).starts_with("-n 11:"));
  CHECK(refusal({"-t", "5", "-n", "11"}).starts_with("-t 5:"));
  CHECK(refusal({"-t", "5", "--frobnicate"}).find("--frobnicate:") != std::string::npos);
}

TEST_CASE("A value that was left out is not taken from an argument behind it", "[flags]") {
  for (const char* argument : {"-", "model.gguf"}) {
    const Values v = parse({"--maybe", "--", argument});
    CHECK(v.maybe == "auto");
    CHECK(v.file == argument);
  }
  CHECK(parse({"--maybe", "-"}).maybe == "auto");
  CHECK(parse({"--maybe", "-"}).file == "-");
}

TEST_CASE("Flags that people know from llama.cpp are answered with what to do here", "[flags]") {
  for (const char* flag : {"-ngl",
                           "--gpu-layers",
                           "-ctk",
                           "-ctv",
                           "-fa",
                           "-tb",
                           "-np",
                           "-b",
                           "-ub",
                           "--mlock",
                           "--no-mmap",
                           "--temperature",
                           "-cnv",
                           "-i",
                           "-hf",
                           "--draft-max",
                           "-md",
                           "-sm",
                           "-ts",
                           "--top-nsigma",
                           "-e",
                           "-r",
                           "-s",
                           "-mg",
                           "-nkvo",
                           "--jinja",
                           "--grammar",
                           "--keep",
                           "--lora",
                           "-sys",
                           "-dev",
                           "-ot",
                           "-ncmoe",
                           "--numa",
                           "-v",
                           "--log-file",
                           "--no-warmup",
                           "-no-cnv",
                           "--parallel",
                           "--batch-size",
                           "--ubatch-size",
                           "--flash-attn",
                           "--special",
                           "--mirostat",
                           "--rope-scale",
                           "--mmproj",
                           "--host",
                           "--predict",
                           "--cache-type-k"}) {
    const std::string message = refusal({flag, "1"});
    INFO(message);
    CHECK(message.starts_with(std::string(flag) + ": "));
    CHECK(message.find("no such flag: ") != std::string::npos);
    CHECK(message.find('\n') == std::string::npos);
  }
  CHECK(refusal({"--frobnicate"}).find("no such flag; see") != std::string::npos);
}

TEST_CASE("Wrong flags and values are refused", "[flags]") {
  const std::vector<std::vector<const char*>> bad = {{"--unknown"},
                                                     {"-x"},
                                                     {"--coun", "3"},
                                                     {"-n"},
                                                     {"-n", "0"},
                                                     {"-n", "11"},
                                                     {"-n", "3x"},
                                                     {"-n", ""},
                                                     {"-n", "1e1"},
                                                     {"-n", "-3"},
                                                     {"-n", " 3"},
                                                     {"-n", "99999999999999999999"},
                                                     {"--share", "1.01"},
                                                     {"--share", "x"},
                                                     {"--share", "nan"},
                                                     {"--share", "inf"},
                                                     {"--seed", "-1"},
                                                     {"--seed", "18446744073709551616"},
                                                     {"--word", "c"},
                                                     {"-t", "5"},
                                                     {"-n", "2", "-n", "3"},
                                                     {"one", "two"},
                                                     {"--flag=3"}};
  for (const auto& arguments : bad) {
    std::string shown;
    for (const char* argument : arguments) shown += std::string(argument) + " ";
    INFO(shown);
    CHECK_THROWS_AS(parse(arguments), UsageError);
  }
}

TEST_CASE("Flag --mtp is a number or auto", "[flags]") {
  CHECK(parse_mtp("--mtp", "0") == 0);
  CHECK(parse_mtp("--mtp", "8") == 8);
  CHECK(parse_mtp("--mtp", "auto") == kMaxDraft);
  CHECK_THROWS_AS(parse_mtp("--mtp", "9"), UsageError);
  CHECK_THROWS_AS(parse_mtp("--mtp", "-1"), UsageError);
  CHECK_THROWS_AS(parse_mtp("--mtp", "two"), UsageError);
}

TEST_CASE("ids_sha256 is over the ids as little-endian uint32", "[summary]") {
  // printf abcd | sha256sum
  CHECK(ids_sha256(std::vector<TokenId>{0x64636261}) ==
        "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589");
  CHECK(ids_sha256({}) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST_CASE("Ids are separated by any white space", "[prompt]") {
  CHECK(parse_ids("x", " 1\n22\t333 \r\n") == std::vector<TokenId>{1, 22, 333});
  CHECK(parse_ids("x", " \n").empty());
  for (const char* text : {"1,2", "-1", "1.5", "a", "3000000000", "1 x"}) {
    INFO(text);
    CHECK_THROWS_AS(parse_ids("x", text), InputError);
  }
}

TEST_CASE("Prompts of a file are separated by blank lines", "[prompt]") {
  CHECK(split_at_blank_lines("a\nb\n\nc") == std::vector<std::string>{"a\nb\n", "c"});
  CHECK(split_at_blank_lines("\n \n\na\n\t\n\nb\n\n") == std::vector<std::string>{"a\n", "b\n"});
  CHECK(split_at_blank_lines(" \n\n").empty());
  CHECK(split_at_blank_lines("").empty());
}

TEST_CASE("A NumPy file has a header of whole 64-byte lines and the rows", "[npy]") {
  const TempFolder folder;
  const std::string path = folder.file("m.npy");
  const std::vector<float> rows = {1, 2, 3, -4, 5.5f, 6};
  {
    NpyWriter writer(path, "--logits");
    writer.begin(2, 3);
    writer.write_row(std::span(rows).first(3));
    CHECK_FALSE(std::filesystem::exists(path));  // under its name only when whole
    writer.write_row(std::span(rows).last(3));
    writer.commit();
  }
  const std::string bytes = read_all(path);
  REQUIRE(bytes.size() % 64 == 24);
  CHECK(bytes.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  const size_t header = static_cast<unsigned char>(bytes[8]) + 256 * static_cast<unsigned char>(bytes[9]);
  CHECK((10 + header) % 64 == 0);
  CHECK(bytes.substr(10, header).starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
  CHECK(bytes[10 + header - 1] == '\n');
  CHECK(bytes.substr(10 + header) ==
        std::string(reinterpret_cast<const char*>(rows.data()), rows.size() * sizeof(float)));
}

TEST_CASE("A NumPy file that is not finished leaves nothing behind", "[npy]") {
  const TempFolder folder;
  {
    NpyWriter writer(folder.file("m.npy"), "--logits");
    writer.begin(2, 1);
  }
  CHECK(std::filesystem::is_empty(folder.file("")));
  CHECK_THROWS_AS(NpyWriter(folder.file("no/such/folder.npy"), "--logits"), InputError);
  CHECK(NpyWriter("-", "--logits").is_stdout());
}
