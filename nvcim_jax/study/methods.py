"""What one row of a table does: how prompts are tuned, what the search computes, what is done about the noise."""

from types import MappingProxyType

from nvcim_jax import checks, crossbar
from nvcim_jax.pipeline import Config, Preset
from nvcim_jax.signature import checked

__all__ = ["METHODS", "MITIGATIONS", "Method", "Trial", "method_config", "trial"]

ROUTES = ("search", "oracle", "random")
TRAININGS = ("plain", "noise", "lipschitz")

MITIGATIONS = ("none", "swv", "cxdnn", "correctnet")
"""No mitigation; selective write-verify; column factors; affine compensation of the scores."""


@checks.frozen_config
class Method:
    """Say what one row of a table does.

    Attributes:
        training: How prompts are tuned: `plain`, with the device's `noise`, or with a `lipschitz` penalty.
        measure: What the search computes, see `selection.SearchConfig`.
        mitigation: What is done about the noise of the chip, see `MITIGATIONS`.
        route: Who chooses the prompt: the `search`; an `oracle` that knows the domain and searches among its prompts;
            or chance (`random`).
        axis: What the scaled search pools, see `selection.SearchConfig`; None: as the options of the pipeline say.
        storage: How its scales are stored; None: likewise.
        weights: Weights of its scales, one each; None: those of the store.
    """

    training: str = "plain"
    measure: str = "mips"
    mitigation: str = "none"
    route: str = "search"
    axis: str | None = None
    storage: str | None = None
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the names."""
        checks.choice("training", self.training, TRAININGS)
        checks.choice("measure", self.measure, ("mips", "cosine", "ssa"))
        checks.choice("mitigation", self.mitigation, MITIGATIONS)
        checks.choice("route", self.route, ROUTES)


METHODS: MappingProxyType[str, Method] = MappingProxyType(
    {
        "SWV": Method(mitigation="swv"),
        "CxDNN": Method(mitigation="cxdnn"),
        "CorrectNet": Method(training="lipschitz", mitigation="correctnet"),
        "No-Miti(MIPS)": Method(),
        "NVP*(MIPS)": Method(training="noise"),
        "NVCiM-PT": Method(training="noise", measure="ssa"),
        "oracle route": Method(training="noise", measure="ssa", route="oracle"),
        "random route": Method(training="noise", measure="ssa", route="random"),
    }
)
"""The rows of the paper's main table [S, readings I], and two bounds on what any search can do."""


@checked
def method_config(config: Config, method: Method) -> Config:
    """Return the options of the pipeline for one method: those with its search.

    Args:
        config: Options of the pipeline.
        method: The method.

    Raises:
        ValueError: If the method has not as many weights as there are scales.

    Example:
        >>> from nvcim_jax import pipeline
        >>> config = pipeline.presets["bundled"].config
        >>> [method_config(config, METHODS[name]).search.measure for name in ("NVP*(MIPS)", "NVCiM-PT")]
        ['mips', 'ssa']
    """
    search = {"measure": method.measure, "axis": method.axis, "storage": method.storage}
    found = config.changed(search={name: value for name, value in search.items() if value is not None})
    if method.weights is not None:
        checks.shape("weights", method.weights, (len(found.search.scales),), "(scales,)")
    return found


@checks.frozen_config
class Trial:
    """Say what is done with one chip: the part of a preset and a method that it depends on.

    Attributes:
        config: Options of the pipeline, with the method's search.
        arrays: Options of the crossbars.
        mitigation: See `Method`.
        route: See `Method`.
        weights: See `Method`.
    """

    config: Config
    arrays: crossbar.Config
    mitigation: str = "none"
    route: str = "search"
    weights: tuple[float, ...] | None = None


@checked
def trial(preset: Preset, method: Method) -> Trial:
    """Return what a method does with a chip; methods that differ in their training alone have equal trials.

    Args:
        preset: Everything that is chosen.
        method: The method.

    Example:
        >>> from nvcim_jax import pipeline
        >>> preset = pipeline.presets["bundled"]
        >>> trial(preset, METHODS["NVP*(MIPS)"]) == trial(preset, METHODS["No-Miti(MIPS)"])
        True
    """
    config = method_config(preset.config, method)
    return Trial(
        config=config,
        arrays=preset.arrays,
        mitigation=method.mitigation,
        route=method.route,
        weights=method.weights,
    )
