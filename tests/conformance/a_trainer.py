"""A trainer that misbehaves as it is told, for the sweep to run: standard library only, and it knows nothing of us."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType


def loss_at(given: argparse.Namespace, step: int) -> float:
    gain = 0.05 * (given.bag_size > 1)
    return 3 + 10 / (step + 20) + 10 * abs(given.lr - 0.002) - gain + given.seed % 10 * 1e-3


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (("steps", int), ("lr", float), ("seed", int), ("bag-size", int), ("out", Path), ("marks", Path)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--fault", default="none")
    given = parser.parse_args()
    ending: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ending.append(number)

    signal.signal(signal.SIGTERM, end if given.fault != "deaf" else signal.SIG_IGN)
    state = given.out / "step.txt"
    first = int(state.read_text()) if state.exists() else 0
    print(f"from step {first}", flush=True)
    with (given.out / "points.jsonl").open("a") as file:

        def say(text: str) -> None:
            file.write(text)
            file.flush()

        for step in range(first + 1, given.steps + 1):
            if given.seed == 1000 and step == given.steps // 2 and first == 0:
                misbehave(given, say)
            if step % 5 == 0 and not (given.fault == "silent" and given.seed == 1000):
                say(json.dumps({"step": step, "loss": loss_at(given, step), "seconds": step * 0.5}) + "\n")
            state.write_text(str(step))
            time.sleep(0.002)
            if ending:
                sys.exit(143)
    print("done", flush=True)


def misbehave(given: argparse.Namespace, say: object) -> None:
    assert callable(say)
    match given.fault:
        case "killed":
            say('{"step": 10, "lo')
            os.kill(os.getpid(), signal.SIGKILL)
        case "exits":
            print("no such layer", file=sys.stderr, flush=True)
            sys.exit(7)
        case "early":
            sys.exit(0)
        case "garbage":
            say("loss is about three\n")
        case "half":
            say('{"step": 20, "loss": 3.')
            os._exit(0)
        case "nan":
            say('{"step": 10, "loss": NaN}\n')
            time.sleep(60)
        case "hangs":
            time.sleep(600)
        case "waits" | "deaf":
            (given.marks / "waiting").touch()
            for _ in range(600):
                time.sleep(0.1)
                if (given.marks / "go-on").exists():
                    return
        case "children":
            # One in this process group, and one that has left it for a session of its own.
            for detached in (False, True):
                child = subprocess.Popen(["sleep", "600"], start_new_session=detached)
                with (given.marks / "children").open("a") as marks:
                    marks.write(f"{child.pid}\n")


if __name__ == "__main__":
    main()
