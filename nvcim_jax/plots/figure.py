"""The look that all figures share, and their bytes as PNG.

Figures are made without `pyplot`: no global state, no window, no backend to choose.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nvcim_jax import checks
from nvcim_jax.signature import checked

__all__ = ["COLOURS", "MARKERS", "new_figure", "png", "style", "svg"]

# Okabe and Ito, Color Universal Design (2008): told apart with every common kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

COLUMN_WIDTH_IN = 3.35  # one column of a two-column page
_DPI = 300
_STYLE: Any = {
    "font.size": 8.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "nvcim_jax",  # the same names in the file each time
}


@contextmanager
def style() -> Iterator[None]:
    """Set the look for the figures made inside, and only for those.

    Yields:
        Nothing; the settings of matplotlib are the old ones afterwards.

    Example:
        >>> import matplotlib
        >>> before = matplotlib.rcParams["font.size"]
        >>> with style():
        ...     inside = matplotlib.rcParams["font.size"]
        >>> inside, matplotlib.rcParams["font.size"] == before
        (8.0, True)
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


@checked
def new_figure(width_in: float = COLUMN_WIDTH_IN, height_in: float = 2.4) -> tuple[Any, Any]:
    """Make a figure with one pair of axes, in the shared look.

    Args:
        width_in: Width in inches; one column of a two-column page by default.
        height_in: Height in inches.

    Returns:
        (figure, axes) of matplotlib.

    Example:
        >>> figure, axes = new_figure(height_in=2.0)
        >>> print(figure.get_size_inches(), len(figure.axes))
        [3.35 2.  ] 1
    """
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")
        return figure, figure.add_subplot()


def png(figure: Any, source: Mapping[str, str] | None = None) -> bytes:
    """Return a figure as the bytes of a PNG file, the same ones each time.

    Args:
        figure: A figure of matplotlib.
        source: Where its numbers come from, such as `chips.Records.source`; kept in the file's metadata as `Source`.

    Returns:
        Bytes of the file, 300 dots an inch.

    Example:
        >>> figure, axes = new_figure()
        >>> png(figure)[1:4]
        b'PNG'
    """
    if not hasattr(figure, "savefig"):
        checks.fail("figure", "be a figure of matplotlib", f"is {checks.shown(figure)}")
    sink = io.BytesIO()
    about = {} if source is None else {"Source": "; ".join(f"{name}: {value}" for name, value in source.items())}
    with style():
        figure.savefig(sink, format="png", metadata={"Software": None, **about})
    return sink.getvalue()


def svg(figure: Any) -> str:
    """Return a figure as an SVG element, the same one each time, to be put into a page of HTML.

    Args:
        figure: A figure of matplotlib.

    Example:
        >>> figure, axes = new_figure()
        >>> svg(figure)[:4], svg(figure) == svg(figure)
        ('<svg', True)
    """
    if not hasattr(figure, "savefig"):
        checks.fail("figure", "be a figure of matplotlib", f"is {checks.shown(figure)}")
    sink = io.StringIO()
    with style():
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None})
    text = sink.getvalue()
    return text[text.index("<svg") :].strip()
