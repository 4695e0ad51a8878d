"""What the reader's plan would gain: the starting values of the sliders, and the same arithmetic as the page's script.

Not a section: the headline and the what-if section both start from one `Worth`, so that they agree before anything
is moved.
"""

from __future__ import annotations

from dataclasses import dataclass

from reports.estimate.verdict import NotReached, Reached
from reports.evidence.study import Study
from reports.html import theme
from reports.sections.figures.forest import close_pair
from reports.summary import Summary

DEFAULT_PRICES = {"cuda": 3.0, "cpu": 0.05}
"""Per device-hour, where the search-space file names no price: about what a rented H200 and a rented core cost."""
DEFAULT_KILOWATTS = {"cuda": 1.0, "cpu": 0.01}
"""Per device with its share of host and cooling; an assumption that the page says and lets the reader change."""
PLAN_HOURS = 1_000.0


@dataclass(frozen=True, slots=True)
class Worth:
    """A plan of `plan_hours` baseline device-hours, `price` each, on `devices`; S at the ends of its interval.

    `spent_hours` is what the sweep itself paid. An end that is not known is None, and so is what no run knows.
    """

    low: float | None
    middle: float | None
    high: float | None
    plan_hours: float
    price: float
    price_is_given: bool
    currency: str
    devices: int
    kilowatts: float
    spent_hours: float | None

    @property
    def best_known(self) -> str:
        """The estimate, or the end that stands in for it."""
        return "middle" if self.middle is not None else "low" if self.low is not None else "high"

    def saved_hours(self, end: str) -> float | None:
        """Device-hours that the plan saves at one end of the interval: `H * (1 - 1 / S)`."""
        factor: float | None = getattr(self, end)
        return None if factor is None else self.plan_hours * (1 - 1 / factor)

    def saved_money(self, end: str) -> float | None:
        """The same in money."""
        saved = self.saved_hours(end)
        return None if saved is None else saved * self.price

    def saved_days(self, end: str) -> float | None:
        """The same in days of the wall clock, all devices busy."""
        saved = self.saved_hours(end)
        return None if saved is None else saved / self.devices / 24


def worth(study: Study, summary: Summary) -> Worth | None:
    """The plan that the page opens with; None where the runs allow no factor at all."""
    main, context = summary.main, study.context
    if main is None:
        return None
    low: float | None = None
    middle: float | None = None
    high: float | None = None
    match main.speedup:
        case Reached(speedup, interval):
            middle = speedup
            low, high = interval if interval is not None else (None, None)
        case NotReached(bound, _):
            # A bound below 1 promises nothing to plan with.
            low = bound if bound is not None and bound > 1 else None
        case None if main.upper_bound is not None:
            high = main.upper_bound
        case None:
            pair = close_pair(main)
            middle = pair.speedup if pair is not None else None
    if low is None and middle is None and high is None:
        return None
    kinds = {scale.device_kind for scale in study.scales}
    kind = "cpu" if kinds == {"cpu"} else "cuda"
    given = context.price_per_gpu_hour
    return Worth(
        low=low,
        middle=middle,
        high=high,
        plan_hours=PLAN_HOURS,
        price=DEFAULT_PRICES[kind] if given is None else given,
        price_is_given=given is not None,
        currency=context.currency,
        devices=max(context.num_gpus or 1, 1),
        kilowatts=DEFAULT_KILOWATTS[kind],
        spent_hours=spent_hours(study),
    )


def spent_hours(study: Study) -> float | None:
    """Device-hours that all runs of the sweep incurred; runs that do not say count with their own clock. None where no run
    knows any."""
    known = [run.incurred_gpu_hours or run.billed_gpu_hours or run.gpu_hours for run in study.runs]
    paid = [hours for hours in known if hours]
    return sum(paid) if paid else None


def days_text(days: float | None) -> str:
    """`12.5 days`, or hours where it is less than one."""
    if days is None:
        return "–"
    if abs(days) >= 1 or days == 0:
        return theme.minus(f"{days:.3g} days")
    return theme.minus(f"{days * 24:.3g} hours")
