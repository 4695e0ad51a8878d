"""What to try next: one arm of a sweep at one scale, asked and told.

`domain` says what may be tried, `strategies` choose, `surface` is the model that recommends, `warm_start` carries over
what is already known, `surface_sampler` brings the model's choices to any Optuna study. Nothing here trains, schedules
or stores: the ledger is the truth, and telling a fresh strategy
the same history again gives the same state.
"""

from sweeper.search.domain import Axis, Domain, Proposal, Recommendation
from sweeper.search.strategies import STRATEGIES, UNLEARNED, Strategy, make_strategy

__all__ = [
    "STRATEGIES",
    "UNLEARNED",
    "Axis",
    "Domain",
    "Proposal",
    "Recommendation",
    "Strategy",
    "make_strategy",
]
