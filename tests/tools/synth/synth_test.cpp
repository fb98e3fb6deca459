#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "engine/gguf/sha256.h"
#include "engine/model/model_config.h"
#include "engine/text/tokenizer.h"
#include "kernels/base/error.h"
#include "kernels/formats/weight_codec.h"
#include "mtp/decoder.h"
#include "tools/commands.h"
#include "tools/synth/synth_chain.h"
#include "tools/synth/synth_model.h"
#include "tools/synth/synth_vocabulary.h"

using namespace foretoken;

namespace {

class TemporaryModel {
 public:
  TemporaryModel() {
    static int count = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("foretoken_synth_" + std::to_string(getpid()) + "_" + std::to_string(count++) + ".gguf");
  }
  ~TemporaryModel() {
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
  }
  [[nodiscard]] std::string path() const { return path_.string(); }
  [[nodiscard]] std::string bytes() const {
    std::ifstream file(path_, std::ios::binary);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  }

 private:
  std::filesystem::path path_;
};

// Small enough for hundreds of files a minute; rows of 256 so that every type fits.
SynthSpec small(SynthSpec::Text text = SynthSpec::Text::kChain) {
  SynthSpec spec;
  spec.text = text;
  spec.num_layers = 2;
  spec.attention_interval = 2;
  spec.num_experts = 8;
  spec.experts_per_token = 2;
  spec.types = {WeightType::kQ8_0};
  return spec;
}

GgufFile written(const SynthSpec& spec, const TemporaryModel& model) {
  const SynthReport report = write_synth_model(model.path(), spec);
  CHECK(report.file_bytes == std::filesystem::file_size(model.path()));
  return GgufFile::open(model.path());
}

std::vector<float> row_of(const GgufFile& file, const std::string& name, int64_t row) {
  const GgufTensor* tensor = file.find_tensor(name);
  REQUIRE(tensor != nullptr);
  const int64_t n = tensor->shape[0];
  const size_t row_bytes = tensor->size_bytes / static_cast<size_t>(tensor->num_values() / n);
  std::vector<float> values(static_cast<size_t>(n));
  decode_row(*tensor->type(), tensor->data + row_bytes * static_cast<size_t>(row), n, values.data());
  return values;
}

std::vector<std::vector<float>> matrix_of(const GgufFile& file, const std::string& name) {
  std::vector<std::vector<float>> rows;
  for (int64_t row = 0; row < file.find_tensor(name)->shape[1]; ++row) rows.push_back(row_of(file, name, row));
  return rows;
}

// Row of the largest product with x, over the first x.size() columns.
TokenId largest_product(const std::vector<std::vector<float>>& rows, const std::vector<float>& x) {
  TokenId best = 0;
  float best_value = -1e30f;
  for (size_t r = 0; r < rows.size(); ++r) {
    const float value = std::inner_product(x.begin(), x.end(), rows[r].begin(), 0.0f);
    if (value > best_value) best_value = value, best = static_cast<TokenId>(r);
  }
  return best;
}

}  // namespace

TEST_CASE("The vocabulary is one that the tokenizer takes", "[synth]") {
  const TemporaryModel model;
  SynthSpec spec = small();
  spec.vocab_size = 400;
  const GgufFile file = written(spec, model);
  const Tokenizer tokenizer = Tokenizer::load(file);
  const std::vector<TokenId> ids = tokenizer.encode("the string\n");
  CHECK(ids.size() < 11);  // pieces were merged
  std::string text;
  for (TokenId id : ids) text += tokenizer.piece(id);
  CHECK(text == "the string\n");
  CHECK(tokenizer.encode("<|im_end|>") == std::vector<TokenId>{399});
  const synth::Vocabulary vocabulary = synth::Vocabulary::make(400);
  CHECK(std::set<std::string>(vocabulary.tokens.begin(), vocabulary.tokens.end()).size() == 400);
  CHECK(vocabulary.end_of_turn == 399);
  CHECK(synth::Vocabulary::make(synth::Vocabulary::kSmallest).tokens.size() == 320);
}

TEST_CASE("The cycle visits every id on it once and leads everywhere", "[synth]") {
  const synth::Cycle cycle(1000, 5);
  std::set<TokenId> seen;
  TokenId id = cycle.id_at(0);
  for (int64_t i = 0; i < cycle.length(); ++i, id = cycle.next(id)) {
    CHECK(seen.insert(id).second);
    CHECK(synth::is_printable(id, 1000));
  }
  CHECK(id == cycle.id_at(0));
  CHECK(cycle.length() == 94 + 1000 - 256 - 3);
  for (TokenId start : {0, 10, 999, 998}) CHECK(cycle.has(cycle.next(start)));
  CHECK_FALSE(cycle.has(999));
  CHECK(synth::Cycle(100000, 5).length() == 16384);
  CHECK(synth::Cycle(1000, 6).continuation(40, 20) != cycle.continuation(40, 20));
}

TEST_CASE("Each architecture has the tensors and keys that a reader needs", "[synth]") {
  for (SynthSpec::Text text : {SynthSpec::Text::kChain, SynthSpec::Text::kRandom}) {
    for (const std::string& architecture : SynthSpec::architectures()) {
      for (bool mtp : {true, false}) {
        const TemporaryModel model;
        SynthSpec spec = small(text);
        spec.architecture = architecture;
        spec.with_mtp = mtp;
        if (spec.rotates_whole_heads()) spec.rope_dim = spec.head_dim;
        CAPTURE(architecture, mtp);
        const GgufFile file = written(spec, model);
        const ModelConfig config = ModelConfig::read(file);
        CHECK(config.num_layers == 2);
        CHECK(config.num_mtp_layers == (spec.has_mtp() ? 1 : 0));
        CHECK(config.vocab_size == 512);
        CHECK(config.num_experts == (spec.has_experts() ? 8 : 0));
        CHECK(config.rope_base == 1e7);
        if (spec.is_hybrid()) {
          CHECK(config.recurrent == std::vector<bool>{true, false});
          CHECK(file.find_tensor("blk.0.attn_qkv.weight")->shape == std::vector<int64_t>{256, 2 * 128 + 256});
          CHECK(file.find_tensor("blk.1.attn_q.weight")->shape == std::vector<int64_t>{256, 2 * 256});
          CHECK((file.find_tensor("blk.2.nextn.eh_proj.weight") != nullptr) == mtp);
        }
        if (config.num_experts > 0) {
          CHECK(file.find_tensor("blk.1.ffn_down_exps.weight")->shape == std::vector<int64_t>{256, 256, 8});
        }
        // What the loader says is the whole truth.
        const Model loaded = Model::load(model.path(), {});
        CHECK(loaded.config().num_layers == 2);
      }
    }
  }
}

TEST_CASE("The shapes are those of the models", "[synth]") {
  const SynthSpec a = SynthSpec::for_shape("qwen3.6-35b-a3b");
  CHECK((a.num_layers == 40 && a.num_experts == 256 && a.experts_per_token == 8 && a.vocab_size == 248320 &&
         a.has_mtp()));
  const SynthSpec b = SynthSpec::for_shape("qwen3-coder-30b-a3b");
  CHECK((b.num_layers == 48 && b.num_experts == 128 && b.expert_dim == 768 && b.vocab_size == 151936 && !b.has_mtp()));
  const SynthSpec c = SynthSpec::for_shape("qwen3-coder-next-80b-a3b");
  CHECK(
      (c.num_layers == 48 && c.num_experts == 512 && c.experts_per_token == 10 && c.expert_dim == 512 && c.has_mtp()));
  const SynthSpec d = SynthSpec::for_shape("smollm2-135m");
  CHECK((d.num_layers == 30 && d.hidden_dim == 576 && d.num_heads == 9 && !d.has_experts() && !d.has_mtp()));
  for (const std::string& name : SynthSpec::shape_names()) SynthSpec::for_shape(name).check();
  CHECK_THROWS_WITH(
      SynthSpec::for_shape("huge"),
      "--shape huge: unknown; known: tiny, qwen3.6-35b-a3b, qwen3-coder-30b-a3b, qwen3-coder-next-80b-a3b, "
      "smollm2-135m");
}

TEST_CASE("Types are dealt over the matrices, mixed as Q4_K_M, or replaced where rows do not fit", "[synth]") {
  const auto type_of = [](const GgufFile& file, const char* name) {
    return weight_type_info(*file.find_tensor(name)->type()).name;
  };
  SynthSpec spec = small();
  {
    const TemporaryModel model;
    spec.set_types("q4_k_m");
    const GgufFile file = written(spec, model);
    CHECK(type_of(file, "output.weight") == "Q6_K");
    CHECK(type_of(file, "token_embd.weight") == "Q4_K");
    CHECK(type_of(file, "blk.0.attn_qkv.weight") == "Q5_K");
    CHECK(type_of(file, "blk.0.ssm_alpha.weight") == "Q8_0");
    CHECK(type_of(file, "blk.0.ffn_down_exps.weight") == "Q6_K");
    CHECK(type_of(file, "blk.1.ffn_down_exps.weight") == "Q4_K");
    CHECK(type_of(file, "blk.1.attn_v.weight") == "Q6_K");
    CHECK(type_of(file, "blk.1.ffn_gate_inp.weight") == "F32");
    CHECK(type_of(file, "blk.0.ssm_conv1d.weight") == "F32");
  }
  {
    const TemporaryModel model;
    spec.set_types("q5_0,iq4_xs,BF16");
    const GgufFile file = written(spec, model);
    std::set<std::string> types;
    for (const GgufTensor& tensor : file.tensors()) types.insert(std::string(weight_type_info(*tensor.type()).name));
    CHECK(types == std::set<std::string>{"F32", "Q5_0", "IQ4_XS", "BF16"});
  }
  {
    const TemporaryModel model;
    spec.set_types("q4_k");
    spec.expert_dim = 96;
    spec.shared_expert_dim = 40;
    const GgufFile file = written(spec, model);
    CHECK(type_of(file, "blk.0.ffn_gate_exps.weight") == "Q4_K");
    CHECK(type_of(file, "blk.0.ffn_down_exps.weight") == "Q8_0");
    CHECK(type_of(file, "blk.0.ffn_down_shexp.weight") == "F16");
  }
  CHECK_THROWS_AS(spec.set_types("q4_x"), UsageError);
  CHECK_THROWS_WITH(spec.set_types("q4_k,"),
                    Catch::Contains("--type q4_k,: '' is unknown; known: q4_k_m, f32, f16, q4_0"));
}

TEST_CASE("The same spec makes the same bytes, another seed others", "[synth]") {
  const TemporaryModel first, again, other;
  SynthSpec spec = small();
  spec.num_experts = 64;  // 64 x 256 x 256 weights: put together from pieces
  const SynthReport report = write_synth_model(first.path(), spec);
  write_synth_model(again.path(), spec);
  CHECK(first.bytes() == again.bytes());
  spec.seed = 2;
  write_synth_model(other.path(), spec);
  CHECK(first.bytes() != other.bytes());
  CHECK(report.num_weights > 3 * 64 * 256 * 256 * 3);
}

TEST_CASE("Matrices have the deviation they should, drawn or put together", "[synth]") {
  for (int experts : {8, 64}) {
    const TemporaryModel model;
    SynthSpec spec = small(SynthSpec::Text::kRandom);
    spec.num_experts = experts;
    spec.types = {WeightType::kQ6_K};
    const GgufFile file = written(spec, model);
    double sum = 0, square = 0;
    std::set<std::vector<float>> rows;
    constexpr int kRows = 512;
    for (int64_t row = 0; row < kRows; ++row) {
      const std::vector<float> values = row_of(file, "blk.0.ffn_up_exps.weight", row);
      for (float v : values) sum += v, square += static_cast<double>(v) * v;
      rows.insert(values);
    }
    const double n = kRows * 256.0;
    // Variance 1 / 256. Standard error of a variance is sqrt(2 / n) = 0.4%, pieces repeat (512 rows of 4096 pieces); 3%
    // is far from both and above what Q6_K adds (steps of 1/31 of the extreme: 0.3%).
    CHECK(square / n * 256 == Approx(1).margin(0.03));
    CHECK(std::abs(sum / n) < 0.002);
    CHECK(rows.size() > kRows * 0.85);  // one piece a row here: 512 draws of 4096 meet 30 times
  }
}

TEST_CASE("The head of a chain follows its cycle in every type, and drafts go wrong where they should", "[synth]") {
  // Two bits a weight and fewer do not hold a vector of the chain: another one may come first. The grids of IQ3 hold the
  // head's, but not all that eh_proj makes of them.
  const std::set<WeightType> too_coarse = {WeightType::kQ1_0, WeightType::kIQ2_XS, WeightType::kIQ2_XXS,
                                           WeightType::kIQ1_S, WeightType::kIQ1_M};
  const std::set<WeightType> too_coarse_for_drafts = {WeightType::kIQ3_S, WeightType::kIQ3_XXS};
  for (const WeightTypeInfo& info : all_weight_types()) {
    if (too_coarse.contains(info.type)) continue;
    const TemporaryModel model;
    SynthSpec spec = small();
    spec.types = {info.type};
    spec.vocab_size = 320;
    spec.acceptance = 0.7;
    const GgufFile file = written(spec, model);
    const synth::Chain chain({.hidden_dim = spec.hidden_dim,
                              .vocab_size = spec.vocab_size,
                              .num_experts = spec.num_experts,
                              .experts_per_token = spec.experts_per_token,
                              .acceptance = spec.acceptance,
                              .overlap = spec.overlap,
                              .seed = spec.seed});
    const auto head = matrix_of(file, "output.weight"), eh_proj = matrix_of(file, "blk.2.nextn.eh_proj.weight");
    CAPTURE(info.name);
    int wrong_next = 0, wrong_draft = 0;
    for (TokenId id = 0; id < spec.vocab_size; ++id) {
      const std::vector<float> embedding = row_of(file, "token_embd.weight", id);
      wrong_next += largest_product(head, embedding) != chain.cycle().next(id);
      std::vector<float> projected;
      for (const auto& row : eh_proj) {
        projected.push_back(std::inner_product(embedding.begin(), embedding.end(), row.begin(), 0.0f));
      }
      wrong_draft += (largest_product(head, projected) == chain.cycle().next(id)) != chain.draft_is_right(id);
    }
    CHECK(wrong_next == 0);
    if (!too_coarse_for_drafts.contains(info.type)) CHECK(wrong_draft == 0);
    CHECK(chain.acceptance() == Approx(0.7).margin(0.004));  // of 155
  }
}

TEST_CASE("The dials are met", "[synth]") {
  // 1024 pairs of neighbours; scores stay alike for some 30 tokens, so about 34 of them are independent in the slow
  // half. Overlap of one such group varies by about 0.1: a standard error of 0.02, and four of them.
  synth::ChainSpec spec{.hidden_dim = 512, .vocab_size = 5000, .num_experts = 128, .experts_per_token = 8, .seed = 3};
  for (double overlap : {0.1, 0.3, 0.45, 0.7, 0.9}) {
    spec.overlap = overlap;
    CHECK(synth::Chain(spec).measured_overlap(17) == Approx(overlap).margin(0.08));
  }
  spec.overlap = 0;  // no less than by chance: 8 / 128
  CHECK(synth::Chain(spec).measured_overlap(17) == Approx(0.0625).margin(0.03));
  spec.overlap = 1;
  CHECK(synth::Chain(spec).measured_overlap(17) > 0.97);
  for (double acceptance : {0.0, 0.33, 0.8, 1.0}) {
    spec.acceptance = acceptance;
    CHECK(synth::Chain(spec).acceptance() == Approx(acceptance).margin(1e-3));
  }
  CHECK(synth::overlap_from_correlation(0, 0.1) == Approx(0.1).margin(1e-3));
  CHECK(synth::overlap_from_correlation(1, 0.1) == 1);
  CHECK(synth::overlap_from_correlation(0.5, 0.5) == Approx(2.0 / 3).margin(1e-3));  // 1/2 + asin(rho) / pi
}

TEST_CASE("A short run sees the acceptance asked for", "[synth]") {
  const synth::Chain chain({.hidden_dim = 64, .vocab_size = 5000, .acceptance = 0.75, .seed = 9});
  for (int64_t begin = 0; begin + 128 <= chain.cycle().length(); begin += 128) {
    int right = 0;
    for (int64_t place = begin; place < begin + 128; ++place) right += chain.draft_is_right(chain.cycle().id_at(place));
    CHECK(right == 96);
  }
}

TEST_CASE("The continuation that a file tells is the one it was made for", "[synth]") {
  const TemporaryModel model, random;
  SynthSpec spec = small();
  spec.seed = 18446744073709551615u;
  const SynthReport report = write_synth_model(model.path(), spec);
  const GgufFile file = GgufFile::open(model.path());
  const std::vector<TokenId> known = known_continuation(spec, 300, 50);
  CHECK(known.size() == 50);
  CHECK(known_continuation(file, 300, 50) == known);
  CHECK(known_continuation(spec, known[9], 40) == std::vector<TokenId>(known.begin() + 10, known.end()));
  CHECK(std::vector<TokenId>(report.first_ids.begin() + 1, report.first_ids.end()) ==
        known_continuation(spec, report.first_ids[0], 31));
  CHECK_FALSE(known_continuation(file, 512, 5));
  CHECK_FALSE(known_continuation(file, -1, 5));
  write_synth_model(random.path(), small(SynthSpec::Text::kRandom));
  CHECK_FALSE(known_continuation(GgufFile::open(random.path()), 300, 5));
}

TEST_CASE("The engine says the known text, with drafts accepted as the dial says", "[synth]") {
  struct Case {
    const char* architecture;
    const char* types;
    int64_t hidden_dim;
    bool fused;
  };
  for (const Case& c : {Case{"qwen35moe", "q4_k_m", 256, false}, Case{"qwen35moe", "f32", 256, true},
                        Case{"qwen35moe", "q8_0,mxfp4,iq4_nl,q5_1,bf16", 64, false},
                        Case{"qwen35", "q4_k,q6_k", 256, false}, Case{"qwen3moe", "q3_k,q2_k,iq4_xs", 256, false},
                        Case{"qwen3next", "q4_k_m", 256, false}, Case{"llama", "q4_0,q4_1,q6_k", 256, false}}) {
    const TemporaryModel file;
    SynthSpec spec = small();
    spec.architecture = c.architecture;
    spec.set_types(c.types);
    spec.hidden_dim = c.hidden_dim;
    spec.fused_gate_up = c.fused;
    if (spec.rotates_whole_heads()) spec.rope_dim = spec.head_dim;
    write_synth_model(file.path(), spec);
    CAPTURE(c.architecture, c.types);

    const Model model = Model::load(file.path(), {});
    const int mtp = spec.has_mtp() ? 3 : 0;
    SessionOptions options;
    options.max_window = mtp + 1;
    options.with_mtp = mtp > 0;
    Session session(model, options);
    DecodeOptions decode_options;
    decode_options.mtp = mtp;
    decode_options.controller = false;
    decode_options.max_new_tokens = 320;
    const std::vector<TokenId> prompt = {300, 17, 301};
    const DecodeResult result = decode(session, prompt, decode_options);
    CHECK(result.ids == known_continuation(spec, 301, 320));
    if (mtp == 0) continue;
    // Right with probability 0.8 each: 1 + 0.8 + 0.64 + 0.512 = 2.95 tokens a pass. Over 108 passes with a deviation
    // of 1.2 the mean's is 0.12, less what the even spread of wrong drafts takes off.
    const double passes = static_cast<double>(result.statistics.verify_passes);
    CHECK(320 / passes == Approx(2.95).margin(0.35));
  }
}

TEST_CASE("Activations stay finite over thousands of positions", "[synth]") {
  for (SynthSpec::Text text : {SynthSpec::Text::kChain, SynthSpec::Text::kRandom}) {
    const TemporaryModel file;
    SynthSpec spec = small(text);
    spec.num_layers = 6;
    spec.with_mtp = false;
    write_synth_model(file.path(), spec);
    const Model model = Model::load(file.path(), {});
    SessionOptions options;
    options.ctx_size = 2100;
    Session session(model, options);
    std::vector<TokenId> prompt(2048);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(i * 37 % 509);
    DecodeOptions decode_options;
    decode_options.max_new_tokens = 32;
    decode_options.ignore_eos = true;
    const DecodeResult result = decode(session, prompt, decode_options);
    CHECK(result.ids.size() == 32);
    const float* logits = session.logits(0);
    CHECK(std::all_of(logits, logits + spec.vocab_size, [](float l) { return std::isfinite(l) && std::abs(l) < 100; }));
  }
}

TEST_CASE("Specs that make no model are refused", "[synth]") {
  const auto refuse = [](auto change, const char* message) {
    SynthSpec spec;
    change(spec);
    CHECK_THROWS_AS(spec.check(), UsageError);
    CHECK_THROWS_WITH(spec.check(), message);
  };
  refuse([](SynthSpec& s) { s.hidden_dim = 100; }, "--hidden-dim 100: a multiple of 32 from 64 to 1048576 is needed");
  refuse([](SynthSpec& s) { s.vocab_size = 319; }, "--vocab-size 319: 320 to 16777216 allowed");
  refuse([](SynthSpec& s) { s.num_heads = 5; }, "--heads 5: a multiple of 2 from 2 to 65536 is needed");
  refuse([](SynthSpec& s) { s.rope_dim = 66; }, "--rope-dim 66: a multiple of 2 from 2 to 64 is needed");
  refuse([](SynthSpec& s) { s.experts_per_token = 17; }, "--experts-per-token 17: 1 to 16 allowed");
  refuse([](SynthSpec& s) { s.architecture = "bert"; },
         "--arch bert: unknown; known: qwen35moe, qwen35, qwen3next, qwen3moe, llama");
  refuse([](SynthSpec& s) { s.architecture = "qwen3moe"; },
         "--rope-dim 16: qwen3moe rotates whole heads: 64 is needed");
  refuse([](SynthSpec& s) { s.acceptance = 1.5; }, "--acceptance 1.5: 0 to 1 allowed");
  refuse([](SynthSpec& s) { s.overlap = std::nan(""); }, "--overlap nan: 0 to 1 allowed");
  refuse([](SynthSpec& s) { s.tied_head = true; },
         "--tied-head: a chain model's head differs from its embedding; add --text random");
}

TEST_CASE("A disk that refuses is an input error and leaves no file", "[synth]") {
  CHECK_THROWS_AS(write_synth_model("/nowhere/at/all.gguf", small()), InputError);
  SynthSpec whole = SynthSpec::for_shape("qwen3.6-35b-a3b");
  whole.num_layers = 1024;  // 2.6 TB in F32
  whole.types = {WeightType::kF32};
  const TemporaryModel model;
  std::error_code error;
  if (std::filesystem::space(std::filesystem::temp_directory_path(), error).available < size_t{2000} << 30) {
    CHECK_THROWS_WITH(write_synth_model(model.path(), whole),
                      Catch::Contains("GB free; make room or ask for fewer --layers"));
    CHECK_FALSE(std::filesystem::exists(model.path()));
  }
}

TEST_CASE("The command takes its defaults from the shape and checks what it is given", "[synth]") {
  const TemporaryModel model;
  const std::string path = model.path();
  const auto run = [&](std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "synth");
    return run_synth(static_cast<int>(arguments.size()), arguments.data());
  };
  CHECK(run({path.c_str(), "--type", "q4_0", "--expert-dim", "64", "--layers", "1", "--arch", "qwen3moe", "--seed",
             "7"}) == 0);
  const GgufFile file = GgufFile::open(path);
  CHECK(ModelConfig::read(file).expert_dim == 64);
  CHECK(file.get_string("foretoken.synth.seed") == "7");
  CHECK_THROWS_AS(run({}), UsageError);
  CHECK_THROWS_AS(run({path.c_str(), "--shape", "other"}), UsageError);
  CHECK_THROWS_AS(run({path.c_str(), "--type", "q9"}), UsageError);
  CHECK_THROWS_AS(run({path.c_str(), "--tied-head"}), UsageError);
  CHECK_THROWS_AS(run({path.c_str(), "--acceptance", "2"}), UsageError);
}
