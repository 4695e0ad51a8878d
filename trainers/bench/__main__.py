"""`python -m trainers.bench`: the bench where nothing but torch and numpy is installed. Parsing and printing."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from functools import partial
from pathlib import Path

from trainers.bench import prepare_environment
from trainers.bench.result import FOLDER, keep_result, result_to_json
from trainers.contract.faults import end_of

PROGRAM = "python -m trainers.bench"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Check the training step, then time it.")
    parser.add_argument("--scale", action="append", default=[], help="only this scale; may be repeated")
    parser.add_argument("--execution", action="append", default=[], help="only this form of the step; may be repeated")
    parser.add_argument("--steps", type=int, default=24, help="timed steps of each variant (default 24)")
    parser.add_argument("--device", default="", help="torch device; default: a GPU where there is one")
    parser.add_argument("--micro-sequences", type=int, default=None, help="sequences through the model at once")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1, as a trial has)")
    parser.add_argument("--out", type=Path, default=Path("results") / FOLDER, help="folder for the result's JSON")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--json", action="store_true", help="print the machine-readable form only")
    return parser


def main() -> int:
    """0: all checks passed; 1: one failed (its figures are kept apart), or the bench did; 2: the arguments are wrong."""
    arguments = _parser().parse_args()
    prepare_environment()
    from trainers.bench.run import BenchOptions, run_bench
    from trainers.bench.words import plain

    options = BenchOptions(
        scales=tuple(arguments.scale),
        forms=tuple(arguments.execution),
        device=arguments.device,
        steps=arguments.steps,
        micro_sequences=arguments.micro_sequences,
        threads=arguments.threads,
        seed=secrets.randbelow(2**31),
    )

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    keep = partial(keep_result, arguments.out)
    try:
        result = run_bench(options, say, partial(keep, whole=False))
    except Exception as error:
        return end_of(error, PROGRAM, arguments.out, debug=arguments.debug)
    print(json.dumps(result_to_json(result), indent=1, allow_nan=False) if arguments.json else plain(result))
    say(str(keep(result)))
    if not result.passed:
        print("a check failed; no plan reckons with these figures", file=sys.stderr)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
