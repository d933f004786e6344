"""Named presets: one place for the defaults that the README, `nvcim run`, the experiments and the notebook use."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from jax.tree_util import Partial

from nvcim_jax import checks, crossbar, devices, models, tuning
from nvcim_jax.pipeline.config import Config, changed
from nvcim_jax.pipeline.memory import Memory, crossbar_memory, exact_memory, through_memory
from nvcim_jax.types import Key

__all__ = ["Preset", "presets", "training_noise"]

NOISES = ("none", "value", "cell", "censored")

ARRAYS = crossbar.Config(
    rows=384, cols=128, weight_bits=16, cell_bits=2, slices="rows", weight_scale="column", dac_bits=8, adc_bits=8
)
"""16-bit values on eight 2-bit cells, 384 x 128 arrays: consistent with what is known of the paper, unconfirmed [I]."""

CENSORED_AT = 1.0
"""Largest noise of right-censored training, in standard deviations: this library's choice [I]."""


RATES = MappingProxyType(
    {
        "bundled": MappingProxyType({"prefix": 1e-1, "lora": 1e-2, "ia3": 3e-2}),
        "pretrained": MappingProxyType({"prefix": 1e-2, "lora": 1.65e-3, "ia3": 2e-2}),
    }
)
"""Learning rates of what is stored in place of prompts, for Adam. With the bundled model, which is narrower, as stored
prompts are tuned (`experiments.9_what_to_store.run --config rates`); with any checkpoint, found with SmolLM2-135M on 25
records of one domain, the best of four of which each is three times the one before
(`experiments.11_memory_and_accuracy.run --config rates`)."""

PROMPTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "any": MappingProxyType({"bound": float("inf"), "learning_rate": 1e-2}),
        "bundled": MappingProxyType({"bound": 0.4, "learning_rate": 5e-2}),
        "pretrained": MappingProxyType({"bound": 0.2, "learning_rate": 3e-2}),
    }
)
"""Bound and learning rate of a prompt, by what a preset is made for."""


def _nothing(key: Key, rows: Any) -> Any:
    del key
    return rows


def training_noise(kind: str, device: devices.Device | None, arrays: crossbar.Config) -> Partial:
    """Return what rows meet while they are tuned, as a `perturb` of `observe`; a new sigma compiles nothing.

    Args:
        kind: `none`, the `value`-level noise of the device's programming, the noise of single `cell`s of its bit-sliced
            mapping, or right-`censored` Gaussian noise of the device's sigma.
        device: The memory cells; None: no noise.
        arrays: Options of the crossbars, for the noise of cells.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from nvcim_jax import devices, pipeline
        >>> device = devices.get("FeFET3", sigma=0.1)
        >>> perturb = training_noise("cell", device, pipeline.Preset().arrays)
        >>> noise = perturb(jax.random.key(0), jnp.ones((8, 256))) - 1.0
        >>> bool(0.03 < noise.std() < 0.3)
        True
    """
    checks.choice("kind", kind, NOISES)
    if kind == "none" or device is None:
        return Partial(_nothing)
    if kind == "value":
        return Partial(devices.value_noise, device=_programming_alone(device))
    if kind == "censored":
        return Partial(tuning.censored_noise, sigma=device.sigma, threshold=CENSORED_AT)
    return Partial(through_memory, crossbar_memory(device, arrays))


def _programming_alone(device: devices.Device) -> devices.Device:
    """Return the device with nothing but noise around its targets: all that values know of it."""
    law = device.programming
    of_cells = dict.fromkeys(("d2d_sigma", "stuck_on", "stuck_off", "drift", "read"))
    return device.replace(programming=None if law is None else law.replace(mean=None), **of_cells)


@checks.frozen_config
class Preset:
    """Hold everything that is chosen before a memory is used: options, and the numbers and functions made of them.

    Attributes:
        config: Options of the pipeline.
        arrays: Options of the crossbars.
        template: The text form of a task.
        noise: What a prompt meets in training, see `training_noise`.
        learning_rate: Of prompt tuning.
        clip_norm: Largest norm of a gradient.
        schedule: How the learning rate changes.
        bound: Largest entry of the rows of a prompt, or of what is stored in its place: the noise of a memory grows
            with it.
        largest: Weight of the largest entry in the loss, a soft bound.
        anchor: Weight of the distance to where a prompt started, for anchored keys.
        lipschitz: Weight of the excess of a prompt's Lipschitz constant, see `tuning.penalties`.
        lipschitz_limit: See there.
        made_for: Whose bounds and learning rates `changed` takes for what is stored: those found with the `bundled`
            model, with a `pretrained` one, or, for `any`, no bound and the usual rate of a prompt.

    Raises:
        ValueError: If an option has no such value, or a number is negative.
    """

    config: Config = Config()
    arrays: crossbar.Config = ARRAYS
    template: models.Template = models.Template()
    noise: str = "none"
    learning_rate: float = 1e-2
    clip_norm: float = 1.0
    schedule: tuning.Schedule = tuning.Schedule()
    bound: float = float("inf")
    largest: float = 0.0
    anchor: float = 0.0
    lipschitz: float = 0.0
    lipschitz_limit: float = 1.0
    made_for: str = "any"

    def __post_init__(self) -> None:
        """Check the name and the numbers."""
        checks.choice("noise", self.noise, NOISES)
        checks.choice("made_for", self.made_for, PROMPTS)
        for name in ("learning_rate", "largest", "anchor", "lipschitz", "lipschitz_limit"):
            checks.number(name, getattr(self, name), low=0.0)
        for name in ("clip_norm", "bound"):
            checks.number(name, getattr(self, name), low=0.0, low_open=True)

    @property
    def rates(self) -> Mapping[str, float]:
        """Learning rates of what may be stored in place of prompts, for the model that the preset is for.

        Example:
            >>> presets["pretrained"].rates["lora"]
            0.00165
        """
        return RATES["bundled" if self.made_for == "bundled" else "pretrained"]

    def changed(self, **fields: Any) -> "Preset":
        """Return a copy with some fields replaced; a dictionary replaces fields of a part.

        With what is stored, `config["tunes"]`, bound and learning rate change: a prompt has its own, what comes in its
        place no bound and one of `rates`. A bound or rate that is another than the preset's, or given, is kept.

        Example:
            >>> presets["bundled"].changed(bound=1.0, config={"capacity": 3, "search": {"axis": "tokens"}}).bound
            1.0
            >>> other = presets["pretrained"].changed(config={"tunes": "ia3"})
            >>> other.bound, other.learning_rate
            (inf, 0.02)
            >>> other.changed(config={"tunes": "prompt"}) == presets["pretrained"]
            True
        """
        made = changed(self, **fields)
        old, new = self._of_stored(), made._of_stored()
        follow = {name: new[name] for name in old if name not in fields and getattr(self, name) == old[name]}
        return dataclasses.replace(made, **follow)

    def _of_stored(self) -> Mapping[str, Any]:
        """Return bound and learning rate of what is stored, as this preset has them unless they are set."""
        if self.config.tunes == "prompt":
            return PROMPTS[self.made_for]
        return {"bound": float("inf"), "learning_rate": self.rates[self.config.tunes]}

    def for_tuning(self, device: devices.Device | None) -> "Preset":
        """Return a copy in which everything that rows tuned for a device do not depend on is as by default.

        Example:
            >>> presets["pretrained"].changed(config={"num_keys": 2}).for_tuning(None).config.num_keys
            1
        """
        noise = "none" if device is None else self.noise
        arrays = self.fitted(device).arrays if noise == "cell" else ARRAYS
        own = {"config": self.config.for_tuning(), "template": models.Template(), "made_for": "any"}
        return dataclasses.replace(self, noise=noise, arrays=arrays, **own)

    def fitted(self, device: devices.Device | None) -> "Preset":
        """Return the preset with as many bits in a cell as the device has levels; analog cells keep the options.

        Example:
            >>> Preset().fitted(devices.get("RRAM1")).arrays.cell_bits
            1
        """
        levels = None if device is None else device.num_levels
        if not levels or self.arrays.cell_bits is None:
            return self
        bits = min(max(1, levels.bit_length() - 1), self.arrays.cell_bits)
        return dataclasses.replace(self, arrays=dataclasses.replace(self.arrays, cell_bits=bits))

    def memory(self, device: devices.Device | None) -> Memory:
        """Return crossbars of a device, with as many bits in a cell as it has levels; None: exact memory."""
        return exact_memory() if device is None else crossbar_memory(device, self.fitted(device).arrays)

    def parts(self, device: devices.Device | None) -> dict[str, Any]:
        """Return what `observe` takes besides arrays: the memory on a device and everything that tuning meets.

        The bound is on the rows of what `config.tunes` names: with an `adapter` of your own give a `project` as well.

        Example: `observe(key, state, buffer, lm, config=preset.config, **preset.parts(device))`.
        """
        return {
            "memory": self.memory(device),
            "perturb": training_noise(self.noise, device, self.fitted(device).arrays),
            "optimiser": tuning.adam(self.learning_rate, self.clip_norm, self.schedule),
            "project": tuning.bounded(self.bound, self.config.adapter()),
            "penalty": tuning.penalties(
                largest=self.largest,
                lipschitz=self.lipschitz,
                lipschitz_limit=self.lipschitz_limit,
                anchor=self.anchor if self.config.keys == "anchored" else 0.0,
            ),
        }


BUNDLED = Preset(
    config=Config(
        num_virtual=10,
        cluster_by="record",
        start="examples",
        keys="centroid",
        key_centre=True,
        key_clip=1.5,
        codec="identity",
        tuning=tuning.Options(num_steps=40, batch=3),
        capacity=40,
    ),
    noise="value",
    made_for="bundled",
    **PROMPTS["bundled"],
)

USERS = BUNDLED.changed(
    config={"num_prompts": 1, "num_keys": 5, "features": "last", "cluster_by": "input"},
)

PRETRAINED = Preset(
    config=Config(
        num_virtual=16,
        num_prompts=1,
        num_keys=5,
        cluster_by="record",
        features="hidden",
        feature_layers=8,
        keys="centroid",
        key_centre=True,
        key_spread=True,
        key_clip=1.5,
        codec="identity",
        tuning=tuning.Options(num_steps=150, batch=5, noise_rise=0.3),
        capacity=40,
    ),
    noise="value",
    made_for="pretrained",
    **PROMPTS["pretrained"],
)

presets: MappingProxyType[str, Preset] = MappingProxyType(
    {
        "bundled": BUNDLED,
        "users": USERS,
        "pretrained": PRETRAINED,
        "paper": Preset(noise="value", config=Config(keys="prompt", key_unit=False)),
    }
)
"""`bundled`: for the bundled model, which was taught to read prompts that hold examples; its numbers are those of the
experiments. `users`: the same where users ask alike and want other answers, as the built-in ones do: one prompt of a
whole buffer, found by the states of the last token; chosen on streams 100 to 105 of such users. `pretrained`: for any
other checkpoint, chosen with SmolLM2-135M on intents that no table reports (`experiments/presets`): one prompt of a
whole buffer, found by the states after eight blocks. `paper`: what is known of the paper, the rest inferred [I]."""
