"""The JSON Schema of a search-space file, for editors: completion, hover texts and red underlines while typing.

It says what `schema` says, and which scales, methods and axes exist. Rules between values it leaves to
`sweeper plan`. Write the committed file anew with `python -m sweeper.space.json_schema`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweeper.space.foreign_schema import ForeignSpace
from sweeper.space.rules_text import ALL_SOURCES
from sweeper.space.schema import SearchSpace
from trainers.contract.scales import SCALES
from trainers.methods import BASELINE, LEARNING_RATE, METHODS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def search_space_schema() -> dict[str, Any]:
    """The schema as JSON values, draft 2020-12."""
    schema = SearchSpace.model_json_schema()
    properties = schema["properties"]
    properties["scales"] |= {"items": {"enum": list(SCALES)}, "uniqueItems": True}
    schema["$defs"]["Corpus"]["properties"]["source"]["enum"] = list(ALL_SOURCES)
    properties["methods"] = {
        "type": "object",
        "description": properties["methods"]["description"],
        "properties": {name: _arm(name) for name in METHODS},
        "required": [BASELINE],
        "additionalProperties": False,
    }
    foreign = ForeignSpace.model_json_schema()
    definitions = {**foreign.pop("$defs"), **schema.pop("$defs")}
    properties = foreign["properties"]["methods"]
    foreign["properties"]["methods"] = {**properties, "required": [BASELINE]}
    # Which of the two a file is hangs on one key; an editor completes what goes with it.
    return {
        "$schema": DIALECT,
        "type": "object",
        "if": {"required": ["trainer"]},
        "then": foreign,
        "else": schema,
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as the file `search_spaces/schema.json` holds it."""
    return json.dumps(search_space_schema(), indent=2, ensure_ascii=False) + "\n"


def _arm(name: str) -> dict[str, Any]:
    axes = sorted((*METHODS[name].parameters, LEARNING_RATE))
    return {
        "description": METHODS[name].label,
        "allOf": [
            {"$ref": "#/$defs/Method"},
            {"properties": {"axes": {"required": axes, "propertyNames": {"enum": axes}}}},
        ],
    }


if __name__ == "__main__":
    (Path(__file__).parents[2] / "search_spaces" / "schema.json").write_text(schema_text(), encoding="utf-8")
