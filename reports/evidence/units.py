"""What a loss was counted in where it comes from, and as nats per token, in which everything here is.

Bits per byte are ln 2 times the bytes of a mean token away from nats per token, which depends on the tokenizer and the
text: without that number they cannot be converted. Perplexity is exp of nats per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NATS, BITS, PERPLEXITY = "nats", "bits_per_byte", "perplexity"
UNITS = (NATS, BITS, PERPLEXITY)
UNIT_WORDS = {NATS: "nats per token", BITS: "bits per byte", PERPLEXITY: "perplexity"}
LARGEST_VOCABULARY = 1_000_000
"""No tokenizer in use has more entries: a model that knows nothing ends at the logarithm of its number of entries."""


@dataclass(frozen=True, slots=True)
class LossUnit:
    """A unit; `bytes_per_token` of the validation text, needed for bits per byte."""

    name: str = NATS
    bytes_per_token: float | None = None

    def nats(self, loss: float) -> float:
        """`loss` of this unit in nats per token. Raises `ValueError` for a perplexity that is not positive."""
        if self.name == PERPLEXITY:
            return math.log(loss)
        if self.name == BITS:
            assert self.bytes_per_token is not None
            return loss * math.log(2) * self.bytes_per_token
        return loss

    def of(self, nats: float) -> float:
        """A loss in nats per token in this unit: the inverse of `nats`."""
        if self.name == PERPLEXITY:
            return math.exp(nats)
        if self.name == BITS:
            assert self.bytes_per_token is not None
            return nats / math.log(2) / self.bytes_per_token
        return nats

    @property
    def words(self) -> str:
        """The unit for people, with what converts it."""
        if self.name == BITS:
            return f"{UNIT_WORDS[BITS]} ({self.bytes_per_token:g} bytes a token)"
        return UNIT_WORDS[self.name]


def know_nothing(vocab_size: int | None) -> float:
    """The loss in nats of a model that gives every token the same probability, ln V; of the largest V where it is unknown."""
    return math.log(vocab_size or LARGEST_VOCABULARY)
