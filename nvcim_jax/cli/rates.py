"""Learning rates that the commands take for an adapter where none is given."""

from nvcim_jax import pipeline

__all__ = ["ADAPTERS", "rate_of"]

PRETRAINED = {
    "prompt": 1e-2,
    "p_tuning": 3.3e-4,
    "rslora": 6.6e-4,
    "dora": 1.65e-3,
} | dict(pipeline.presets["pretrained"].rates)
"""For Adam, with any checkpoint: found as those of the preset were."""

BUNDLED = PRETRAINED | {"p_tuning": 1e-3, "rslora": 5e-3, "dora": 1e-2} | dict(pipeline.presets["bundled"].rates)
"""For Adam, with the bundled model: those that the preset has not are usual ones, not searched for."""

ZEROTH_ORDER = {"prefix": 2e-3}
"""For SGD on slopes without a backward pass, the best of three with SmolLM2; 2e-4 for the others."""

ADAPTERS = tuple(PRETRAINED)
"""Adapters that the commands know."""


def rate_of(adapter: str, *, bundled: bool, zeroth_order: bool = False) -> float:
    """Return the learning rate of an adapter.

    Example:
        >>> rate_of("lora", bundled=False), rate_of("prefix", bundled=False, zeroth_order=True)
        (0.00165, 0.002)
    """
    if zeroth_order:
        return ZEROTH_ORDER.get(adapter, 2e-4)
    return (BUNDLED if bundled else PRETRAINED)[adapter]
