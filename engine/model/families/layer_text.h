#pragma once

#include "engine/model/weights.h"
#include "kernels/base/error.h"

namespace foretoken {

// Text that several families share; see ForwardPass for what the operations mean. `Pass` is who computes: ForwardPass
// or CudaForwardPass.

/// x = x + FeedForward(rms_norm(x, ffn_norm)), behind a mixer.
template <class Pass>
void feed_forward(Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
  if (layer.is_dense()) {
    pass.add_and_norm(layer.ffn_norm, pass.inputs_of(layer.dense()));
    pass.dense(layer.dense());
  } else {
    pass.add_and_norm(layer.ffn_norm, pass.inputs_of(layer.moe()));
    pass.experts(layer.moe(), layer.layer_idx);
  }
}

/// x = x + Attention(rms_norm(x, mix_norm)), then feed_forward(). x is the residual stream.
template <class Pass>
void attention_and_feed_forward(Pass& pass, const BasicLayerWeights<typename Pass::Matrix>& layer) {
  pass.norm(layer.mix_norm, pass.inputs_of(layer.attention()));
  pass.attention(layer.attention(), layer.mixer_idx);
  feed_forward(pass, layer);
}

/// The MTP block of files that name its parts nextn (DeepSeek-V3's report, 2.2): one layer with attention over
///   u = join . [rms_norm(embedding of the token, embed_norm); rms_norm(hidden of the position before, hidden_norm)]
struct NextnBlock {
  /// Keys and values of all rows.
  template <class Pass>
  static void take_in(Pass& pass, const BasicMtpWeights<typename Pass::Matrix>& mtp, const typename Pass::Ids& ids,
                      const typename Pass::Hidden& hidden) {
    const auto& attention = mtp.layer.attention();
    pass.embed(mtp.embed, ids);
    pass.join(mtp, hidden);
    pass.add_and_norm(mtp.layer.mix_norm, pass.inputs_of(attention));
    pass.store_keys_and_values(attention, mtp.layer.mixer_idx);
  }

  /// The rest of the block, of the rows that are left, to `to`: what the head reads, and the next block's hidden.
  template <class Pass>
  static void finish(Pass& pass, const BasicMtpWeights<typename Pass::Matrix>& mtp, typename Pass::Rows& to) {
    const auto& attention = mtp.layer.attention();
    pass.norm_moved(mtp.layer.mix_norm, pass.inputs_of(attention));
    pass.attend_stored(attention, mtp.layer.mixer_idx);
    feed_forward(pass, mtp.layer);
    pass.norm_to(mtp.head_norm, pass.inputs_of(mtp.head), to);
  }
};

/// Of families that have no MTP layer: their files hold none, and nobody gets here.
struct NoMtpBlock {
  template <class Pass>
  static void take_in(Pass&, const BasicMtpWeights<typename Pass::Matrix>&, const typename Pass::Ids&,
                      const typename Pass::Hidden&) {
    FT_CHECK(false);
  }
  template <class Pass>
  static void finish(Pass&, const BasicMtpWeights<typename Pass::Matrix>&, typename Pass::Rows&) {
    FT_CHECK(false);
  }
};

}  // namespace foretoken
