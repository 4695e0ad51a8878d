"""Our own trainer as if it were somebody else's: one trial by `python -m trainers.run`, its record told as points."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sweeper.space.load import load_own_space
from sweeper.space.trials import make_spec
from trainers.contract.record_lines import read_records
from trainers.contract.spec import own
from trainers.data.manifest import MANIFEST_FILE
from trainers.planning.spec_lines import TrialLine, trials_to_text


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, kind in (
        ("space", Path), ("corpus", Path), ("out", Path), ("method", str),
        ("steps", int), ("seed", int), ("lr", float), ("bag-size", int), ("step-ratio", float),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    given = parser.parse_args()
    space = load_own_space(given.space)
    corpus = json.loads((given.corpus / MANIFEST_FILE).read_text(encoding="utf-8"))
    parameters = {"learning_rate": given.lr}
    if given.method == "tst":
        parameters |= {"bag_size": given.bag_size, "step_ratio": given.step_ratio, "bag_weighting": "uniform"}
    spec = make_spec(
        space,
        scale=space.scales[0],
        method=given.method,
        parameters=parameters,
        total_steps=given.steps,
        seed=given.seed,
        corpus_fingerprint=corpus["fingerprint"],
        tokenizer_fingerprint=corpus["tokenizer_fingerprint"],
        vocab_size=corpus["vocab_size"],
    )
    specs, records = given.out / "specs.jsonl", given.out / "records.jsonl"
    specs.write_text(trials_to_text([TrialLine(own(spec))]), encoding="utf-8")
    words = [sys.executable, "-m", "trainers.run", specs, "--corpus", given.corpus, "--out", records]
    words += ["--evaluate-every", space.evaluate_every, "--evaluate-tokens", space.evaluate_tokens]
    subprocess.run([str(word) for word in words], check=True)
    (record,) = read_records(records)
    with (given.out / "points.jsonl").open("w", encoding="utf-8") as file:
        for point in record.curve.points:
            said = {"step": point.step, "loss": point.loss, "seconds": point.seconds, "tokens": point.tokens}
            file.write(json.dumps({**said, "flops": point.flops, "phase": point.phase}) + "\n")


if __name__ == "__main__":
    main()
