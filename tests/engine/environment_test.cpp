#include <cstdlib>

#include <catch2/catch.hpp>

#include "engine/options.h"
#include "kernels/base/error.h"
#include "kernels/threads/thread_team.h"

using namespace foretoken;

namespace {

// Sets a variable for one scope.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~Variable() { old_ ? setenv(name_, old_->c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::optional<std::string> old_;
};

struct Clean {
  Variable moe{"FORETOKEN_MOE_VERIFY", nullptr}, isa{"FORETOKEN_ISA", nullptr}, threads{"FORETOKEN_THREADS", nullptr},
      numa{"FORETOKEN_NUMA", nullptr}, dependent_launch{"FORETOKEN_CUDA_DEPENDENT_LAUNCH", nullptr};
};

}  // namespace

TEST_CASE("Nothing set asks for nothing", "[environment]") {
  const Clean clean;
  const Environment e = Environment::read();
  CHECK_FALSE(e.moe_verify);
  CHECK_FALSE(e.isa);
  CHECK_FALSE(e.threads);
  CHECK_FALSE(e.numa);
  CHECK_FALSE(e.dependent_launch);
  CHECK(e.set.empty());
}

TEST_CASE("Known values are read and listed", "[environment]") {
  const Clean clean;
  const Variable a("FORETOKEN_MOE_VERIFY", "per-token"), b("FORETOKEN_ISA", "scalar"), c("FORETOKEN_THREADS", "3"),
      n("FORETOKEN_NUMA", "off"), l("FORETOKEN_CUDA_DEPENDENT_LAUNCH", "off");
  const Environment e = Environment::read();
  CHECK(e.moe_verify == MoeVerify::kPerToken);
  CHECK(e.isa == Isa::kScalar);
  CHECK(e.threads == 3);
  CHECK(e.numa == false);
  CHECK(e.dependent_launch == false);
  CHECK(e.set == std::vector<std::string>{"FORETOKEN_MOE_VERIFY=per-token", "FORETOKEN_ISA=scalar",
                                          "FORETOKEN_THREADS=3", "FORETOKEN_NUMA=off",
                                          "FORETOKEN_CUDA_DEPENDENT_LAUNCH=off"});
  const Variable d("FORETOKEN_MOE_VERIFY", "grouped");
  CHECK(Environment::read().moe_verify == MoeVerify::kGrouped);
}

TEST_CASE("Unknown values are refused with the known ones", "[environment]") {
  const Clean clean;
  {
    const Variable v("FORETOKEN_MOE_VERIFY", "Grouped");
    CHECK_THROWS_AS(Environment::read(), UsageError);
    CHECK_THROWS_WITH(Environment::read(), "FORETOKEN_MOE_VERIFY=Grouped: unknown value; known: grouped, per-token");
  }
  {
    const Variable v("FORETOKEN_ISA", "sse2");
    CHECK_THROWS_AS(Environment::read(), UsageError);
    CHECK_THROWS_WITH(Environment::read(), Catch::Contains("scalar, avx2, avx512"));
  }
  {
    const Variable v("FORETOKEN_NUMA", "2");
    CHECK_THROWS_AS(Environment::read(), UsageError);
    CHECK_THROWS_WITH(Environment::read(), "FORETOKEN_NUMA=2: unknown value; known: on, off");
  }
  for (const char* bad : {"", "1", "On", "auto"}) {
    const Variable v("FORETOKEN_CUDA_DEPENDENT_LAUNCH", bad);
    CHECK_THROWS_AS(Environment::read(), UsageError);
    CHECK_THROWS_WITH(Environment::read(),
                      std::string("FORETOKEN_CUDA_DEPENDENT_LAUNCH=") + bad + ": unknown value; known: on, off");
  }
  for (const char* bad : {"", "0", "-1", "1025", "two", "3x", " 3", "3 ", "+3", "99999999999999999999", "1e1"}) {
    const Variable v("FORETOKEN_THREADS", bad);
    CHECK_THROWS_AS(Environment::read(), UsageError);
    CHECK_THROWS_WITH(Environment::read(),
                      std::string("FORETOKEN_THREADS=") + bad + ": it takes a whole number from 1 to 1024");
  }
  const Variable most("FORETOKEN_THREADS", "1024");
  CHECK(Environment::read().threads == ThreadTeam::kMaxThreads);
}

TEST_CASE("An instruction set that the processor lacks is an input error", "[environment]") {
  const Clean clean;
  const Variable v("FORETOKEN_ISA", "avx512");
  if (isa_supported(Isa::kAvx512)) {
    CHECK(Environment::read().isa);
  } else {
    CHECK_THROWS_AS(Environment::read(), InputError);
    CHECK_THROWS_WITH(Environment::read(), Catch::Contains("FORETOKEN_ISA=avx512: this processor lacks it"));
  }
}
