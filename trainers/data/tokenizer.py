"""Byte-level BPE: training it on a corpus and encoding documents with it. The only file that imports tokenizers.

The separator stands between documents and nowhere else; it is token 0. What is tokenized, and where tokens go, is
decided in `prepare`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from trainers.contract.errors import InputError
from trainers.contract.spec import fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
KNOWN_SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>")
"""What published tokenizers call the token between documents (GPT-2 and Qwen, Llama 3, Llama 2, Gemma)."""
BATCH_CHARACTERS = 1 << 20
"""Text given to the encoder at once: enough to keep all cores busy, little enough to hold its bookkeeping."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on `texts`, which may come in any order: the merges depend on the counts of words only.

    Raises `InputError` when the text is too small to fill the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise InputError(
            f"tokenizer.vocab_size: {vocab_size} tokens asked for, but the training text only gives "
            f"{tokenizer.get_vocab_size()}; ask for fewer or add text"
        )
    return tokenizer


def load_tokenizer(text: str, name: str, vocab_size: int) -> Tokenizer:
    """A published tokenizer from its JSON. Raises `InputError`, naming the file, when it is none or of another size."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"tokenizer.path: {name} is not a tokenizer.json ({error})") from None
    if tokenizer.get_vocab_size() != vocab_size:
        raise InputError(
            f"tokenizer.vocab_size: {vocab_size} stated, {name} has {tokenizer.get_vocab_size()}; state that number"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer_json: str) -> str:
    """Identity of a tokenizer: its JSON without regard to spelling."""
    return fingerprint(json.loads(tokenizer_json))


def separator_id(tokenizer: Tokenizer) -> int:
    """The token that ends every document. Raises `InputError` when a published tokenizer has none that is known."""
    for name in KNOWN_SEPARATORS:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise InputError(
        f"tokenizer.path: none of {', '.join(KNOWN_SEPARATORS)} is a token, so documents cannot be separated"
    )


def pieces(text: str) -> list[str]:
    """The documents in one text: a separator written out in it ends one too. Empty ones are dropped."""
    return [piece for piece in text.split(SEPARATOR) if piece]


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of each text in turn, uint32 `(num_tokens,)`, without separators."""
    for batch in _batches(texts):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array(encoding.ids, dtype=np.uint32)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
