"""What no search space may say, although every single value has its type: the rules between values.

A rule names the keys that it reads and is left out when one of them is broken itself, so that one mistake makes one
message. Ranges of a method's parameters are asked of the method. Text and line numbers are left to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from sweeper.space.errors import choose_from, closest, shown
from sweeper.space.findings import Draft, Finding
from sweeper.space.rules_axes import axes_allowed, equal_learning_rates, trials_possible, values_possible
from sweeper.space.trials import decay_steps
from sweeper.space.yaml_lines import Location
from trainers.contract.flops import count_parameters
from trainers.contract.scales import SCALES
from trainers.data.sources import SOURCES
from trainers.methods import BASELINE, METHODS

LARGEST_EMBEDDING_SHARE = 0.95
"""Of a model's parameters. A vocabulary beyond it leaves no transformer to measure (nano with 128,256 tokens: 0.996)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`check` runs when every top-level key of `needs` is sound."""

    needs: tuple[str, ...]
    check: Callable[[Draft], Iterator[Finding]]


def findings(draft: Draft) -> Iterator[Finding]:
    """Everything that the rules object to."""
    for rule in RULES:
        if not draft.broken.intersection(rule.needs):
            yield from rule.check(draft)


def _scales(draft: Draft) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, name in enumerate(draft.space.scales):
        if name not in SCALES:
            yield Finding(("scales", index), f"{shown(name)} is not a scale; {choose_from(name, SCALES)}")
        elif name in seen:
            yield Finding(("scales", index), f"{shown(name)} is given twice")
        seen.add(name)


def _corpus(draft: Draft) -> Iterator[Finding]:
    corpus = draft.space.corpus
    source = SOURCES.get(corpus.source)
    if source is None:
        yield Finding(
            ("corpus", "source"), f"{shown(corpus.source)} is not a source; {choose_from(corpus.source, SOURCES)}"
        )
    elif source.takes_paths and not corpus.paths:
        yield Finding(
            ("corpus",), f"missing; source: {source.name} reads text files, folders or globs: paths: [...]", key="paths"
        )
    elif corpus.paths and not source.takes_paths:
        readers = ", ".join(name for name, source in SOURCES.items() if source.takes_paths)
        yield Finding(("corpus", "paths"), f"{shown(corpus.paths)} is read with source: {readers} only")


def _tokenizer(draft: Draft) -> Iterator[Finding]:
    tokenizer = draft.space.tokenizer
    if tokenizer.kind == "bpe" and tokenizer.path is not None:
        yield Finding(("tokenizer", "path"), f"{shown(tokenizer.path)} is read with kind: file only")
    if tokenizer.kind == "file":
        for key, what in (("path", "the tokenizer.json"), ("vocab_size", "the number of its tokens")):
            if key not in tokenizer.model_fields_set or getattr(tokenizer, key) is None:
                yield Finding(("tokenizer",), f"missing; kind: file needs {what}", key=key)


def _vocabulary(draft: Draft) -> Iterator[Finding]:
    vocab_size = draft.space.tokenizer.vocab_size
    for name in dict.fromkeys(draft.space.scales):
        if name not in SCALES:
            continue
        count = count_parameters(SCALES[name].with_vocabulary(vocab_size))
        share = 2 * count.embedding / count.total
        if share > LARGEST_EMBEDDING_SHARE:
            yield Finding(
                ("tokenizer", "vocab_size"),
                f"{vocab_size} tokens would make {share:.1%} of {name} embeddings; at most "
                f"{LARGEST_EMBEDDING_SHARE:.0%} is allowed: choose fewer tokens or a larger scale",
            )


def _whole_sequences(draft: Draft) -> Iterator[Finding]:
    space = draft.space
    if space.tokens_per_step % space.context:
        below = space.tokens_per_step // space.context * space.context
        near = " or ".join(str(value) for value in (below, below + space.context) if value)
        yield Finding(
            ("tokens_per_step",),
            f"{space.tokens_per_step} is not a multiple of the context of {space.context}; nearest: {near}",
        )


def _validation(draft: Draft) -> Iterator[Finding]:
    tokens, context = draft.space.validation_tokens, draft.space.context
    if tokens < context:
        yield Finding(("validation_tokens",), f"{tokens} is less than one context of {context}")


def _seeds(draft: Draft) -> Iterator[Finding]:
    seeds = draft.space.seeds
    for stage, given in (("tuning", seeds.tuning), ("confirmation", seeds.confirmation)):
        for index, seed in enumerate(given):
            if seed in given[:index]:
                yield Finding(("seeds", stage, index), f"{seed} is given twice")


def _gpus(draft: Draft) -> Iterator[Finding]:
    gpus = draft.space.resources.gpus
    if not isinstance(gpus, str) and gpus > 1 and gpus != int(gpus):
        yield Finding(("resources", "gpus"), f"{gpus:g} is above 1 and not whole; only one GPU can be shared")


def _ranks(draft: Draft) -> Iterator[Finding]:
    resources = draft.space.resources
    if resources.ranks > 1 and resources.gpus != 0:
        yield Finding(("resources", "ranks"), f"{resources.ranks} is for gpus: 0; with GPUs a trial has a rank on each")
    elif resources.cpus % resources.ranks:
        yield Finding(("resources", "ranks"), f"{resources.ranks} ranks cannot share {resources.cpus} cpus alike")


def _lanes(draft: Draft) -> Iterator[Finding]:
    space = draft.space
    sequences, ranks = space.tokens_per_step // space.context, space.resources.num_ranks
    if sequences % ranks and not space.tokens_per_step % space.context:
        yield Finding(
            ("tokens_per_step",),
            f"{space.tokens_per_step} are {sequences} sequences of {space.context}, which {ranks} ranks cannot share alike",
        )


def _methods(draft: Draft) -> Iterator[Finding]:
    given = [arm.name for arm in draft.arms]
    unknown = [name for name in given if name not in METHODS]
    for name in unknown:
        yield Finding(("methods", name), f"unknown method; {choose_from(name, METHODS)}")
    if BASELINE not in given and BASELINE not in [closest(name, METHODS) for name in unknown]:
        yield Finding(("methods",), "missing; every other method is held against it", key=BASELINE)


def _budgets(draft: Draft) -> Iterator[Finding]:
    schedule = draft.space.schedule
    for arm in draft.arms:
        if arm.budgets is None:
            continue
        place = ("methods", arm.name, "budgets")
        ladders: dict[str, tuple[int, ...]] = {"confirmation": arm.budgets.confirmation}
        named: list[tuple[Location, int]] = []
        if isinstance(arm.budgets.tuning, int):
            named.append(((*place, "tuning"), arm.budgets.tuning))
        else:
            ladders = {"tuning": arm.budgets.tuning, **ladders}
        for stage, ladder in ladders.items():
            named += [((*place, stage, index), total) for index, total in enumerate(ladder)]
        for location, total in named:
            decay = decay_steps(schedule, total)
            if schedule.warmup_steps + decay > total:
                yield Finding(
                    location,
                    f"{total} steps are fewer than warm-up plus decay ({schedule.warmup_steps} + {decay})",
                )
            elif schedule.decay_fraction > 0 and decay == 0:
                yield Finding(
                    location, f"{total} steps have no decay: {schedule.decay_fraction:g} of them rounds to 0 steps"
                )
        for stage, ladder in ladders.items():
            for index, (before, total) in enumerate(pairwise(ladder), start=1):
                if total <= before:
                    yield Finding(
                        (*place, stage, index), f"{total} is not above the {before} before it; budgets increase"
                    )


RULES = (
    Rule(("scales",), _scales),
    Rule(("corpus",), _corpus),
    Rule(("tokenizer",), _tokenizer),
    Rule(("tokenizer", "scales"), _vocabulary),
    Rule(("context", "tokens_per_step"), _whole_sequences),
    Rule(("context", "validation_tokens"), _validation),
    Rule(("seeds",), _seeds),
    Rule(("resources",), _gpus),
    Rule(("resources",), _ranks),
    Rule(("context", "tokens_per_step", "resources"), _lanes),
    Rule(("methods",), _methods),
    Rule(("methods", "schedule"), _budgets),
    Rule(("methods",), axes_allowed),
    Rule(("methods", "context"), values_possible),
    Rule(("methods",), equal_learning_rates),
    Rule(("methods", "search", "seeds"), trials_possible),
)
