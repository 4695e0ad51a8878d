"""A trained model in the files that the Hugging Face libraries read: weights, configuration, tokenizer.

The dense decoder is Llama's, or Qwen3's where queries and keys are normalised, a mixture of experts Qwen3's: the same order
of operations, rotary positions over halves, a softmax router whose chosen shares sum to one, untied embeddings. Only names
differ, and joined projections are cut apart. What a method adds for training alone (further heads) is left behind. A model
has learnt positions up to its training context and no further.
"""

from __future__ import annotations

import argparse
import json
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.contract.errors import InputError
from trainers.contract.faults import end_of
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import ModelShape, TrialSpec, own, spec_from_dict
from trainers.contract.writing import write_atomically
from trainers.data.manifest import TOKENIZER_FILE, read_manifest
from trainers.methods import phases_of
from trainers.model.decoder import Decoder
from trainers.training.checkpoint import CheckpointError, read_note, read_weights

PROGRAM = "python -m trainers.export"
WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_CONFIG_FILE = "model.safetensors", "config.json", "tokenizer_config.json"
SPEC_ID = "spec_id"
"""Key of the weights' metadata: which trial the model is."""


def named_weights(shape: ModelShape, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A decoder's weights under the names of the Hugging Face model, float32 on the CPU, each contiguous."""
    query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    found = {
        "model.embed_tokens.weight": own["embedding.weight"],
        "model.norm.weight": own["norm.weight"],
        "lm_head.weight": own["head.weight"],
    }
    for index in range(shape.num_layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        joined = torch.split(own[f"{ours}attention.query_key_value.weight"], [query, key, key])
        found |= {
            f"{theirs}input_layernorm.weight": own[f"{ours}attention_norm.weight"],
            **{f"{theirs}self_attn.{part}_proj.weight": joined[place] for place, part in enumerate("qkv")},
            f"{theirs}self_attn.o_proj.weight": own[f"{ours}attention.output.weight"],
            f"{theirs}post_attention_layernorm.weight": own[f"{ours}mlp_norm.weight"],
        }
        if shape.qk_norm:
            found |= {
                f"{theirs}self_attn.q_norm.weight": own[f"{ours}attention.query_norm.weight"],
                f"{theirs}self_attn.k_norm.weight": own[f"{ours}attention.key_norm.weight"],
            }
        if not shape.num_experts:
            gate_up, down = own[f"{ours}mlp.gate_up.weight"], own[f"{ours}mlp.down.weight"]
            found |= _gated(f"{theirs}mlp.", gate_up, down)
            continue
        found[f"{theirs}mlp.gate.weight"] = own[f"{ours}mlp.router.weight"]
        experts = zip(own[f"{ours}mlp.gate_up"], own[f"{ours}mlp.down"], strict=True)
        for expert, (gate_up, down) in enumerate(experts):
            found |= _gated(f"{theirs}mlp.experts.{expert}.", gate_up, down)
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in found.items()}


def _gated(prefix: str, gate_up: Tensor, down: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return {
        f"{prefix}gate_proj.weight": gate,
        f"{prefix}up_proj.weight": up,
        f"{prefix}down_proj.weight": down,
    }


def configuration(shape: ModelShape, context: int, separator: int) -> dict[str, Any]:
    """`config.json`: keys of `LlamaConfig`, `Qwen3Config` or `Qwen3MoeConfig`. `separator` is the token that ends a document.

    Raises `InputError` for a shape that none of them can express.
    """
    if shape.num_experts and not shape.qk_norm:
        raise InputError(
            f"shape.qk_norm: False with {shape.num_experts} experts cannot be exported; Qwen3's mixture of experts normalises "
            "queries and keys"
        )
    experts: dict[str, Any] = {}
    if shape.num_experts:
        family, name = "qwen3_moe", "Qwen3MoeForCausalLM"
        experts = {
            "moe_intermediate_size": shape.mlp_width,
            "num_experts": shape.num_experts,
            "num_experts_per_tok": shape.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    else:
        family, name = ("qwen3", "Qwen3ForCausalLM") if shape.qk_norm else ("llama", "LlamaForCausalLM")
    return {
        "architectures": [name],
        "model_type": family,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        **experts,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_width,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rope_theta,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": separator,
        "eos_token_id": separator,
        "torch_dtype": "float32",
    }


def export_model(weights: Mapping[str, Tensor], spec: TrialSpec, corpus: Path, out: Path) -> None:
    """Write a decoder's `weights` and the tokenizer of the prepared corpus in the folder `corpus` into the folder `out`.

    Raises `InputError` when the corpus is of another tokenizer, `BrokenCorpus` when it is none.
    """
    from safetensors.torch import save_file

    manifest = read_manifest(corpus)
    if manifest.tokenizer_fingerprint != spec.tokenizer_fingerprint:
        raise InputError(
            f"{corpus}: its tokenizer is {manifest.tokenizer_fingerprint}, the model's {spec.tokenizer_fingerprint}"
        )
    plain = configuration(spec.shape, spec.context, manifest.separator)
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", SPEC_ID: spec.spec_id}
    save_file(named_weights(spec.shape, weights), out / WEIGHTS_FILE, metadata=metadata)
    # Written for its owner alone; like the files beside it, whoever may read the folder shall.
    (out / WEIGHTS_FILE).chmod(stat.S_IMODE(out.stat().st_mode) & 0o666)
    tokenizer = json.loads((corpus / TOKENIZER_FILE).read_text(encoding="utf-8"))
    # A published one may put a token of its own in front of every text, which training never did.
    write_atomically(out / TOKENIZER_FILE, json.dumps({**tokenizer, "post_processor": None}, ensure_ascii=False))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": spec.context,
        "clean_up_tokenization_spaces": False,
    }
    name = _name_of(manifest.separator, tokenizer)
    settings |= {"bos_token": name, "eos_token": name} if name else {}
    write_atomically(out / TOKENIZER_CONFIG_FILE, json.dumps(settings, indent=1))
    write_atomically(out / CONFIG_FILE, json.dumps(plain, indent=1))


def _name_of(token: int, tokenizer: Mapping[str, Any]) -> str | None:
    """What a tokenizer.json calls a token: one that was added, else one of the vocabulary."""
    added = {each["id"]: each["content"] for each in tokenizer.get("added_tokens", [])}
    vocabulary = tokenizer["model"].get("vocab")
    known = {number: name for name, number in vocabulary.items()} if isinstance(vocabulary, dict) else {}
    return added.get(token, known.get(token))


def export_state(state: Path, corpus: Path, out: Path) -> TrialSpec:
    """Export the end state of a stage; returns what was trained. Raises `CheckpointError` for a state that is damaged."""
    spec = own(spec_from_dict(read_note(state)["spec"]))
    with torch.device("meta"):  # its names and shapes alone
        model = Decoder(spec.shape, spec.context, number_of_heads(phases_of(spec)))
    weights = read_weights(state)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise CheckpointError(f"{state.name}: the state is that of another model")
    export_model(weights, spec, corpus, out)
    return spec


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m trainers.export STATE --corpus DIR --out DIR`; returns the exit code."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Write a trained model in Hugging Face files.")
    parser.add_argument(
        "state",
        type=Path,
        help="folder of a stage's state, of `trainers.run`; `trainers.run --export DIR` does this for all trials",
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of the prepared corpus")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    given = parser.parse_args(arguments)
    try:
        spec = export_state(given.state, given.corpus, given.out)
    except Exception as error:
        return end_of(error, PROGRAM, given.out.parent, debug=given.debug)
    print(f"{given.out}: {spec.scale} {spec.method}, {spec.schedule.total_steps} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
