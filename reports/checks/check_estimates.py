"""The checks that read the verdicts: seeds, ladder, fit, clocks, trends, data, distance to the reader's model."""

from __future__ import annotations

import math

from reports.estimate.noise import LEAST_PIECES
from reports.estimate.verdict import Check, CheckStatus, Flag, NotReached, Reached, ScaleVerdict, Words, worst_status
from reports.estimate.wording import times
from reports.evidence.study import Cell, Study
from reports.html import theme

TREND_TOLERANCE = 0.10
NEAR_SIZE, FAR_SIZE = 2.0, 10.0


def _compared(verdicts: tuple[ScaleVerdict, ...]) -> list[ScaleVerdict]:
    return [verdict for verdict in verdicts if verdict.words is not Words.UNCONFIRMED]


def _nothing(name: str) -> Check:
    return Check(name, "not_applicable", "no comparison", "No arm has been confirmed against the baseline.")


def check_seeds(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Three seeds for every number."""
    name, compared = "Seeds per number", _compared(verdicts)
    if not compared:
        return _nothing(name)
    fewest = min(min(verdict.seeds_baseline, verdict.seeds_method) for verdict in compared)
    status: CheckStatus = "pass" if fewest >= 3 else "warn"
    if fewest < 2 and any(verdict.sigma is None or verdict.sigma.num_cells == 0 for verdict in compared):
        status = "fail"
    sentence = "Fewest confirmation seeds behind a mean that enters a claim; three are asked for."
    return Check(name, status, f"{fewest}", sentence)


def check_sigma(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The seed deviation was measured on these runs."""
    name, compared = "Seed deviation measured", _compared(verdicts)
    known = [verdict.sigma for verdict in compared if verdict.sigma is not None]
    if not known:
        return _nothing(name)
    ranking: dict[str, CheckStatus] = {"prior": "warn", "unknown": "fail"}
    largest = max(known, key=lambda deviation: (ranking.get(deviation.source, "pass") != "pass", deviation.total))
    status = worst_status(ranking.get(deviation.source, "pass") for deviation in known)
    number = "unknown" if largest.source == "unknown" else f"{largest.total:.4f} nats"
    sentence = {
        "pass": f"Pooled within cells from {largest.source} runs, {largest.degrees_of_freedom:.1f} degrees of freedom.",
        "warn": "Taken from public runs of 124M parameters, since no cell here has a second seed.",
        "fail": "No cell has a second seed and the models are too small for the public figure: there is no interval.",
    }[status]
    return Check(name, status, number, sentence)


def check_validation_text(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Final losses are scored on enough text: what it adds to the error is not more than what seeds do."""
    name = "Scored on enough text"
    known = [
        (errors.sampling, errors.seeds, verdict.scored_tokens)
        for verdict in _compared(verdicts)
        if (errors := verdict.errors) is not None and errors.sampling is not None
    ]
    if not known:
        return _text_not_known(name, study, verdicts)
    sampling, seeds, tokens = max(known, key=lambda item: item[0] / item[1] if item[1] > 0 else math.inf)
    status: CheckStatus = "pass" if sampling <= seeds else "warn"
    which = "seeds dominate" if sampling <= seeds else "the text dominates; more `validation_tokens` make it smaller"
    sentence = (
        f"{theme.count(tokens)} tokens put {sampling:.4f} nats of error on the difference between the arms, "
        f"{seeds:.4f} come from seeds: {which}. Both are in the interval."
    )
    return Check(name, status, f"{sampling:.4f} nats", sentence)


def _text_not_known(name: str, study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Why the text's part of the error is not known: too little of it is another thing than nothing said."""
    scores = [None if run.record is None else run.record.score for cell in _cells(study, verdicts) for run in cell.runs]
    pieces = [len(score.pieces) for score in scores if score is not None]
    if pieces and min(pieces) < LEAST_PIECES:
        number = f"{min(pieces)} piece{'s' * (min(pieces) != 1)}"
        said = (
            f"Final losses are means over {number} of text, {LEAST_PIECES} are needed to tell its part of the error, "
            "which no interval here holds; more `validation_tokens` give more pieces."
        )
        return Check(name, "warn", number, said)
    if pieces:
        said = "Not all runs were scored on the same pieces of one text, so that its part of the error is not known."
    else:
        said = (
            "The runs do not say how they scored on each piece of the text, so that its part of the error is not known."
        )
    return Check(name, "not_applicable", "not known", said)


def _cells(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> list[Cell]:
    """The confirmed cells of every scale that has a comparison."""
    scales = {verdict.scale for verdict in _compared(verdicts)}
    return [cell for scale in study.scales if scale.scale in scales for arm in scale.arms for cell in arm.cells]


def check_ladder(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """At least three baseline budgets, the largest at least twice the method's."""
    name = "Baseline is a ladder"
    found: list[tuple[int, float]] = []
    for scale in study.scales:
        if scale.baseline is not None and scale.baseline.cells:
            for arm in scale.methods:
                if arm.cells:
                    found.append((len(scale.baseline.cells), scale.baseline.budgets[-1] / arm.budgets[-1]))
    if not found:
        return _nothing(name)
    fewest, reach = min(count for count, _ in found), min(ratio for _, ratio in found)
    status: CheckStatus = "fail" if fewest < 2 else "pass" if fewest >= 3 and reach >= 2 else "warn"
    sentence = "Budgets of the baseline, and its largest over the method's largest; three and twice are asked for."
    return Check(name, status, f"{fewest} budget{'s' * (fewest != 1)}, {reach:.2g}x", sentence)


def check_bracketed(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The target lies between finished baseline runs."""
    name, compared = "Target inside the ladder", _compared(verdicts)
    if not compared:
        return _nothing(name)
    inside = sum(isinstance(v.speedup, Reached) and not v.speedup.extrapolated for v in compared)
    number = f"{inside} of {len(compared)}"
    if inside == len(compared):
        return Check(name, "pass", number, "Every target is bracketed by finished baseline runs.")
    unreached = sum(isinstance(verdict.speedup, NotReached) for verdict in compared)
    sentence = f"Not reached by the baseline: {unreached}; the others are projected or show a loss gap only."
    return Check(name, "warn", number, sentence)


def check_monotone(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """More compute gives a lower loss, budget by budget."""
    name = "Monotone ladder"
    ladders = [verdict for verdict in _compared(verdicts) if verdict.baseline_ladder is not None]
    if not ladders:
        return Check(name, "not_applicable", "one budget", "A single budget is no ladder.")
    bad = sorted({verdict.scale for verdict in ladders if Flag.NOT_MONOTONE in verdict.flags})
    scales = {verdict.scale for verdict in ladders}
    number = f"{len(scales) - len(bad)} of {len(scales)}"
    if not bad:
        return Check(name, "pass", number, "Each larger budget of the baseline ends at a lower mean loss.")
    return Check(name, "warn", number, f"A larger budget ends higher at {', '.join(bad)}: seed noise rivals the steps.")


def check_lack_of_fit(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The power law describes the ladder."""
    name = "Power law fits"
    values = [
        verdict.baseline_ladder.lack_of_fit_p
        for verdict in _compared(verdicts)
        if verdict.baseline_ladder is not None and verdict.baseline_ladder.lack_of_fit_p is not None
    ]
    if not values:
        sentence = "Not testable: that needs four baseline budgets and repeated seeds."
        return Check(name, "not_applicable", "not testable", sentence)
    smallest = min(values)
    sentence = "Probability of a misfit this large from seed noise alone, the smallest over scales."
    return Check(name, "pass" if smallest >= 0.05 else "warn", f"p = {smallest:.3f}", sentence)


def check_pchip(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """A reading without any formula agrees."""
    name = "Monotone interpolation agrees"
    gaps = [
        abs(math.log(verdict.pchip_speedup / verdict.speedup.speedup))
        for verdict in _compared(verdicts)
        if verdict.pchip_speedup is not None and isinstance(verdict.speedup, Reached)
    ]
    if not gaps:
        return Check(name, "not_applicable", "not possible", "Needs a monotone ladder of three that holds the target.")
    largest = math.expm1(max(gaps))
    sentence = "Difference between the fitted speedup and monotone interpolation of the same ladder; 1 % is allowed."
    return Check(name, "pass" if largest <= 0.01 else "warn", theme.percent(largest, 1), sentence)


def check_clocks(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """Hours and FLOPs tell the same story."""
    name = "Hours agree with FLOPs"
    gaps = []
    for verdict in _compared(verdicts):
        clocks = dict(verdict.by_clock)
        hours, flops = clocks.get("gpu_hours"), clocks.get("flops")
        if isinstance(hours, Reached) and isinstance(flops, Reached):
            gaps.append(abs(math.log(hours.speedup / flops.speedup)))
    if not gaps:
        cells = _cells(study, verdicts)
        if cells and all(cell.gpu_hours is not None and cell.flops is not None for cell in cells):
            said = "Both clocks are known, but no comparison has a speedup, rather than a bound or none, on both."
            return Check(name, "not_applicable", "no speedup on both", said)
        return Check(name, "not_applicable", "one clock", "Only one of the two clocks is known.")
    largest = math.expm1(max(gaps))
    sentence = "Difference between the speedup in hours and in model FLOPs, which no timing noise can move."
    return Check(name, "pass" if largest <= 0.05 else "warn", theme.percent(largest, 1), sentence)


def check_budget_trend(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The speedup does not fade as the budget grows."""
    series = [
        [budget.speedup.speedup for budget in verdict.budgets if isinstance(budget.speedup, Reached)]
        for verdict in _compared(verdicts)
    ]
    nothing = ("one budget", "The method was read at one budget only, so a trend cannot be seen.")
    sentence = "Speedup at the method's smallest and largest budget that the ladder holds."
    return _trend("Holds as the budget grows", series, sentence, nothing)


def check_scale_trend(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The speedup does not fade as models grow."""
    methods = sorted({verdict.method for verdict in verdicts})
    series = [
        [v.speedup.speedup for v in _compared(verdicts) if v.method == method and isinstance(v.speedup, Reached)]
        for method in methods
    ]
    nothing = ("one scale", "A speedup exists at one scale only.")
    return _trend(
        "Holds as the model grows", series, "Speedup at the smallest and the largest scale that have one.", nothing
    )


def _trend(name: str, series: list[list[float]], sentence: str, nothing: tuple[str, str]) -> Check:
    """Whether any series of speedups fades towards its end; `nothing` is the number and sentence where none has two."""
    long = [values for values in series if len(values) > 1]
    if not long:
        return Check(name, "not_applicable", *nothing)
    # The worst series speaks for all: a method that holds must not hide one that fades.
    values = min(long, key=lambda item: item[-1] / item[0])
    fades = values[-1] < values[0] * (1 - TREND_TOLERANCE)
    return Check(name, "warn" if fades else "pass", f"{times(values[0])} to {times(values[-1])}", sentence)


def check_data(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The method pays with text: how much more it read, and whether it read any of it twice."""
    name = "Enough text"
    multipliers = [v.data_multiplier for v in _compared(verdicts) if v.data_multiplier is not None]
    epochs = [
        run.epochs
        for scale in study.scales
        for arm in scale.arms
        for cell in arm.cells
        for run in cell.runs
        if run.epochs is not None
    ]
    if not multipliers:
        return Check(name, "not_applicable", "unknown", "The data tokens of both arms are not known.")
    number = f"{max(multipliers):.2f}x the text"
    if not epochs:
        return Check(name, "warn", number, "The corpus size is not stated, so repetition of text cannot be ruled out.")
    number += f", {max(epochs):.2g} epochs"
    if max(epochs) <= 1:
        return Check(name, "pass", number, "No run read any text twice.")
    sentence = "Some runs repeated text; the method reads more of it and gains less from what it has seen."
    return Check(name, "warn", number, sentence)


SEEN_PASS, SEEN_WARN = 0.02, 0.20
"""Shares of the validation text that training may hold, too: below the first nothing is said, above the second no claim."""


def check_unseen(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """The validation text is not in the training text."""
    name, share = "Validation text unseen", study.context.seen_share
    if share is None:
        said = "How much of the validation text also occurs in training was not measured."
        return Check(name, "not_applicable", "not known", said)
    status: CheckStatus = "pass" if share < SEEN_PASS else "warn" if share <= SEEN_WARN else "fail"
    sentence = (
        "Validation tokens in spans of 64 that occur in training: there a loss measures memory, and dilutes the effect."
    )
    return Check(name, status, theme.percent(share, 1), sentence)


def check_target_size(study: Study, verdicts: tuple[ScaleVerdict, ...]) -> Check:
    """How far the reader's model is from what was trained."""
    name, target = "Distance to your model", study.context.target_scale_params
    sizes = [verdict.params for verdict in _compared(verdicts) if verdict.params]
    if not target or not sizes:
        return Check(name, "not_applicable", "no target size", "No model size to carry the result to is given.")
    distance = math.exp(min(abs(math.log(target / size)) for size in sizes))
    status: CheckStatus = "pass" if distance <= NEAR_SIZE else "warn" if distance <= FAR_SIZE else "fail"
    sentence = "Factor between the model that you mean to train and the nearest one trained here."
    return Check(name, status, f"{distance:.3g}x", sentence)
