"""One process that encodes: blocks of documents come in on standard input, their tokens and sides of the split go out.

`python -m trainers.data.streamed.encoder TOKENIZER.JSON DTYPE SEPARATOR FRACTION`. It ends when its input does, so that it
never outlives the process that feeds it. The other end of its pipes is `pool`'s.

A document's side is decided by its normalised text alone (Unicode's composed form, lower case, white space as single
spaces): neither order nor source nor machine moves it, and exact duplicates are on one side together.
"""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

SPLIT_RULE = "sha256 of the document in NFC, lower case, white space collapsed, below the fraction"
_BLOCK = struct.Struct("<IQ")
"""Number of documents, bytes of their text together."""
_TOKENS = struct.Struct("<IQQ")
"""Number of documents, training tokens, held-out tokens."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A block's documents in their order: `held_out` and `lengths` `(num_documents,)`, lengths in tokens with the separator;
    `train` and `validation` are the tokens of each side."""

    held_out: np.ndarray
    lengths: np.ndarray
    train: np.ndarray
    validation: np.ndarray


def is_held_out(text: str, validation_fraction: float) -> bool:
    """Whether a document belongs to the validation split."""
    normal = " ".join(unicodedata.normalize("NFC", text).lower().split())
    digest = hashlib.sha256(b"split:" + normal.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < int(validation_fraction * 2**64)


def write_block(pipe: IO[bytes], texts: Sequence[bytes]) -> None:
    """Send the documents of a block, UTF-8."""
    pipe.write(_BLOCK.pack(len(texts), sum(map(len, texts))))
    pipe.write(np.array([len(text) for text in texts], dtype="<u4").tobytes())
    pipe.write(b"".join(texts))
    pipe.flush()


def read_encoded(pipe: IO[bytes], token_dtype: str) -> Encoded:
    """Receive what became of a block. Raises `EOFError` where the other side has ended."""
    documents, train, validation = _TOKENS.unpack(_exactly(pipe, _TOKENS.size))
    width = np.dtype(token_dtype).itemsize
    return Encoded(
        np.frombuffer(_exactly(pipe, documents), dtype="?"),
        np.frombuffer(_exactly(pipe, 4 * documents), dtype="<u4"),
        np.frombuffer(_exactly(pipe, width * train), dtype=token_dtype),
        np.frombuffer(_exactly(pipe, width * validation), dtype=token_dtype),
    )


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    found = pipe.read(count)
    if len(found) < count:
        raise EOFError
    return found


def main(arguments: Sequence[str]) -> None:
    """Encode until the input ends."""
    from tokenizers import Tokenizer

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; who feeds this process ends it
    path, token_dtype, separator, fraction = arguments
    tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8"))
    tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    source, out = sys.stdin.buffer, sys.stdout.buffer
    while head := source.read(_BLOCK.size):
        documents, size = _BLOCK.unpack(head)
        lengths = np.frombuffer(_exactly(source, 4 * documents), dtype="<u4")
        content = _exactly(source, size)
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        texts = [content[end - length : end].decode() for end, length in zip(ends, lengths.tolist(), strict=True)]
        sides = [is_held_out(text, float(fraction)) for text in texts]
        split: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        counts = []
        for side, encoding in zip(sides, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            ids = np.array([*encoding.ids, int(separator)], dtype=token_dtype)
            if (ids[:-1] == ids[-1]).any():  # a separator that is no special token
                ids = np.append(ids[:-1][ids[:-1] != ids[-1]], ids[-1])
            split[side].append(ids)
            counts.append(len(ids))
        train, validation = (np.concatenate(each or [np.empty(0, token_dtype)]) for each in split)
        out.write(_TOKENS.pack(documents, len(train), len(validation)))
        for part in (np.array(sides, dtype="?"), np.array(counts, dtype="<u4"), train, validation):
            out.write(part.tobytes())
        out.flush()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # whoever asked is gone, and says why
        os._exit(1)
