#include "engine/model/model_config.h"

#include <fmt/format.h>

#include "engine/gguf/gguf.h"
#include "engine/model/families/family.h"
#include "engine/model/metadata.h"
#include "engine/model/mtp_layout.h"
#include "engine/text/utf8.h"
#include "kernels/base/error.h"

namespace foretoken {

ModelConfig ModelConfig::read(const GgufFile& file) {
  ModelConfig c;
  if (const std::string_view type = file.get_string("general.type", "model"); type != "model") {
    throw InputError(
        fmt::format("{}: general.type: '{}' is not a model; name the model's own file", file.path(), printable(type)));
  }
  c.architecture = file.get_string("general.architecture");
  const Family* family = find_family(c.architecture);
  if (family == nullptr) {
    throw InputError(fmt::format("{}: general.architecture: '{}' is not supported; {} are", file.path(),
                                 printable(c.architecture), family_names()));
  }
  c.name = file.get_string("general.name", "");
  const Metadata keys(file, c.architecture);
  const MtpLayout blocks = read_mtp_layout(keys, family->most_mtp_layers);
  c.num_layers = blocks.num_layers;
  c.num_mtp_layers = blocks.num_mtp_layers;
  c.mtp_absence = blocks.absence;
  c.hidden_dim = keys.integer("embedding_length", 1, kMaxDim);
  c.context_length = keys.integer("context_length", 1, kMaxContext);
  c.norm_eps = static_cast<float>(keys.number("attention.layer_norm_rms_epsilon"));
  if (!(c.norm_eps >= 0 && c.norm_eps < 1))
    keys.fail("attention.layer_norm_rms_epsilon", fmt::format("{} is outside 0 to 1", c.norm_eps));

  c.recurrent.assign(c.num_layers, false);
  family->read_config(keys, c);

  const GgufTensor* embed = file.find_tensor("token_embd.weight");
  if (embed == nullptr) throw InputError(fmt::format("{}: tensor token_embd.weight is missing", file.path()));
  if (embed->shape.size() != 2 || embed->shape[0] != c.hidden_dim || embed->shape[1] > (int64_t{1} << 30)) {
    throw InputError(fmt::format("{}: tensor token_embd.weight: shape [{}]; [{}, vocabulary] expected", file.path(),
                                 fmt::join(embed->shape, ", "), c.hidden_dim));
  }
  c.vocab_size = embed->shape[1];
  keys.check_unread(c);
  return c;
}

}  // namespace foretoken
