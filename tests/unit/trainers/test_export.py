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
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from tests.support import small
from trainers.bare_sweep import BareSite, BareSweep
from trainers.contract.record_lines import RecordsFile
from trainers.contract.scales import SCALES
from trainers.contract.spec import ModelShape
from trainers.contract.stage import STATE
from trainers.data import stdlib
from trainers.data.prepare import prepare
from trainers.data.request import CorpusRequest
from trainers.export import configuration, export_model, export_state, main
from trainers.model.decoder import build_model
from trainers.planning.spec_lines import TrialLine
from trainers.step.optim import build_optimizer
from trainers.training.checkpoint import CheckpointError, TrainState, load_checkpoint, read_weights
from trainers.training.stage import run_stage

CPU = torch.device("cpu")
LLAMA = ModelShape(2, 24, 6, 2, 4, 40, small.SHAPE.vocab_size, rope_theta=500.0, norm_epsilon=1e-4)
QWEN = replace(LLAMA, qk_norm=True, head_width=6)
EXPERTS = replace(QWEN, num_experts=5, experts_per_token=2)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def logits(weights: dict[str, Tensor], config: dict[str, Any], tokens_L: Tensor) -> Tensor:
    """Float64 `[L, V]` by the conventions of the Hugging Face Llama: one projection each for query, key and value,
    rotation by the negated second half, key-value heads repeated in place, softmax over a causal mask. With experts by
    those of Qwen3-MoE: every position through its best ones, one after the other."""
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

    def gated(x: Tensor, mlp: str) -> Tensor:
        gate, up = x @ w[f"{mlp}gate_proj.weight"].T, x @ w[f"{mlp}up_proj.weight"].T
        return (gate * torch.sigmoid(gate) * up) @ w[f"{mlp}down_proj.weight"].T

    def mixed_experts(x: Tensor, mlp: str) -> Tensor:
        share, expert = (x @ w[f"{mlp}gate.weight"].T).softmax(-1).topk(config["num_experts_per_tok"])
        share = share / share.sum(-1, keepdim=True)
        rows = [
            sum(part * gated(row, f"{mlp}experts.{one}.") for part, one in zip(parts, ones.tolist(), strict=True))
            for row, parts, ones in zip(x, share, expert, strict=True)
        ]
        return torch.stack(rows)  # type: ignore[arg-type]

    x = w["model.embed_tokens.weight"][tokens_L]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        y = norm(x, f"{layer}input_layernorm.weight")
        query, key, value = (project(y, layer, part, count) for part, count in (("q", heads), ("k", kv), ("v", kv)))
        if config["model_type"] != "llama":
            query = norm(query, f"{layer}self_attn.q_norm.weight")
            key = norm(key, f"{layer}self_attn.k_norm.weight")
        query, key = turn(query), turn(key).repeat_interleave(heads // kv, 0)
        scores = query @ key.transpose(1, 2) / math.sqrt(width) + mask
        mixed = scores.softmax(-1) @ value.repeat_interleave(heads // kv, 0)
        x = x + mixed.transpose(0, 1).reshape(length, heads * width) @ w[f"{layer}self_attn.o_proj.weight"].T
        y = norm(x, f"{layer}post_attention_layernorm.weight")
        x = x + (mixed_experts(y, f"{layer}mlp.") if config["model_type"] == "qwen3_moe" else gated(y, f"{layer}mlp."))
    return norm(x, "model.norm.weight") @ w["lm_head.weight"].T


def exported(shape: ModelShape, heads: int, folder: Path) -> tuple[Tensor, Tensor]:
    """A model with no gain at one, written into `folder`: tokens `[L]` and what it says of them, `[L, V]`."""
    spec = replace(small.spec(), shape=shape)
    model = build_model(shape, spec.context, 0, CPU, heads)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # gains too: ones would hide a gain that is left out or taken twice
            parameter.mul_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
        tokens = torch.randint(0, shape.vocab_size, (spec.context,), generator=generator)
        ours = model.head(model(tokens[None, :, None]))[0]
    export_model(dict(model.named_parameters()), spec, small.corpus().directory, folder)
    total = sum(tensor.numel() for tensor in read(folder)[0].values())
    assert total == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("extra_blocks"))
    return tokens, ours


FAMILIES = {"LlamaForCausalLM": LLAMA, "Qwen3ForCausalLM": QWEN, "Qwen3MoeForCausalLM": EXPERTS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("heads", [1, 3])
def test_the_exported_weights_compute_what_the_model_computes(family: str, heads: int, tmp_path: Path) -> None:
    tokens, ours = exported(FAMILIES[family], heads, tmp_path)
    weights, config = read(tmp_path)
    torch.testing.assert_close(ours.double(), logits(weights, config, tokens), rtol=1e-4, atol=1e-4)
    assert config["architectures"] == [family]
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
        export_model(read_weights(state), foreign, corpus, tmp_path / "other")


@pytest.mark.real
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_what_the_model_computes(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra `eval` is not installed")
    tokens, ours = exported(FAMILIES[family], 1, tmp_path)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert type(model).__name__ == family
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens[None]).logits[0], ours, rtol=0, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    text = "def f(x):\n\treturn  x  # ümläut <|endoftext|> ."
    own = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer(text)["input_ids"]
    assert ids == own.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == model.config.eos_token_id


def test_a_text_begins_in_an_exported_model_as_it_did_in_training(tmp_path: Path) -> None:
    """Llama 3's tokenizer puts a token in front of every text, GPT-2's does not: neither was trained on."""
    tokenizer = Tokenizer.from_file(str(small.corpus().directory / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|begin|>"])
    template = TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", small.SHAPE.vocab_size)])
    tokenizer.post_processor = template
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    size = small.SHAPE.vocab_size + 1
    given = str(tmp_path / "tokenizer.json")
    files = (str(stdlib.library_root() / "json/*.py"),)
    corpus = prepare(CorpusRequest("files", files, 0.3, vocab_size=size, tokenizer_path=given), tmp_path / "corpora")
    shape = replace(LLAMA, vocab_size=size)
    spec = replace(small.spec(), shape=shape, tokenizer_fingerprint=corpus.tokenizer_fingerprint)
    weights = dict(build_model(shape, spec.context, 0, CPU).named_parameters())
    export_model(weights, spec, corpus.directory, tmp_path / "model")
    found = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    text = "def f(x):"
    assert found.encode(text).ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text).ids == [size - 1, *found.encode(text).ids]


def test_experts_without_normalised_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape.qk_norm: False with 128 experts cannot be exported"):
        configuration(replace(SCALES["10b-a1b"].shape, qk_norm=False), 8, 0)


def test_weights_alone_are_a_third_and_nothing_goes_on_from_them(tmp_path: Path) -> None:
    spec = small.spec(total_steps=12)
    whole = small.job(spec, tmp_path / "whole")
    alone = replace(whole, store=str(tmp_path / "alone"), keep_state=False, keep_weights=True)
    states = [Path(job.store) / job.node / STATE for job in (whole, alone)]
    for job in (whole, alone):
        run_stage(job, small.corpus())
    sizes = [sum(file.stat().st_size for file in state.glob("*.safetensors")) for state in states]
    assert sizes[0] > 2.5 * sizes[1]
    first, second = (read_weights(state) for state in states)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = build_model(spec.shape, spec.context, 0, CPU)
    with pytest.raises(CheckpointError, match="holds weights alone"):
        load_checkpoint(states[1], TrainState(model, build_optimizer(model, spec.optimizer)))
