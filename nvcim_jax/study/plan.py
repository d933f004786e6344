"""What a study measures: its units, in order, and the check of its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nvcim_jax import checks, devices
from nvcim_jax.pipeline import EndToEnd
from nvcim_jax.signature import checked
from nvcim_jax.study.methods import METHODS, Method

__all__ = [
    "BASELINES",
    "DIGITAL",
    "END_TO_END",
    "MOST_CHIPS",
    "SEARCHED",
    "Design",
    "Unit",
    "check",
    "plan",
    "trainings",
    "units",
]

BASELINES = ("frozen", "latest", "sequential", "joint", "1-NN text", "1-NN own domain")
"""What needs no memory device: the model alone, one prompt, and the nearest text of all buffers or the right ones."""

DEFAULT_BASELINES = ("frozen", "latest", "sequential", "joint", "1-NN text")

MOST_CHIPS = 100_000
"""Chips of a device that one study may measure: the records of all are held together."""

DIGITAL = "digital"
"""Name of the device of what is kept exactly."""

END_TO_END = "end-to-end"
"""Name of the row of joint training through the noisy pipeline, which goes beyond the paper."""

SEARCHED = Method(training="noise", measure="ssa")
"""What is done with the chip in that row."""


class Unit(NamedTuple):
    """Name what is finished, skipped or repeated as a whole: one method on one stream and device.

    Attributes:
        kind: Kind of the stream.
        stream: Seed of the stream.
        device: Name of the device, or "digital" for exact memory and for methods without any.
        sigma: Its programming noise, relative to full scale; 0 for "digital".
        trained_for: Device and sigma whose noise the training met, empty for none.
        method: Name of the method or baseline.
    """

    kind: str
    stream: int
    device: str
    sigma: float
    trained_for: str
    method: str


class Design(NamedTuple):
    """Say what a study compares.

    Attributes:
        methods: Name -> method, each measured on every device.
        baselines: Names out of `BASELINES`.
        num_instances: Chips of a device.
        every_block: Whether to measure after every block, or after the last alone.
        end_to_end: Options of joint training through the noisy pipeline, a row of its own; None leaves it out.
        end_to_end_rate: Its learning rate; None: a tenth of the preset's.
        digital: Whether to measure methods in exact memory, too (device "digital").
        train_device: Device whose noise noise-aware training meets; None: the one that is measured on.
    """

    methods: Mapping[str, Method] = METHODS
    baselines: tuple[str, ...] = DEFAULT_BASELINES
    num_instances: int = 10
    every_block: bool = False
    end_to_end: EndToEnd | None = None
    end_to_end_rate: float | None = None
    digital: bool = True
    train_device: devices.Device | None = None


def sigma_of(device: devices.Device) -> float:
    return float(f"{float(device.sigma):.6g}")


def _label(device: devices.Device) -> str:
    return f"{device.name} {sigma_of(device):g}"


def trainings(design: Design) -> dict[str, Method]:
    """Return the methods that need a store, the joint training among them."""
    extra = {END_TO_END: SEARCHED} if design.end_to_end is not None else {}
    return {**design.methods, **extra}


def units(stream: Any, device_list: Sequence[devices.Device], design: Design) -> dict[Unit, Any]:
    """Return the units of one stream in order, each with the device to measure on and the one of the training."""
    kind, seed = getattr(stream, "kind", "stream"), int(getattr(stream, "seed", 0))
    found: dict[Unit, Any] = {Unit(kind, seed, DIGITAL, 0.0, "", name): (None, None) for name in design.baselines}
    for device in device_list:
        trained_on = design.train_device if design.train_device is not None else device
        for name, method in trainings(design).items():
            trained = _label(trained_on) if method.training == "noise" else ""
            if design.digital:
                found.setdefault(Unit(kind, seed, DIGITAL, 0.0, trained, name), (None, trained_on))
            found[Unit(kind, seed, device.name, sigma_of(device), trained, name)] = (device, trained_on)
    return found


@checked
def plan(
    streams: Sequence[Any],
    device_list: Sequence[devices.Device],
    design: Design = Design(),  # noqa: B008  # frozen
) -> tuple[Unit, ...]:
    """Return the units of `measure` for the same arguments, in order; `measure` advances by one for each.

    Args:
        streams: The streams.
        device_list: The devices.
        design: What is compared.

    Example:
        >>> from nvcim_jax import data, devices
        >>> made = plan([data.builtin_users(0)], [devices.get("FeFET3")], Design(baselines=("frozen",)))
        >>> len(made), made[0].method  # one baseline, 8 methods, each in exact memory and on one device
        (17, 'frozen')
    """
    return tuple(unit for stream in streams for unit in units(stream, device_list, design))


def check(streams: Sequence[Any], device_list: Sequence[devices.Device], design: Design) -> None:
    """Name what is wrong before anything is trained."""
    checks.integer(
        "num_instances", design.num_instances, high=MOST_CHIPS, fix="Split a larger study by the seed of `key`."
    )
    for name in design.baselines:
        checks.choice("baselines", name, BASELINES)
    clash = sorted({*BASELINES, END_TO_END} & set(design.methods))
    if clash:
        checks.fail("methods", f"not be named {', '.join(clash)}", "has one that is", "That name is a baseline's.")
    if not streams:
        checks.fail("streams", "hold at least one stream", "is empty")
    places = [(device.name, sigma_of(device)) for device in device_list]
    if len(set(places)) < len(places):
        checks.fail("device_list", "hold each name and sigma once", f"holds {places}")
    names = [(getattr(s, "kind", "stream"), int(getattr(s, "seed", 0))) for s in streams]
    if len(set(names)) < len(names):
        checks.fail("streams", "have a seed of their own for each kind", f"have {names}")
    if any(not stream.labels for stream in streams):
        checks.fail("streams", "have labels to choose from", "has one of free text", "Use `pipeline.answer` for it.")
