"""`python -m trainers.run specs.jsonl --corpus DIR --out records.jsonl`: training where there is only torch and numpy.

Parsing, the stop request and the clock's limit; what is trained in which order is `bare_sweep`'s. `sweeper plan --specs`
writes the list, `sweeper import` reads the records. Exit codes: 0 all trials ended, 1 some without a final loss, 2 the
user's mistake (one line each, nothing is started), 3 stopped: the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from types import FrameType

from trainers.contract.errors import InputError
from trainers.contract.faults import STOPPED, end_of
from trainers.contract.writing import guard_terminal

PROGRAM = "python -m trainers.run"


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Train the trials of a file one after the other. The same command goes on where it stopped.",
    )
    add = parser.add_argument
    add("specs", type=Path, help="JSON Lines of trials, from `sweeper plan FILE --specs specs.jsonl`")
    add("--corpus", type=Path, required=True, help="folder of the prepared corpus that the trials are for")
    add("--out", type=Path, required=True, help="JSON Lines of records, appended to as trials end")
    add("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    add("--execution", default="auto", help="form of the training step: auto, or one that this version has")
    add("--evaluate-tokens", type=_whole, default=0, help="validation tokens of points before the end; 0: all")
    add("--evaluate-every", type=_whole, default=0, help="steps between evaluations; 0: at the ends of phases")
    add("--micro-sequences", type=_whole, default=0, help="sequences in memory at once; 0: the whole batch")
    add("--checkpoint-activations", action="store_true", help="compute activations twice, to need less memory")
    add("--scratch", type=Path, help="folder of checkpoints; default: beside --out")
    add("--export", type=Path, help="write each trained model into a folder here, in Hugging Face files")
    add("--hours", type=_positive, help="stop after this time, with the running trial's state saved")
    add("--commit", help="commit of this code, for the records, where it is no checkout")
    add("--debug", action="store_true", help="show tracebacks")
    return parser


@contextmanager
def _stopping(stop_file: Path, end: float | None) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the `end` of the time ask training to save its state; a second Ctrl-C ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        stop_file.touch()
        sys.stderr.write("\nstopping: the running trial saves its state (again to end at once)\n")

    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)
    left = None if end is None else end - monotonic()
    if left is not None and left <= 0:  # nothing is begun that would have to be stopped at once
        stop_file.touch()
    timer = threading.Timer(left, stop_file.touch) if left is not None and left > 0 else None
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _train(given: argparse.Namespace, began: float) -> int:
    import torch

    from trainers.bare_sweep import BareSite, BareSweep, refuse_unfit
    from trainers.contract.record_lines import RecordsFile
    from trainers.data.shards import open_corpus
    from trainers.planning.spec_lines import read_trials
    from trainers.training.execution import resolve_execution

    trials = read_trials(given.specs)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"--device: {device!r} is not here; use auto or cpu")
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    site = BareSite(
        scratch=(given.scratch or given.out.with_name(f"{given.out.name}.stages")).resolve(),
        device=device,
        execution=resolve_execution(given.execution, torch.device(device), print),
        devices=threads if device == "cpu" else 1,
        evaluate_every=given.evaluate_every,
        evaluate_tokens=given.evaluate_tokens,
        micro_sequences=given.micro_sequences or None,
        checkpoint_activations=given.checkpoint_activations,
        commit=given.commit,
        export=given.export,
    )
    corpus = open_corpus(given.corpus.resolve())
    refuse_unfit(trials, corpus, site, given.specs.name)
    # What comes before training, such as trying a form of the step, is part of the time, too.
    end = began + given.hours * 3600 if given.hours else None
    with RecordsFile(given.out) as records, _stopping(site.stop_file, end):
        end = BareSweep(trials, corpus, site, records).run()
    print(f"{end.ended} trials ended, {end.unfinished} of them without a final loss; {end.left} left. {given.out}")
    if end.left and site.stop_file.exists():
        print("stopped: the same command goes on from here", file=sys.stderr)
        return STOPPED
    return 1 if end.unfinished or end.left else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    began = monotonic()
    given = _parser().parse_args(arguments)
    try:
        return _train(given, began)
    except Exception as error:
        return end_of(error, PROGRAM, given.out.parent, debug=given.debug)


if __name__ == "__main__":
    guard_terminal()
    sys.exit(main())
