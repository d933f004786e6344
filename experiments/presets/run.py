"""What a real language model's prompts need: start, rate, bound, steps, on intents that no table reports.

Command:  python -m experiments.presets.run [--tiny] [--out FOLDER] [--grids NAME ..] [--model PATH]
          python -m experiments.presets.plot FOLDER   (both in the root of the repository)
Time:     the grids `steps` and `rates` took 215 s on one H200; hours on two cores.
Expect:   one line for each candidate: accuracy in the prompt's own domain, in exact memory and through value noise of
          FeFET3 at sigma 0.1. What was chosen from lies in `results/` beside this file: those two grids.

All prompts of a grid are tuned side by side: every candidate on every domain of two streams, intents 6 to 10 of one
and 11 to 15 of the other. Every domain's 25 records tune one prompt; its test rows choose among all 20 labels.

Needs `clinc150` (`python -m experiments.data`); the tiny variant needs nothing.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.shift.settings import TINY, Settings, changed, language_model, streams
from nvcim_jax import checks, devices, files, models, pipeline, tuning

__all__ = ["GRIDS", "Grid", "measure"]

ROWS = 256
"""Queries ranked in one call."""


class Numbers(NamedTuple):
    """Numbers of one candidate, all traced.

    Attributes:
        rate: Learning rate.
        bound: Largest entry.
        noise: Share of the device's noise that training meets, 0 or 1.
        start: Which start, an index.
    """

    rate: Any
    bound: Any
    noise: Any
    start: Any


@checks.frozen_config
class Grid:
    """Candidates that are tuned together.

    Attributes:
        rates: Learning rates.
        bounds: Largest entries.
        starts: Names of starts, see `tuning.STARTS`.
        steps: Updates.
        batch: Texts a step.
        num_virtual: Virtual tokens.
        rise: Share of the updates over which the noise rises.
        suffix: Text between input and answer.
        together: Prompts tuned at a time.
    """

    rates: tuple[float, ...] = (1e-2,)
    bounds: tuple[float, ...] = (float("inf"),)
    starts: tuple[str, ...] = ("vocabulary",)
    steps: int = 150
    batch: int = 5
    num_virtual: int = 16
    rise: float = 0.3
    suffix: str = "\nIntent:"
    together: int = 48


GRIDS = {
    "rates": Grid(rates=(3e-3, 1e-2, 3e-2), bounds=(0.2, 0.4, float("inf")), starts=("vocabulary", "text")),
    "steps": Grid(rates=(1e-2, 3e-2), bounds=(0.2, 0.4), steps=400),
    "batch": Grid(rates=(1e-2, 3e-2), bounds=(0.2, 0.4), batch=15),
    "plain-form": Grid(rates=(1e-2, 3e-2), bounds=(0.4,), suffix=" ="),
    "tokens": Grid(rates=(1e-2, 3e-2), bounds=(0.2, 0.4), num_virtual=32),
}


def _noise(device: devices.Device, share: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
    return rows + share * (devices.value_noise(key, rows, device=device) - rows)


class Domain(NamedTuple):
    """Hold one domain of one stream: what tunes a prompt, and what asks it."""

    examples: tuning.Examples
    queries: Any
    truth: np.ndarray


def _domains(settings: Settings, lm: models.LM, text: models.Text) -> list[Domain]:
    found, config = [], settings.preset.config
    for first in (5, 10):
        (stream,) = streams(changed(settings, first_intent=first), [0])
        labels = list(stream.labels)
        for block in stream.blocks:
            rows = stream.test[block.domain]
            buffer = pipeline.make_buffer(block.records, lm, text, config=config)
            queries = pipeline.make_queries([r.input for r in rows], lm, text, config=config, labels=labels)
            found.append(Domain(buffer.examples, queries, np.array([labels.index(r.output) for r in rows])))
        if settings.data != "clinc5":
            break
    return found


def _padded(domains: Sequence[Domain]) -> tuning.Examples:
    """Return the examples of all domains, padded to one length."""
    sizes = {name: max(getattr(d.examples, name).shape[1] for d in domains) for name in ("ids", "where", "targets")}
    rows = [
        {
            name: jnp.pad(a, ((0, 0), (0, size - a.shape[1])), constant_values=models.IGNORE * (name == "targets"))
            for name, size in sizes.items()
            for a in [getattr(d.examples, name)]
        }
        for d in domains
    ]
    return tuning.Examples(**jax.tree.map(lambda *a: jnp.stack(a), *rows))


def _tuned(grid: Grid, lm: models.LM, domains: Sequence[Domain], device: devices.Device) -> tuple[list[Any], jax.Array]:
    """Return the candidates, each on every domain, and their prompts (candidates, domains, tokens, width)."""
    numbers = list(itertools.product(grid.rates, grid.bounds, (0.0, 1.0), range(len(grid.starts))))
    examples, adapters = _padded(domains), [tuning.prompt(grid.num_virtual, start=name) for name in grid.starts]
    options = tuning.Options(num_steps=grid.steps, batch=grid.batch, noise_rise=grid.rise)

    @jax.jit
    def starts(lm: models.LM, examples: tuning.Examples) -> jax.Array:
        one = lambda a, e: a.init(jax.random.key(1), lm, e, None)  # noqa: E731
        return jnp.stack([jax.vmap(lambda e, a=a: one(a, e))(examples) for a in adapters])

    @jax.jit
    def run(lm: models.LM, examples: tuning.Examples, first: jax.Array, pairs: Any) -> jax.Array:
        def one(pair: Any) -> jax.Array:
            n, i = pair
            adapter = adapters[0]
            prompt, _ = tuning.tune(
                jax.random.fold_in(jax.random.key(2), i),
                first[n.start, i],
                lm,
                jax.tree.map(lambda a: a[i], examples),
                adapter=adapter,
                options=options,
                optimiser=tuning.adam(n.rate),
                project=Partial(lambda bound, rows: jnp.clip(rows, -bound, bound), n.bound),
                perturb=Partial(_noise, device, n.noise),
            )
            return prompt

        return jax.lax.map(one, pairs, batch_size=grid.together)

    pairs = [(Numbers(*row), i) for row in numbers for i in range(len(domains))]
    pairs = jax.tree.map(lambda *a: jnp.asarray(a), *pairs)
    found = run(lm, examples, starts(lm, examples), pairs)
    return numbers, found.reshape(len(numbers), len(domains), *found.shape[1:])


def _accuracy(prompts: jax.Array, lm: models.LM, domains: Sequence[Domain], grid: Grid) -> np.ndarray:
    """Return the share of right answers (draws, candidates) of prompts (draws, candidates, domains, tokens, width)."""
    adapter, right = tuning.prompt(grid.num_virtual), []
    for i, domain in enumerate(domains):
        rows = prompts[:, :, i].reshape(-1, *prompts.shape[3:])
        num = len(domain.truth)
        which = np.stack([a.ravel() for a in np.meshgrid(np.arange(len(rows)), np.arange(num), indexing="ij")])
        picked = []
        for at in range(0, which.shape[1], ROWS):
            part = np.resize(np.arange(at, min(at + ROWS, which.shape[1])), ROWS)
            p, q = which[:, part]
            asked = domain.queries._replace(ids=domain.queries.ids[q], mask=domain.queries.mask[q])
            picked.append(np.asarray(pipeline.rank(rows[p], asked, lm, adapter=adapter).argmax(axis=1)))
        found = np.concatenate(picked)[: which.shape[1]].reshape(len(rows), num)
        right.append((found == domain.truth[None]).mean(axis=1).reshape(prompts.shape[:2]))
    return np.mean(right, axis=0)


def measure(grid: Grid, settings: Settings, *, draws: int = 3) -> list[dict[str, Any]]:
    """Return one record for each candidate of a grid, the best under noise first."""
    settings = changed(settings, template={"suffix": grid.suffix})
    lm, text = language_model(settings)
    domains, device = _domains(settings, lm, text), devices.get("FeFET3", sigma=0.1)
    started = time.perf_counter()
    numbers, prompts = _tuned(grid, lm, domains, device)
    prompts.block_until_ready()
    tuned = time.perf_counter() - started
    noise = jax.jit(jax.vmap(jax.vmap(jax.vmap(lambda k, p: devices.value_noise(k, p, device=device)))))
    keys = jax.random.split(jax.random.key(3), (draws, *prompts.shape[:2]))
    read = noise(keys, jnp.broadcast_to(prompts[None], (draws, *prompts.shape)))
    accuracy = _accuracy(jnp.concatenate([prompts[None], read]), lm, domains, grid)
    seconds = round(time.perf_counter() - started, 1), round(tuned, 1)
    static = {name: getattr(grid, name) for name in ("steps", "batch", "num_virtual", "rise", "suffix")}
    records = [
        {
            "rate": rate,
            "bound": bound if bound < float("inf") else None,
            "noise": bool(noise),
            "start": grid.starts[start],
            **static,
            "exact": round(float(accuracy[0, i]), 3),
            "noisy": round(float(accuracy[1:, i].mean()), 3),
            "largest": round(float(jnp.abs(prompts[i]).max()), 2),
            "seconds": seconds,
        }
        for i, (rate, bound, noise, start) in enumerate(numbers)
    ]
    return sorted(records, key=lambda r: -r["noisy"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the grids and print them, each when it is done."""
    parser = argparse.ArgumentParser(description="Choose a preset on intents that no table reports.")
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3, bundled, or a checkpoint")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"), help="folder of the records")
    parser.add_argument("--tiny", action="store_true", help="a few small numbers, to see that all of it works")
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), help="which grids, in order; all by default")
    chosen = parser.parse_args(arguments)
    settings = Settings(language_model=chosen.model, num_test=10)
    for name in chosen.grids:
        checks.choice("--grids", name, GRIDS)
    grids = {name: GRIDS[name] for name in chosen.grids}
    if chosen.tiny:
        settings, grids = TINY, {"tiny": Grid(steps=2, batch=2, num_virtual=2, together=2)}
    done: dict[str, Any] = {"device": jax.devices()[0].device_kind, "grids": {}}
    for name, grid in grids.items():
        done["grids"][name] = measure(grid, settings)
        files.folder("--out", chosen.out)
        files.write_json(chosen.out / "presets.json", done)
        print(name, *(json.dumps(record) for record in done["grids"][name]), sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
