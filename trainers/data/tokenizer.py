"""Byte-level BPE: training it on a corpus and encoding documents with it. The only file that imports tokenizers.

The separator stands between documents and nowhere else; it is token 0. What is tokenized, and where tokens go, is
decided in `prepare`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.contract.errors import InputError
from trainers.contract.faults import LONGEST_SHOWN
from trainers.contract.reading import json_value
from trainers.contract.spec import fingerprint
from trainers.data.documents import MissingTextError
from trainers.data.manifest import TOKENIZER_FILE
from trainers.data.request import CorpusRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEPARATOR = "<|endoftext|>"
KNOWN_SEPARATORS = (SEPARATOR, "<|end_of_text|>", "</s>", "<eos>")
"""What published tokenizers call the token between documents (GPT-2 and Qwen, Llama 3, Llama 2, Gemma)."""
SETTINGS_FILE = "tokenizer_config.json"
MOST_PADDING = 0.01
"""Of a vocabulary. Qwen 3 has 151,669 tokens and embeddings for 151,936."""
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


def tokenizer_file(path: str) -> Path:
    """The tokenizer.json that a path means: itself, or the one in the folder."""
    given = Path(path).expanduser()
    return given / TOKENIZER_FILE if given.is_dir() else given


def tokenizer_text(file: Path, name: str) -> str:
    """The text of a tokenizer.json. Raises `InputError` with the name that it was given by where it cannot be read, and
    `MissingTextError` where there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingTextError(f"tokenizer.path: {name} cannot be read ({error.strerror})") from None
    except OSError as error:
        raise InputError(f"tokenizer.path: {name[:LONGEST_SHOWN]} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"tokenizer.path: {name} cannot be read ({error})") from None


def given_tokenizer(request: CorpusRequest) -> tuple[Tokenizer, int] | None:
    """The tokenizer that a request names, from the hub, a folder or a file, and the token that ends its documents; None
    where one is to be trained.

    Raises `InputError` naming what cannot be used, `UserError` where the hub cannot be reached.
    """
    settings: Path | None
    if request.tokenizer_name is not None:
        from trainers.data.hub import tokenizer_folder

        name = request.tokenizer_name
        settings = tokenizer_folder(name, request.tokenizer_revision)
        file = settings / TOKENIZER_FILE
    elif request.tokenizer_path is not None:
        file, name = tokenizer_file(request.tokenizer_path), request.tokenizer_path
        # A file is taken by itself: what happens to lie beside it does not speak for it.
        settings = file.parent if Path(name).expanduser().is_dir() else None
    else:
        return None
    text = tokenizer_text(file, name)
    tokenizer = load_tokenizer(text, name, request.vocab_size)
    return tokenizer, separator_id(tokenizer, request.end_of_document, settings)


def load_tokenizer(text: str, name: str, vocab_size: int) -> Tokenizer:
    """A published tokenizer from its JSON. `vocab_size` may be a little more than it has, as models pad their embeddings.

    Raises `InputError`, naming the file, when it is none or of another size.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"tokenizer.path: {name} is not a tokenizer.json ({error})") from None
    # Some are published with a length to which texts are cut or filled up.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not size <= vocab_size <= size * (1 + MOST_PADDING):
        raise InputError(
            f"tokenizer.vocab_size: {vocab_size} stated, {name} has {size}; state that number, or up to "
            f"{MOST_PADDING:.0%} more for a model that pads its vocabulary"
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer_json: str) -> str:
    """Identity of a tokenizer: its JSON without regard to spelling."""
    return fingerprint(json.loads(tokenizer_json))


def separator_id(tokenizer: Tokenizer, wanted: str | None = None, folder: Path | None = None) -> int:
    """The token that ends every document: the one that is `wanted`, else what the settings in `folder` call the end of a
    sequence, else the first of those that are known. Raises `InputError` when the tokenizer has none of them."""
    said = wanted or (_end_of_sequence(folder) if folder is not None else None)
    for name in (said,) if wanted else (said, *KNOWN_SEPARATORS):
        token = tokenizer.token_to_id(name) if name else None
        if token is not None:
            return int(token)
    if wanted:
        raise InputError(f"tokenizer.end_of_document: {wanted!r} is no token of this tokenizer")
    raise InputError(
        f"tokenizer.path: none of {', '.join(KNOWN_SEPARATORS)} is a token, so documents cannot be separated; "
        "name one as tokenizer.end_of_document"
    )


def _end_of_sequence(folder: Path) -> str | None:
    """The `eos_token` of a tokenizer's settings; None where there are none."""
    try:
        settings: Any = json_value((folder / SETTINGS_FILE).read_bytes())
    except (InputError, OSError):
        return None
    token = settings.get("eos_token") if isinstance(settings, dict) else None
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def pieces(text: str, own: str = SEPARATOR) -> list[str]:
    """The documents in one text: a separator written out in it, ours or the tokenizer's `own`, ends one too. Empty ones are
    dropped."""
    return [piece for part in text.split(SEPARATOR) for piece in part.split(own) if piece]


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
