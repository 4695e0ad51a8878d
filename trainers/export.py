"""A trained model in the files that the Hugging Face libraries read: weights, configuration, tokenizer.

The dense decoder is Llama's, or Qwen3's where queries and keys are normalised: the same order of operations, rotary
positions over halves, untied embeddings. Only names differ, and joined projections are cut apart. What a method adds for
training alone (further heads) is left behind. A model has learnt positions up to its training context and no further.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.contract.errors import InputError
from trainers.contract.faults import end_of
from trainers.contract.schedule import number_of_heads
from trainers.contract.spec import ModelShape, TrialSpec, own, spec_from_dict
from trainers.contract.writing import write_atomically
from trainers.data.manifest import TOKENIZER_FILE, Manifest, read_manifest
from trainers.methods import phases_of
from trainers.model.decoder import Decoder, build_model
from trainers.step.optim import build_optimizer
from trainers.training.checkpoint import TrainState, load_checkpoint, read_note

PROGRAM = "python -m trainers.export"
WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_CONFIG_FILE = "model.safetensors", "config.json", "tokenizer_config.json"


def named_weights(model: Decoder) -> dict[str, Tensor]:
    """The weights under the names of the Hugging Face model, float32 on the CPU, each contiguous."""
    shape = model.shape
    query, key = shape.num_heads * shape.head_width, shape.num_kv_heads * shape.head_width
    own = model.state_dict()
    found = {
        "model.embed_tokens.weight": own["embedding.weight"],
        "model.norm.weight": own["norm.weight"],
        "lm_head.weight": own["head.weight"],
    }
    for index in range(shape.num_layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        joined = own[f"{ours}attention.query_key_value.weight"].split((query, key, key))
        gate, up = own[f"{ours}mlp.gate_up.weight"].chunk(2)
        found |= {
            f"{theirs}input_layernorm.weight": own[f"{ours}attention_norm.weight"],
            **{f"{theirs}self_attn.{part}_proj.weight": joined[place] for place, part in enumerate("qkv")},
            f"{theirs}self_attn.o_proj.weight": own[f"{ours}attention.output.weight"],
            f"{theirs}post_attention_layernorm.weight": own[f"{ours}mlp_norm.weight"],
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": own[f"{ours}mlp.down.weight"],
        }
        if shape.qk_norm:
            found |= {
                f"{theirs}self_attn.q_norm.weight": own[f"{ours}attention.query_norm.weight"],
                f"{theirs}self_attn.k_norm.weight": own[f"{ours}attention.key_norm.weight"],
            }
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in found.items()}


def configuration(shape: ModelShape, context: int, separator: int) -> dict[str, Any]:
    """`config.json`: keys of `LlamaConfig` or `Qwen3Config`. `separator` is the token that ends a document.

    Raises `InputError` for a mixture of experts, whose files have another layout.
    """
    if shape.num_experts:
        raise InputError(f"shape.num_experts: {shape.num_experts}; only dense decoders (0 experts) can be exported")
    family, name = ("qwen3", "Qwen3ForCausalLM") if shape.qk_norm else ("llama", "LlamaForCausalLM")
    return {
        "architectures": [name],
        "model_type": family,
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
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


def export_model(model: Decoder, spec: TrialSpec, corpus: Path, out: Path) -> None:
    """Write `model` and the tokenizer of the prepared corpus in the folder `corpus` into the folder `out`.

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
    save_file(named_weights(model), out / WEIGHTS_FILE, metadata={"format": "pt", "spec_id": spec.spec_id})
    shutil.copyfile(corpus / TOKENIZER_FILE, out / TOKENIZER_FILE)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": spec.context}
    name = _separator_name(corpus, manifest)
    tokenizer |= {"bos_token": name, "eos_token": name} if name else {}
    write_atomically(out / TOKENIZER_CONFIG_FILE, json.dumps(tokenizer, indent=1))
    write_atomically(out / CONFIG_FILE, json.dumps(plain, indent=1))


def _separator_name(corpus: Path, manifest: Manifest) -> str | None:
    tokens = json.loads((corpus / TOKENIZER_FILE).read_text(encoding="utf-8")).get("added_tokens", [])
    return next((str(token["content"]) for token in tokens if token["id"] == manifest.separator), None)


def export_state(state: Path, corpus: Path, out: Path) -> TrialSpec:
    """Export the end state of a stage; returns what was trained. Raises `CheckpointError` for a state that is damaged."""
    spec = own(spec_from_dict(read_note(state)["spec"]))
    heads = number_of_heads(phases_of(spec))
    model = build_model(spec.shape, spec.context, spec.seed, torch.device("cpu"), heads)
    load_checkpoint(state, TrainState(model, build_optimizer(model, spec.optimizer)))
    export_model(model, spec, corpus, out)
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
