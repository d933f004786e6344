"""The side of nvcim_jax in the crossbar benchmark: every sampling, gradients, random numbers, Monte Carlo, memory.

`crossbar.py` starts it as `python -m experiments.benchmarks.products serve SHAPE ...` for timing, and as
`... memory SHAPE NUM` for the peak memory of one Monte Carlo run in a fresh process.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks.common import Case, pin, serve, versions
from experiments.benchmarks.workload import ADC_MAX, BITS, SHAPES, SIGMA, Shape, inputs_and_weights
from nvcim_jax import crossbar, devices, montecarlo, ops

__all__ = ["MODES"]

# name: (sampling, is a cell cut at 0)
MODES = {
    "device": ("device", True),
    "pair": ("pair", False),
    "moment_matched": ("moment_matched", True),
    "output_joint": ("output_joint", False),
    "output_marginal": ("output_marginal", False),
    "no_noise": ("device", False),
}
_TINY_MODES = ("device", "output_joint", "no_noise")
_NUMBERS = (256, 1024)
_TURNS = 16
# XLA's default is 256 bits; the numbers drawn are the same.
_WIDE = {"xla_cpu_prefer_vector_width": 512}

_Arrays = tuple[jax.Array, crossbar.Target]
_Chip = Callable[[jax.Array, jax.Array, crossbar.Target], jax.Array]


def _product(mode: str, shape: Shape) -> tuple[_Chip, _Arrays]:
    """Return `(key, x, target) -> y` of one chip, and its arrays."""
    sampling, clip = MODES[mode]
    device = devices.get("ideal") if mode == "no_noise" else devices.get("Gaussian", sigma=SIGMA, clip=clip)
    config = crossbar.Config(
        rows=shape.tile_rows,
        cols=256,
        dac_bits=BITS,
        dac_range="fixed",
        adc_bits=BITS,
        adc_range="fixed",
        adc_code="uniform",
    )
    x, weights = (jnp.asarray(array) for array in inputs_and_weights(shape))
    target = crossbar.encode(weights, device, config=config, dac_max=1.0, adc_max=ADC_MAX)

    def product(key: jax.Array, x: jax.Array, target: crossbar.Target) -> jax.Array:
        return crossbar.sample(key, x, target, sampling=sampling)[0]

    return product, (x, target)


def _energy(product: _Chip) -> _Chip:
    """Return one number that every output has a part in, and no linear identity can shorten."""
    return lambda key, *arrays: jnp.sum(jnp.square(product(key, *arrays)))


def _gradient(product: _Chip) -> _Chip:
    """Return one number from the gradient to all inputs."""
    energy = _energy(product)
    return lambda key, *arrays: jnp.sum(jnp.square(jax.grad(energy, argnums=1)(key, *arrays)))


def _compiled(
    fn: Callable[..., jax.Array], args: tuple[object, ...], options: dict[str, int] | None
) -> tuple[Callable[..., jax.Array], dict[str, float]]:
    """Compile, and say how long it took from the Python function to machine code."""
    cpu, wall = time.process_time(), time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile(options)  # type: ignore[arg-type]
    return compiled, {"compile_cpu_s": time.process_time() - cpu, "compile_wall_s": time.perf_counter() - wall}


def _over_chips(chip: _Chip, arrays: _Arrays, num_chips: int, options: dict[str, int] | None = None) -> Case:
    """One compiled loop over fresh chips that share their inputs."""

    def run(key: jax.Array, ids: jax.Array, *arrays: jax.Array) -> jax.Array:
        return lax.map(lambda i: chip(jax.random.fold_in(key, i), *arrays), ids)  # type: ignore[arg-type]

    args = (jax.random.key(0), jnp.arange(num_chips), *arrays)
    compiled, facts = _compiled(run, args, options)
    return Case(lambda: compiled(*args).block_until_ready(), num_chips, facts)


def _calls(product: _Chip, arrays: _Arrays, num_chips: int) -> Case:
    """One call of a compiled function for each chip, so that no work can be shared between chips."""
    compiled = jax.jit(product)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(num_chips)]

    def run() -> None:
        for key in keys:
            compiled(key, *arrays).block_until_ready()

    return Case(run, num_chips, {})


def _monte_carlo(chip: _Chip, arrays: _Arrays, num_chips: int) -> Case:
    """The same metric as a user runs it, with its statistics."""
    return Case(
        lambda: montecarlo.run(chip, jax.random.key(0), num_instances=num_chips, args=arrays, progress=False),
        num_chips,
        {},
    )


def _normals(rng: str, *, pairs: bool, options: dict[str, int] | None = None) -> Case:
    """Draw numbers in turn and add them up: nothing but one buffer of 1 MB is written."""

    def turn(i: jax.Array, total: jax.Array, key: jax.Array) -> jax.Array:
        key = jax.random.fold_in(key, i)
        if not pairs:
            return total + ops.normal(key, _NUMBERS, rng=rng)
        first, second = ops.normal_pair(key, _NUMBERS, rng=rng)
        return total + first - second

    def run(key: jax.Array, total: jax.Array) -> jax.Array:
        return lax.fori_loop(0, _TURNS, lambda i, total: turn(i, total, key), total)

    args = (jax.random.key(0), jnp.zeros(_NUMBERS))
    compiled, facts = _compiled(run, args, options)
    size = _NUMBERS[0] * _NUMBERS[1] * _TURNS * (2 if pairs else 1)
    return Case(lambda: compiled(*args).block_until_ready(), size, facts)


def _cases(names: list[str]) -> dict[str, Case]:
    cases = {}
    for name in names:
        shape = SHAPES[name]
        for mode in _TINY_MODES if name == "tiny" else MODES:
            product, arrays = _product(mode, shape)
            if mode != "no_noise":  # without noise all chips of a loop are one, and computed once
                # what a loop computes once weighs little in a study of many chips, so outputs are drawn for many
                num_chips = shape.chips * (1 if MODES[mode][0] in ("device", "pair") else 8)
                cases[f"{mode} {name}"] = _over_chips(_energy(product), arrays, num_chips)
            if mode in ("no_noise", "output_joint", "output_marginal"):
                cases[f"{mode}, call by call {name}"] = _calls(product, arrays, shape.chips)
        product, arrays = _product("device", shape)
        cases[f"device, 512-bit vectors {name}"] = _over_chips(_energy(product), arrays, shape.chips, _WIDE)
        cases[f"gradient {name}"] = _over_chips(_gradient(product), arrays, shape.chips)
        cases[f"montecarlo.run {name}"] = _monte_carlo(_energy(product), arrays, 16 * shape.chips)
    cases["normal, counter, in pairs"] = _normals("counter", pairs=True)
    cases["normal, counter, in pairs, 512-bit vectors"] = _normals("counter", pairs=True, options=_WIDE)
    cases["normal, counter"] = _normals("counter", pairs=False)
    cases["normal, threefry"] = _normals("threefry", pairs=False)
    return cases


def _prepare(names: list[str]) -> tuple[dict[str, str], Mapping[str, Case]]:
    return versions("nvcim-jax", "jax", "jaxlib", "numpy"), _cases(names)


def _peak_memory(name: str, num: int) -> dict[str, float]:
    """Run `num` chips through `montecarlo.run` and return the peak memory of this process, in MB."""
    import resource

    product, arrays = _product("device", SHAPES[name])
    stats = montecarlo.run(_energy(product), jax.random.key(0), num_instances=num, args=arrays, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return {"num": num, "peak_mb": peak / unit, "mean": float(stats.mean)}


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve("nvcim_jax", lambda: _prepare(sys.argv[2:]))
    else:
        pin()
        print(json.dumps(_peak_memory(sys.argv[2], int(sys.argv[3]))))
