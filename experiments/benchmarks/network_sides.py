"""The sides of the network benchmark: nvcim_jax, the loop over chips that one writes by hand in torch, and aihwkit.

`network.py` starts each as `python -m experiments.benchmarks.network_sides TOOL NUM_CHIPS`, under the Python where the
tool is installed.
"""

# pyright: reportMissingImports=false

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmarks.common import Case, serve, versions
from experiments.benchmarks.digits import BITS, SIGMA, networks

__all__ = ["TOOLS"]

_Prepared = tuple[dict[str, str], Mapping[str, Case]]
_READS = 200


def nvcim_side(num_chips: int) -> _Prepared:
    """Accuracy over chips by `montecarlo.run`, and one network on chips against the sum of its products."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import quax

    from nvcim_jax import crossbar, devices, montecarlo

    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(10, use_bias=False)(nn.relu(nn.Dense(128, use_bias=False, name="first")(x)))

    class Convolutional(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = x.reshape(-1, 8, 8, 1)
            for channels in (8, 16):
                x = nn.relu(nn.Conv(channels, (3, 3), 2, use_bias=False)(x))
            return nn.Dense(10, use_bias=False)(x.reshape(x.shape[0], -1))

    found = networks()
    x, labels = jnp.asarray(found.images), jnp.asarray(found.labels)
    device, config = devices.get("Gaussian", sigma=SIGMA, clip=True), crossbar.Config(dac_bits=BITS, adc_bits=BITS)
    first, last = (jnp.asarray(w) for w in found.dense)
    one, two, head = (jnp.asarray(w) for w in found.convolutional)
    kernels = {"Conv_0": one.reshape(3, 3, 1, 8), "Conv_1": two.reshape(3, 3, 8, 16), "Dense_0": head}
    params = {
        "dense": (Dense(), {"first": first, "Dense_0": last}),
        "convolutional": (Convolutional(), kernels),
    }
    cases = {}
    for name, (model, weights) in params.items():
        tree = {"params": {layer: {"kernel": w} for layer, w in weights.items()}}
        run = quax.quaxify(model.apply)

        def accuracy(key: jax.Array, tree: object, x: jax.Array, y: jax.Array, run: Callable = run) -> jax.Array:
            chips = crossbar.on_chip(key, tree, device, config=config)
            return jnp.mean(run(chips, x).argmax(axis=1) == y)

        def many(accuracy: Callable = accuracy, tree: object = tree) -> float:
            key = jax.random.key(0)
            return float(montecarlo.run(accuracy, key, num_chips, args=(tree, x, labels), progress=False).mean)

        cases[name] = Case(many, num_chips, {"accuracy": many()})
        chips = crossbar.on_chip(jax.random.key(1), tree, device, config=config)
        cases |= {f"{name}, {what}": Case(fn, _READS, {}) for what, fn in _reads(run, chips, x, found.images).items()}
    return versions("nvcim-jax", "jax", "flax"), cases


def _reads(run: Callable, chips: Any, x: object, images: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return one network on given chips, its products with inputs that are there already, and itself without Quax."""
    import jax
    import jax.numpy as jnp

    from nvcim_jax import crossbar, ops

    leaves = [
        chips["params"][name]["kernel"] for name in ("Conv_0", "Conv_1", "first", "Dense_0") if name in chips["params"]
    ]
    convolves = len(leaves) == 3

    def seen(h: jax.Array, layer: int) -> jax.Array:
        """Return what a layer multiplies with: the patches of its images, or its inputs in a row."""
        if not convolves or layer == 2:
            return h.reshape(len(h), -1)
        parts = ops.patches(h, (3, 3), (2, 2), [(0, 1), (0, 1)], (1, 1))
        return parts.reshape(*parts.shape[:3], -1)

    def by_hand(leaves: list[crossbar.OnChip], h: jax.Array) -> list[jax.Array]:
        h, inputs = h.reshape(-1, 8, 8, 1) if convolves else h, []
        for layer, leaf in enumerate(leaves):
            inputs.append(seen(jax.nn.relu(h) if layer else h, layer))
            h = crossbar.matmul(leaf.key, inputs[-1], leaf.chip)[0]
        return [h, *inputs]

    network, hand = jax.jit(run), jax.jit(lambda leaves, x: by_hand(leaves, x)[0])
    products = jax.jit(
        lambda leaves, given: [crossbar.matmul(w.key, h, w.chip)[0] for w, h in zip(leaves, given, strict=True)]
    )
    given = [jnp.asarray(np.asarray(h)) for h in by_hand(leaves, jnp.asarray(images))[1:]]

    def all_of(fn: Callable[[], object]) -> Callable[[], object]:
        return lambda: [jax.block_until_ready(fn()) for _ in range(_READS)]

    return {
        "one network": all_of(lambda: network(chips, x)),
        "written by hand": all_of(lambda: hand(leaves, x)),
        "its products": all_of(lambda: products(leaves, given)),
    }


def torch_side(num_chips: int) -> _Prepared:
    """The loop that one writes by hand: program a chip, evaluate the test set, next chip."""
    import torch

    torch.set_num_threads(1)
    found = networks()
    x, labels = torch.from_numpy(found.images), torch.from_numpy(found.labels)
    steps = 2 ** (BITS - 1) - 1

    def pairs(weights: Sequence[np.ndarray]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        tensors = [torch.from_numpy(w) for w in weights]
        return [((w / w.abs().max()).clamp(min=0), (-w / w.abs().max()).clamp(min=0), w.abs().max()) for w in tensors]

    def program(plus: torch.Tensor, minus: torch.Tensor, largest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high = (plus + SIGMA * torch.randn_like(plus)).clamp_(min=0)
        low = (minus + SIGMA * torch.randn_like(minus)).clamp_(min=0)
        return high.sub_(low), largest

    def convert(v: torch.Tensor) -> torch.Tensor:
        step = v.abs().amax(1, keepdim=True).div_(steps)
        step = torch.where(step > 0, step, 1.0)
        return (v / step).round_().mul_(step)

    def product(x: torch.Tensor, chip: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return convert(convert(x) @ chip[0]).mul_(chip[1])

    def convolve(x: torch.Tensor, chip: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        half = x.shape[1] // 2
        x = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1))
        seen = [x[:, i : i + 2 * half : 2, j : j + 2 * half : 2] for i in range(3) for j in range(3)]
        seen = torch.stack(seen, dim=3).reshape(len(x) * half * half, -1)
        return product(seen, chip).view(len(x), half, half, -1)

    def dense(chips: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        return product(product(x, chips[0]).relu_(), chips[1])

    def convolutional(chips: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        h = convolve(x.view(-1, 8, 8, 1), chips[0]).relu_()
        return product(convolve(h, chips[1]).relu_().flatten(1), chips[2])

    def loop(network: Callable, weights: Sequence[np.ndarray]) -> Callable[[], float]:
        halves = pairs(weights)

        @torch.no_grad()
        def run() -> float:
            right = [
                (network([program(*half) for half in halves]).argmax(1) == labels).float().mean()
                for _ in range(num_chips)
            ]
            return float(torch.stack(right).mean())

        return run

    runs = {"dense": loop(dense, found.dense), "convolutional": loop(convolutional, found.convolutional)}
    return versions("torch"), {name: Case(run, num_chips, {"accuracy": run()}) for name, run in runs.items()}


def aihwkit_side(num_chips: int) -> _Prepared:
    """The dense network of IBM's torch tiles, programmed and evaluated chip after chip."""
    import torch
    from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.nn import AnalogLinear
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType

    torch.set_num_threads(1)
    g_max = 25.0

    class Gaussian(BaseNoiseModel):
        """Noise of 5 % of g_max on every cell, cut at 0, and no drift."""

        def __init__(self) -> None:
            super().__init__(SinglePairConductanceConverter(g_max=g_max))

        @torch.no_grad()
        def apply_programming_noise_to_conductance(self, g_target: torch.Tensor) -> torch.Tensor:
            return (g_target + SIGMA * g_max * torch.randn_like(g_target)).clamp_(min=0.0)

        def generate_drift_coefficients(self, g_target: torch.Tensor) -> None:
            return None

    options = TorchInferenceRPUConfig()
    options.forward.is_perfect = False
    options.forward.inp_res = options.forward.out_res = 1 / (2**BITS - 2)
    options.forward.out_bound, options.forward.out_noise = 12.0, 0.0
    options.forward.bound_management = BoundManagementType.NONE
    options.forward.noise_management = NoiseManagementType.ABS_MAX
    options.noise_model, options.drift_compensation = Gaussian(), None
    found = networks()
    x, labels = torch.from_numpy(found.images), torch.from_numpy(found.labels)
    layers = []
    for w in found.dense:
        layer = AnalogLinear(*w.shape, bias=False, rpu_config=options)
        layer.set_weights(torch.from_numpy(w.T.copy()))
        layers.append(layer.eval())

    @torch.no_grad()
    def run() -> float:
        right = 0.0
        for _ in range(num_chips):
            for layer in layers:
                layer.program_analog_weights()
            right += float((layers[1](layers[0](x).relu_()).argmax(1) == labels).float().mean())
        return right / num_chips

    return versions("aihwkit", "torch"), {"dense": Case(run, num_chips, {"accuracy": run()})}


TOOLS = {
    "nvcim_jax": (nvcim_side, ["jax"]),
    "torch": (torch_side, ["torch"]),
    "aihwkit": (aihwkit_side, ["aihwkit", "torch"]),
}

if __name__ == "__main__":
    _tool, _num = sys.argv[1], int(sys.argv[2])
    _prepare, _needs = TOOLS[_tool]
    serve(_tool, lambda: _prepare(_num), [*_needs, "sklearn"])
