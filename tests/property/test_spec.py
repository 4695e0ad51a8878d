"""A spec's identity: the same after JSON, in any order of keys, and different where anything differs."""

from __future__ import annotations

import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.strategies import trial_specs
from trainers.contract.spec import TrialSpec, fingerprint, spec_from_dict, spec_to_dict

plain_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def shuffled(value: object, order: random.Random) -> object:
    """The same JSON value with the keys of every object in another order."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: shuffled(value[key], order) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, order) for item in value]
    return value


@settings(max_examples=60)
@given(spec=trial_specs(), order=st.randoms(use_true_random=False))
def test_a_spec_is_read_back_equal_from_json_in_any_order(spec: TrialSpec, order: random.Random) -> None:
    plain = json.loads(json.dumps(shuffled(spec_to_dict(spec), order)))
    back = spec_from_dict(plain)
    assert back == spec
    assert back.spec_id == spec.spec_id


@settings(max_examples=60)
@given(first=trial_specs(), second=trial_specs())
def test_specs_are_equal_exactly_when_their_identities_are(first: TrialSpec, second: TrialSpec) -> None:
    assert (first == second) == (first.spec_id == second.spec_id)


@given(value=plain_json, order=st.randoms(use_true_random=False))
def test_a_fingerprint_does_not_see_the_order_of_keys(value: object, order: random.Random) -> None:
    name = fingerprint(value)
    assert fingerprint(shuffled(value, order)) == name
    assert len(name) == 16
    assert set(name) <= set("0123456789abcdef")
