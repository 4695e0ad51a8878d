"""`python -m trainers.bench.tour`: parsing, how it ends, the table. `order` has the parts and the clock.

The same command with `--resume` goes on, after any end.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from trainers.bench import prepare_environment
from trainers.bench.tour.caches import compiled_kernels
from trainers.bench.tour.order import (
    GRACE_SECONDS,
    OK,
    TRAINING,
    Part,
    Training,
    parts_of,
    read_tour,
    run_tour,
    table,
)
from trainers.contract.errors import InputError, given
from trainers.contract.faults import INTERRUPTED, TERMINATED, Terminated, end_of
from trainers.data.manifest import read_manifest
from trainers.planning.spec_lines import read_trials

PROGRAM = "python -m trainers.bench.tour"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for every other mistake."""
        raise InputError(message.removeprefix("argument "))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 2 * GRACE_SECONDS < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above {2 * GRACE_SECONDS:g}")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    what = "Everything worth knowing about a device, part by part, within the seconds that it is given."
    parser = _Parser(prog=PROGRAM, description=what)
    add = parser.add_argument
    add("--seconds", type=_seconds, default=540.0, help="most seconds that this command may take (default 540)")
    add("--out", type=Path, required=True, help="folder of the tour's JSON, of logs and of compiled kernels")
    add("--resume", type=Path, help="folder of an earlier command; may be --out: what is there is not done again")
    add("--again", action="append", default=[], help="a part to run in spite of --resume; may be repeated")
    add("--part", action="append", default=[], help="only this part; may be repeated")
    add("--device", default="cuda", help="cuda, or cpu for a small version of what a CPU can do (default cuda)")
    add("--specs", type=Path, help="trials to train in the time that is left, from `sweeper plan FILE --specs`")
    add("--corpus", type=Path, help="folder of the prepared corpus that those trials are for")
    add("--evaluate-every", type=_whole, default=0, help="as `sweeper plan FILE --specs` says it")
    add("--evaluate-tokens", type=_whole, default=0, help="as `sweeper plan FILE --specs` says it")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


def _training(asked: argparse.Namespace) -> Training | None:
    """The list of trials, after a look at what training would refuse when everything else has been measured."""
    if (asked.specs is None) != (asked.corpus is None):
        raise InputError("--specs and --corpus: one without the other; give both or none")
    if asked.specs is None:
        return None
    trials = read_trials(asked.specs)
    manifest = read_manifest(asked.corpus)
    known = {(line.spec.corpus_fingerprint, line.spec.tokenizer_fingerprint) for line in trials}
    if known != {(manifest.fingerprint, manifest.tokenizer_fingerprint)}:
        raise InputError(f"--specs: {asked.specs} is not for the corpus in {asked.corpus}")
    return Training(asked.specs, asked.corpus, asked.evaluate_every, asked.evaluate_tokens)


def _chosen(asked: argparse.Namespace) -> list[Part]:
    if asked.device not in ("cpu", "cuda"):
        raise InputError(f"--device: {asked.device!r} is not cpu or cuda")
    parts = parts_of(asked.device, _training(asked), asked.out)
    names = [part.name for part in parts]
    for option, wanted in (("--part", asked.part), ("--again", asked.again)):
        for name in wanted:
            if name == TRAINING and name not in names:
                raise InputError(f"{option}: {name} needs --specs and --corpus")
            if name not in names:
                raise InputError(f"{option}: {name!r} is not one of {', '.join(names)}")
    return [part for part in parts if part.name in asked.part or not asked.part]


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is like Ctrl-C: what is found is told, and what runs ends."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tour(asked: argparse.Namespace, parts: Sequence[Part]) -> int:
    with given(asked.out):
        asked.out.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in parts]

    def show(left: Sequence[str]) -> None:
        print("\n" + table(names, asked.out, left), flush=True)

    with _terminable():
        try:
            with compiled_kernels(asked.out, asked.resume) as pack:
                left = run_tour(
                    parts,
                    asked.out,
                    asked.seconds - GRACE_SECONDS,
                    lambda line: print(line, flush=True),
                    resume=asked.resume,
                    again=asked.again,
                    after=pack,
                )
        except KeyboardInterrupt:
            found = read_tour(asked.out)
            show([name for name in names if name not in found])
            raise
    show(left)
    if left:
        return 3
    found = read_tour(asked.out)
    return 0 if all(found[name]["status"] == OK for name in names) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """0: every part is ok; 1: one failed or was cut; 2: the arguments are wrong; 3: parts are left for another command;
    130, 143: interrupted, by Ctrl-C or SIGTERM."""
    out, debug = None, False
    try:
        asked = _parser().parse_args(arguments)
        out, debug = asked.out, asked.debug
        parts = _chosen(asked)
        prepare_environment()  # the parts inherit it
        return _tour(asked, parts)
    except KeyboardInterrupt as end:
        return TERMINATED if isinstance(end, Terminated) else INTERRUPTED
    except Exception as error:
        return end_of(error, PROGRAM, out, debug=debug)


if __name__ == "__main__":
    sys.exit(main())
