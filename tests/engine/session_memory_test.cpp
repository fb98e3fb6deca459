#include "engine/session_memory.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <vector>

#include "engine/engine.h"
#include "engine/model/model.h"
#include "engine/model/shapes.h"
#include "engine/sequence/rope_tables.h"
#include "kernels/base/aligned_buffer.h"
#include "tests/engine/gguf/temp_files.h"
#include "tests/engine/model/random_model.h"

namespace foretoken::test {
namespace {

// What is not in buffers that can be counted: the rotation tables, and what partial results of attention are merged by.
size_t in_vectors(const ModelShapes& shapes, const SessionOptions& o) {
  const auto queries = static_cast<size_t>(o.max_window * shapes.num_heads * pages_of(o.ctx_size));
  return RopeTables::size_bytes(shapes.ropes, o.ctx_size) + queries * sizeof(AttentionQuery);
}

TEST_CASE("an engine on the CPU takes what was planned before the model was loaded", "[engine]") {
  for (const char* architecture : {"qwen35moe", "qwen35", "qwen3moe"}) {
    const TempFolder folder;
    RandomModel spec = small_model(architecture);
    spec.write(folder.file("model.gguf"));
    const ModelOutline outline = Model::outline(GgufFile::open(folder.file("model.gguf")));
    const Model model = Model::load(folder.file("model.gguf"), {});
    for (const int parallel : {1, 3}) {
      for (const bool with_mtp : {false, true}) {
        if (with_mtp && !model.has_mtp()) continue;
        SessionOptions o;
        o.ctx_size = 300;
        o.parallel = parallel;
        o.with_mtp = with_mtp;
        o.max_window = with_mtp ? 4 : 1;
        o.prompt_chunk = parallel == 1 ? 256 : 7;
        o.kv_type = with_mtp ? KvType::kF32 : KvType::kF16;
        o.kv_memory_bytes = parallel == 1 ? 0 : 100000;
        o.threads = 2;
        INFO(fmt::format("{}, {} texts, {}", architecture, parallel, with_mtp ? "with the MTP layer" : "without"));
        const SessionMemory planned = session_memory(outline.weights, outline.config, o);
        const size_t before = AlignedBuffer::all_bytes();
        const Engine engine(model, o);
        const size_t taken = AlignedBuffer::all_bytes() - before;
        const ModelShapes shapes = ModelShapes::of(model.weights(), model.config(), with_mtp);
        CHECK(planned.total() == taken + in_vectors(shapes, o));
        CHECK(engine.memory().total() == planned.total());
      }
    }
  }
}

}  // namespace
}  // namespace foretoken::test
