#include "kernels/base/isa.h"

#include <fmt/format.h>

#include "kernels/base/error.h"

namespace foretoken {

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx2Vnni:
      return "avx2+vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512+vnni";
  }
  FT_CHECK(false);
  return {};
}

bool isa_supported(Isa isa) {
#if defined(__x86_64__)
  // The builtins look at XCR0 too, so an operating system that does not save the wide registers counts as a processor
  // without them.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return avx2;
    case Isa::kAvx2Vnni:
      return avx2 && __builtin_cpu_supports("avxvnni");
    case Isa::kAvx512:
      return avx512;
    case Isa::kAvx512Vnni:
      return avx512 && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return isa == Isa::kScalar;
}

std::vector<Isa> compiled_isas() {
#if defined(__x86_64__)
  return {Isa::kScalar, Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512, Isa::kAvx512Vnni};
#else
  return {Isa::kScalar};
#endif
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> found;
  for (Isa isa : compiled_isas()) {
    if (isa_supported(isa)) found.push_back(isa);
  }
  return found;
}

Isa best_isa() {
  return supported_isas().back();
}

Isa isa_from_name(std::string_view name) {
  Isa plain, vnni;
  if (name == "scalar") {
    plain = vnni = Isa::kScalar;
  } else if (name == "avx2") {
    plain = Isa::kAvx2, vnni = Isa::kAvx2Vnni;
  } else if (name == "avx512") {
    plain = Isa::kAvx512, vnni = Isa::kAvx512Vnni;
  } else {
    throw UsageError(fmt::format("FORETOKEN_ISA={}: unknown instruction set; known: scalar, avx2, avx512", name));
  }
  if (isa_supported(vnni)) return vnni;
  if (isa_supported(plain)) return plain;
  throw InputError(
      fmt::format("FORETOKEN_ISA={}: this processor lacks it; it can run {}; unset the variable to take the best", name,
                  isa_name(best_isa())));
}

}  // namespace foretoken
