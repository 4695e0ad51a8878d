"""How much text the runs of a search space read, from the file alone: the same on every machine, whatever is found.

A corpus of any size is prepared up to it, so that it is part of what the file asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sweeper.search.warm_start import nearest_point, published_valley
from sweeper.space.schema import SearchSpace
from sweeper.space.trials import domain_of, make_spec
from trainers.contract.schedule import data_position
from trainers.methods import LEARNING_RATE, describe_parameters, phases_of


@dataclass(frozen=True, slots=True)
class TextNeed:
    """Training tokens of the run that reads most, and which it is."""

    tokens: int
    run: str


def text_needed(space: SearchSpace) -> TextNeed:
    """What a sweep needs to read no text twice, if its search ends where the published ones did: at every arm's and
    budget's point of the published valley, other axes in their middle. A trial farther out may read more."""
    return max(_needs(space), key=lambda need: need.tokens)


def _needs(space: SearchSpace) -> Iterator[TextNeed]:
    for scale in space.scales:
        for name, method in space.methods.items():
            domain = domain_of(method, space.seeds.tuning)
            point = next(iter(published_valley(domain)), nearest_point(domain, ()))
            total = max(*method.budgets.rungs, *method.budgets.confirmation)
            spec = make_spec(
                space,
                scale=scale,
                method=name,
                parameters=dict(point),
                total_steps=total,
                seed=0,
                corpus_fingerprint="",
                tokenizer_fingerprint="",
                vocab_size=space.tokenizer.vocab_size,
            )
            tokens = data_position(phases_of(spec), space.tokens_per_step, total)
            setting = describe_parameters(tuple(pair for pair in point if pair[0] != LEARNING_RATE))
            yield TextNeed(tokens, f"{name} of {total:,} steps{f' with {setting}' if setting else ''}")


def text_wanted(space: SearchSpace) -> int:
    """Training tokens to prepare of a source of any size: what the file says, else what is needed, rounded up to two digits
    so that a few steps more are no other corpus."""
    if space.corpus.tokens is not None:
        return space.corpus.tokens
    needed = text_needed(space).tokens
    unit = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return int(-(-needed // unit) * unit)
