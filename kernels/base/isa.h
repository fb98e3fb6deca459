#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace foretoken {

/// Instruction sets that kernels are written for. All give the same bits; they differ in speed alone.
/// kAvx2Vnni and kAvx512Vnni are their plain forms with the int8 dot product instruction.
enum class Isa { kScalar, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni };

/// "scalar", "avx2", "avx2+vnni", "avx512", "avx512+vnni".
[[nodiscard]] std::string_view isa_name(Isa isa);

/// True if this processor (and operating system) can run `isa`.
[[nodiscard]] bool isa_supported(Isa isa);

/// The instruction sets this machine can run, slowest first; kScalar always.
[[nodiscard]] std::vector<Isa> supported_isas();

/// All instruction sets compiled in, slowest first.
[[nodiscard]] std::vector<Isa> compiled_isas();

/// The fastest one that this machine can run.
[[nodiscard]] Isa best_isa();

/// `name` is scalar, avx2 or avx512: the best form of that family here. Throws UsageError for another name (listing the
/// known ones) and InputError where the processor lacks it.
[[nodiscard]] Isa isa_from_name(std::string_view name);

}  // namespace foretoken
