"""The other sides of the crossbar benchmark: NumPy's matmul, a loop in torch, aihwkit's torch tile.

Each is started by `crossbar.py` as `python -m experiments.benchmarks.peers TOOL SHAPE ...`, under the Python where it
is installed; nothing of nvcim_jax is imported here.
"""

# pyright: reportMissingImports=false

import sys
from collections.abc import Callable, Mapping

from experiments.benchmarks.common import Case, serve, versions
from experiments.benchmarks.workload import ADC_MAX, BITS, SHAPES, SIGMA, Shape, inputs_and_weights

__all__ = ["TOOLS"]

_Prepared = tuple[dict[str, str], Mapping[str, Case]]
_NUMBERS = 1 << 18


def numpy_side(names: list[str]) -> _Prepared:
    """One product of the same sizes, without noise or converters; and NumPy's normal numbers."""
    import numpy as np

    def matmul(shape: Shape) -> Case:
        x, w = inputs_and_weights(shape)

        def run() -> None:
            for _ in range(shape.chips):
                np.matmul(x, w)

        return Case(run, shape.chips, {})

    random, out = np.random.default_rng(0), np.empty(_NUMBERS, np.float32)
    cases = {f"matmul {name}": matmul(SHAPES[name]) for name in names}
    cases["normal"] = Case(lambda: random.standard_normal(out=out, dtype=np.float32), _NUMBERS, {})
    return versions("numpy"), cases


def torch_side(names: list[str]) -> _Prepared:
    """The loop over chips that one writes by hand; and torch's normal numbers."""
    import torch

    torch.set_num_threads(1)

    def loop(shape: Shape) -> Case:
        x, w = (torch.from_numpy(array) for array in inputs_and_weights(shape))
        largest = w.abs().max()
        plus, minus = (w / largest).clamp(min=0), (-w / largest).clamp(min=0)
        steps = 2 ** (BITS - 1) - 1
        tiles = shape.rows // shape.tile_rows
        voltages = (x.clamp(-1, 1) * steps).round() / steps
        voltages = voltages.view(shape.batch, tiles, shape.tile_rows).transpose(0, 1).contiguous()
        step = 2 * ADC_MAX / (2**BITS - 1)

        def run() -> None:
            with torch.no_grad():
                for _ in range(shape.chips):
                    high = (plus + SIGMA * torch.randn_like(plus)).clamp_(min=0)
                    low = (minus + SIGMA * torch.randn_like(minus)).clamp_(min=0)
                    cells = high.sub_(low).view(tiles, shape.tile_rows, shape.cols)
                    currents = torch.bmm(voltages, cells).clamp_(-ADC_MAX, ADC_MAX)
                    codes = currents.add_(ADC_MAX).div_(step).round_().mul_(step).sub_(ADC_MAX)
                    codes.sum(0).mul_(largest)

        return Case(run, shape.chips, {})

    out = torch.empty(_NUMBERS)
    cases = {f"device {name}": loop(SHAPES[name]) for name in names}
    cases["normal"] = Case(lambda: torch.randn(_NUMBERS, out=out), _NUMBERS, {})
    return versions("torch"), cases


def aihwkit_side(names: list[str]) -> _Prepared:
    """IBM's tile in torch: `program_analog_weights` and a forward pass for each chip; and with its backward pass."""
    import torch

    torch.set_num_threads(1)
    cases = {}
    for name in names:
        run, run_gradient = _aihwkit_runs(SHAPES[name])
        cases[f"device {name}"] = Case(run, SHAPES[name].chips, {})
        cases[f"gradient {name}"] = Case(run_gradient, SHAPES[name].chips, {})
    return versions("aihwkit", "torch"), cases


def _aihwkit_runs(shape: Shape) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return a forward, and a forward and backward, over the chips of one sample."""
    import torch
    from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.nn import AnalogLinearMapped
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType

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

    x, w = (torch.from_numpy(array) for array in inputs_and_weights(shape))
    options = TorchInferenceRPUConfig()
    options.mapping.max_input_size = options.mapping.max_output_size = 256
    options.mapping.digital_bias = True
    options.forward.is_perfect = False
    options.forward.inp_res = options.forward.out_res = 1 / (2**BITS - 2)
    options.forward.out_bound, options.forward.out_noise = ADC_MAX, 0.0
    options.forward.bound_management = BoundManagementType.NONE
    options.forward.noise_management = NoiseManagementType.ABS_MAX
    options.noise_model, options.drift_compensation = Gaussian(), None
    layer = AnalogLinearMapped(shape.rows, shape.cols, bias=False, rpu_config=options)
    layer.set_weights(w.T.contiguous())
    layer.eval()

    def run() -> None:
        with torch.no_grad():
            for _ in range(shape.chips):
                layer.program_analog_weights()
                layer(x)

    def run_gradient() -> None:
        for _ in range(shape.chips):
            layer.program_analog_weights()
            inputs = x.clone().requires_grad_()
            torch.autograd.grad(layer(inputs).square().sum(), inputs)

    return run, run_gradient


TOOLS = {
    "numpy": (numpy_side, ["numpy"]),
    "torch": (torch_side, ["torch"]),
    "aihwkit": (aihwkit_side, ["aihwkit", "torch"]),
}

if __name__ == "__main__":
    prepare, needed = TOOLS[sys.argv[1]]
    serve(sys.argv[1], lambda: prepare(sys.argv[2:]), needed)
