#include "tools/serve/stop_matcher.h"

#include <catch2/catch.hpp>
#include <random>

namespace foretoken::test {

TEST_CASE("Stop strings are found over the ends of pieces and never let out", "[serve]") {
  StopMatcher matcher({"END", "\n\n", ""});
  CHECK(matcher.push("abcE") == "abc");
  CHECK(matcher.push("N") == "");
  CHECK(matcher.push("x\n") == "ENx");
  CHECK(matcher.push("y") == "\ny");
  CHECK(matcher.push("zE") == "z");
  CHECK(matcher.push("NDmore") == "");
  CHECK(matcher.found() == "END");
  CHECK(matcher.push("later") == "");
  CHECK(matcher.finish() == "");
}

TEST_CASE("What might have become a stop string comes out at the end", "[serve]") {
  StopMatcher matcher({"</s>"});
  CHECK(matcher.push("text</") == "text");
  CHECK(matcher.finish() == "</");
  CHECK(matcher.found().empty());
}

TEST_CASE("Of two stop strings the first one counts, at the same place the longer one", "[serve]") {
  StopMatcher first({"b", "abc"});
  CHECK(first.push("xabcx") == "x");
  CHECK(first.found() == "abc");
  StopMatcher longer({"ab", "abc"});
  CHECK(longer.push("xabcx") == "x");
  CHECK(longer.found() == "abc");
}

TEST_CASE("Stop strings cut any text at the same place however it is cut into pieces", "[serve]") {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 30; ++i) text += "ab"[random() % 2];
    std::string stop;
    for (unsigned i = 0; i < 1 + random() % 5; ++i) stop += "ab"[random() % 2];
    StopMatcher matcher({stop});
    std::string out;
    for (size_t begin = 0; begin < text.size();) {
      const size_t size = 1 + random() % 4;
      out += matcher.push(text.substr(begin, size));
      begin += size;
    }
    out += matcher.finish();
    REQUIRE(out == text.substr(0, text.find(stop)));
  }
}

}  // namespace foretoken::test
