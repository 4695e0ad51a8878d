"""Exported models compute what ours compute, by the Llama forward pass written from its own conventions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from tests.support import small
from trainers.bare_sweep import BareSite, BareSweep
from trainers.contract.record_lines import RecordsFile
from trainers.contract.scales import SCALES
from trainers.contract.spec import ModelShape
from trainers.contract.stage import STATE
from trainers.export import configuration, export_model, export_state, main
from trainers.model.decoder import build_model
from trainers.planning.spec_lines import TrialLine
from trainers.training.checkpoint import CheckpointError
from trainers.training.stage import run_stage

CPU = torch.device("cpu")
LLAMA = ModelShape(2, 24, 6, 2, 4, 40, small.SHAPE.vocab_size, rope_theta=500.0, norm_epsilon=1e-4)
QWEN = replace(LLAMA, qk_norm=True, head_width=6)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def logits(weights: dict[str, Tensor], config: dict[str, Any], tokens_L: Tensor) -> Tensor:
    """Float64 `[L, V]` by the conventions of the Hugging Face Llama: one projection each for query, key and value,
    rotation by the negated second half, key-value heads repeated in place, softmax over a causal mask."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, kv, width = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    length = len(tokens_L)
    frequency = 1 / config["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
    angle = torch.outer(torch.arange(length).double(), frequency)
    angle = torch.cat((angle, angle), -1)
    mask = torch.full((length, length), -math.inf).double().triu(1)

    def norm(x: Tensor, name: str) -> Tensor:
        return w[name] * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config["rms_norm_eps"])

    def turn(x: Tensor) -> Tensor:
        first, second = x[..., : width // 2], x[..., width // 2 :]
        return x * angle.cos() + torch.cat((-second, first), -1) * angle.sin()

    def project(x: Tensor, layer: str, part: str, count: int) -> Tensor:
        return (x @ w[f"{layer}self_attn.{part}_proj.weight"].T).view(length, count, width).transpose(0, 1)

    x = w["model.embed_tokens.weight"][tokens_L]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        y = norm(x, f"{layer}input_layernorm.weight")
        query, key, value = (project(y, layer, part, count) for part, count in (("q", heads), ("k", kv), ("v", kv)))
        if config["model_type"] == "qwen3":
            query = norm(query, f"{layer}self_attn.q_norm.weight")
            key = norm(key, f"{layer}self_attn.k_norm.weight")
        query, key = turn(query), turn(key).repeat_interleave(heads // kv, 0)
        scores = query @ key.transpose(1, 2) / math.sqrt(width) + mask
        mixed = scores.softmax(-1) @ value.repeat_interleave(heads // kv, 0)
        x = x + mixed.transpose(0, 1).reshape(length, heads * width) @ w[f"{layer}self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}post_attention_layernorm.weight")
        gate, up = y @ w[f"{layer}mlp.gate_proj.weight"].T, y @ w[f"{layer}mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[f"{layer}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


@pytest.mark.parametrize("shape", [LLAMA, QWEN])
@pytest.mark.parametrize("heads", [1, 3])
def test_the_exported_weights_compute_what_the_model_computes(shape: ModelShape, heads: int, tmp_path: Path) -> None:
    spec = replace(small.spec(), shape=shape)
    model = build_model(shape, spec.context, 0, CPU, heads)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # gains too: ones would hide a gain that is left out or taken twice
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        tokens = torch.randint(0, shape.vocab_size, (spec.context,), generator=generator)
        ours = model.head(model(tokens[None, :, None]))[0]
    export_model(model, spec, small.corpus().directory, tmp_path)
    weights, config = read(tmp_path)
    torch.testing.assert_close(ours.double(), logits(weights, config, tokens), rtol=1e-4, atol=1e-4)
    total = sum(tensor.numel() for tensor in weights.values())
    assert total == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("extra_blocks"))
    assert config["architectures"] == ["Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    special = json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"]
    assert tokenizer.token_to_id(special) == config["eos_token_id"]


def test_a_list_of_trials_leaves_its_models(tmp_path: Path) -> None:
    specs = [small.spec(total_steps=12), small.spec("tst", total_steps=20, bag_size=2, step_ratio=0.2)]
    site = BareSite(tmp_path / "stages", "cpu", "eager", export=tmp_path / "models")
    trials = tuple(TrialLine(spec) for spec in specs)
    with RecordsFile(tmp_path / "records.jsonl") as records:
        BareSweep(trials, small.corpus(), site, records, lambda line: None).run()
    assert {folder.name for folder in site.export.iterdir()} == {spec.spec_id for spec in specs}  # type: ignore[union-attr]
    assert not list(site.scratch.glob(f"*/{STATE}"))
    weights, config = read(tmp_path / "models" / specs[1].spec_id)
    untrained = build_model(small.SHAPE, 8, 0, CPU).state_dict()
    assert not torch.equal(weights["lm_head.weight"], untrained["head.weight"])
    tokens = torch.tensor(small.corpus().validation(8))
    assert bool(logits(weights, config, tokens).isfinite().all())


def test_one_state_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = small.spec(total_steps=12)
    run_stage(small.job(spec, tmp_path / "stages"), small.corpus())
    state, corpus = tmp_path / "stages" / spec.spec_id / STATE, small.corpus().directory
    assert main([str(state), "--corpus", str(corpus), "--out", str(tmp_path / "model")]) == 0
    assert "test baseline, 12 steps" in capsys.readouterr().out
    assert main([str(state), "--corpus", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert "no prepared corpus" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    with pytest.raises(CheckpointError):
        export_state(tmp_path, corpus, tmp_path / "other")
    foreign = replace(spec, tokenizer_fingerprint="another")
    with pytest.raises(ValueError, match=r"its tokenizer is .*, the model's another"):
        export_model(build_model(spec.shape, 8, 0, CPU), foreign, corpus, tmp_path / "other")


def test_a_mixture_of_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="only dense decoders"):
        configuration(SCALES["10b-a1b"].shape, 8, 0)
