"""Puts data and the chart library into the page so that nothing has to be fetched and nothing can break out.

The library travels as gzip in base64 (a third of its size; the page's script opens it with the browser's own
`DecompressionStream`); arrays travel as typed arrays. JSON is written so that no text in it can end its element.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from numpy.typing import ArrayLike, NDArray

_OUTSIDE_MARKUP = str.maketrans(
    {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
)


def json_in_html(value: Any) -> Markup:
    """`value` as JSON that is safe inside a script element. Raises `ValueError` for a NaN or an infinity."""
    return _inside_script(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")))


def figure_json(figure: go.Figure) -> Markup:
    """Data and layout of `figure` for the page, numpy arrays as base64 typed arrays."""
    from plotly.io.json import to_json_plotly

    plain = figure.to_plotly_json()
    return _inside_script(to_json_plotly({"data": plain["data"], "layout": plain["layout"]}))


def _inside_script(text: str) -> Markup:
    return Markup(text.translate(_OUTSIDE_MARKUP))


@functools.cache
def chart_library() -> Markup:
    """Plotly's browser bundle, gzip then base64: letters, digits, `+`, `/` and `=` only."""
    source = resources.files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()
    return Markup(base64.b64encode(gzip.compress(source, 9, mtime=0)).decode("ascii"))


def thinned(x: ArrayLike, y: ArrayLike, bins: int = 300) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means of `x` and `y` over bins uniform in log `x`, at most `bins` points, float32; the last point stays exact.

    `x` positive and ascending, shapes `[N]`. Bins uniform in `x` would leave a logarithmic axis a handful of points
    for its first half.
    """
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = at > 0
    at, values = at[keep], values[keep]
    if at.size <= bins:
        return at.astype(np.float32), values.astype(np.float32)
    position = np.log(at[:-1])
    span = max(position[-1] - position[0], 1e-12)
    index = np.minimum(((position - position[0]) / span * (bins - 1)).astype(np.int64), bins - 2)
    number = np.bincount(index, minlength=bins - 1)
    filled = number > 0
    mean_x = np.bincount(index, weights=at[:-1], minlength=bins - 1)[filled] / number[filled]
    mean_y = np.bincount(index, weights=values[:-1], minlength=bins - 1)[filled] / number[filled]
    return np.append(mean_x, at[-1]).astype(np.float32), np.append(mean_y, values[-1]).astype(np.float32)
