"""Handwritten digits on noisy chips: accuracy of a dense and a convolutional network against programming noise.

Command:  python -m experiments.digits.run [--tiny] [--out FOLDER]
          python -m experiments.digits.plot FOLDER
Time:     a minute and a half on two cores (--tiny: half a minute of processor time, most of it compiling).
Expect:   accuracy over 1,000 chips, trained plainly and noise-aware (at sigma 0.15):
          - dense, exact 97 and 98 %: at sigma 0.05 95.7 and 97.8 %, at 0.15 66.4 and 97.0 %, at 0.3 26.4 and 91.7 %.
          - convolutional, exact 97 and 96 %: at sigma 0.05 88.0 and 96.1 %, at 0.15 38.8 and 93.9 %, at 0.3 17.0 and
            77.3 %.
          The committed records in `results/` are those of `python -m experiments.digits.run --out
          experiments/digits/results`.

No language model: scikit-learn's 1,797 images of 8 x 8 pixels, a quarter of them for testing, two small networks in
Flax linen, and every weight in pairs of memory cells, in arrays of 64 rows behind converters of 8 bits. Each network is
trained twice: plainly, and noise-aware, with the weights of every step on a fresh set of chips. Each point is the mean
accuracy over chips, with its 95 % interval and the accuracy that 95 % of the chips reach. Records go to FOLDER as JSON
lines, with the command, versions and seed in `run.json`; `plot.py` reads only those.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import quax

from experiments.records import origin, write
from nvcim_jax import checks, crossbar, devices, files, montecarlo, ops

__all__ = ["CONFIGS", "Config", "Convolutional", "Data", "Dense", "main", "run"]


@checks.frozen_config
class Config:
    """What is trained, and what it is measured on.

    Attributes:
        name: Name of this configuration.
        num_steps: Steps of training.
        batch: Images of a step.
        learning_rate: Of Adam.
        training_sigma: Programming noise of the chips that the noise-aware network is trained on.
        sigmas: Programming noise that the networks are measured at, relative to g_max.
        num_chips: Chips of a point.
        values_at: The noise at which the accuracy of every single chip is kept.
        seed: Seed of the weights, the batches and the chips.
    """

    name: str = "full"
    num_steps: int = 2000
    batch: int = 128
    learning_rate: float = 3e-3
    training_sigma: float = 0.15
    sigmas: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    num_chips: int = 1000
    values_at: float = 0.15
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(name="tiny", num_steps=60, batch=64, sigmas=(0.0, 0.15, 0.3), num_chips=8),
}
LAYOUT = crossbar.Config(rows=64, dac_bits=8, adc_bits=8)


class Dense(nn.Module):
    """Two dense layers, 64-128-10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return scores (images, 10)."""
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


class Convolutional(nn.Module):
    """Two convolutions of 3 x 3 at stride 2, with 8 and 16 channels, and a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return scores (images, 10)."""
        x = x.reshape(-1, 8, 8, 1)
        for channels in (8, 16):
            x = nn.relu(nn.Conv(channels, (3, 3), 2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


MODELS: dict[str, Any] = {"dense": Dense(), "convolutional": Convolutional()}


class Data(NamedTuple):
    """Images (num, 64) in [0, 1] and their digits, for training and for testing."""

    x: jax.Array
    y: jax.Array
    test_x: jax.Array
    test_y: jax.Array


def load(seed: int) -> Data:
    """Load the digits; a quarter of them is for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x, test_x, y, test_y = train_test_split(images / 16.0, labels, test_size=0.25, random_state=seed, stratify=labels)
    return Data(jnp.float32(x), jnp.asarray(y), jnp.float32(test_x), jnp.asarray(test_y))


def train(key: jax.Array, model: Any, data: Data, device: devices.Device | None, config: Config) -> Any:
    """Train a network; with a device, every step computes on a fresh set of its chips.

    Returns:
        Its parameters.
    """
    start_key, key = jax.random.split(key)
    apply = quax.quaxify(model.apply)

    def loss(params: Any, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        del step
        batch_key, chip_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (config.batch,), 0, len(data.x))
        held = params if device is None else crossbar.on_chip(chip_key, params, device, config=LAYOUT)
        scores = apply(held, data.x[chosen])
        value = optax.softmax_cross_entropy_with_integer_labels(scores, data.y[chosen]).mean()
        return value, value

    @jax.jit
    def fit(key: jax.Array, params: Any) -> Any:
        return ops.descend(key, params, loss, optax.adam(config.learning_rate), num_steps=config.num_steps)[0]

    return fit(key, model.init(start_key, data.x[:1]))


def accuracy_of(model: Any) -> Callable[..., jax.Array]:
    """Return the share of images that a network on one set of chips gets right, as a function for `montecarlo.run`."""
    apply = quax.quaxify(model.apply)

    def accuracy(key: jax.Array, params: Any, device: devices.Device, x: jax.Array, y: jax.Array) -> jax.Array:
        chips = crossbar.on_chip(key, params, device, config=LAYOUT)
        return jnp.mean(apply(chips, x).argmax(axis=1) == y)

    return accuracy


def run(config: Config) -> Iterator[dict[str, Any]]:
    """Train both networks in both ways, measure them, and yield one record a point."""
    data = load(config.seed)
    train_key, chip_key = jax.random.split(jax.random.key(config.seed))
    for index, (name, model) in enumerate(MODELS.items()):
        accuracy = accuracy_of(model)
        for training, device in (
            ("plain", None),
            ("noise-aware", devices.get("Gaussian", sigma=config.training_sigma)),
        ):
            params = train(jax.random.fold_in(train_key, index), model, data, device, config)
            digital = float(jnp.mean(model.apply(params, data.test_x).argmax(axis=1) == data.test_y))
            for sigma in config.sigmas:
                device = devices.get("Gaussian", sigma=sigma)
                args = (params, device, data.test_x, data.test_y)
                stats = montecarlo.run(accuracy, chip_key, config.num_chips, args=args, progress=False)
                interval = montecarlo.mean_interval(stats.values)
                yield {
                    "model": name,
                    "training": training,
                    "sigma": sigma,
                    "accuracy": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                    "reached_by_95_percent": float(stats.quantiles[stats.quantile_levels.index(0.05)]),
                    "digital": digital,
                    "num_chips": config.num_chips,
                    "values": [round(float(v), 4) for v in stats.values] if sigma == config.values_at else None,
                }


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure digits on noisy chips.")
    parser.add_argument("--tiny", action="store_true", help="a few chips, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/digits/NAME by default")
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    out = options.out or Path("runs/digits") / config.name
    out.mkdir(parents=True, exist_ok=True)
    started, records = time.perf_counter(), []
    for record in run(config):
        records.append(record)
        place = f"{record['model']}, {record['training']}, sigma {record['sigma']:g}"
        print(f"{place:40s} {record['accuracy']:.4f} [{record['low']:.4f}, {record['high']:.4f}]", flush=True)
    write(out / "records.jsonl", records)
    points = [{name: value for name, value in record.items() if name != "values"} for record in records]
    files.write(out / "records.csv", files.csv(points))
    files.write_json(out / "run.json", origin("experiments.digits.run", arguments, config, started))
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
