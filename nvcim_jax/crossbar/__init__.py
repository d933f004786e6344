"""Weights on arrays of memory cells: mapping, converters, programming, the noisy product, and its statistics."""

from nvcim_jax.crossbar.calibration import calibrate, calibrate_network
from nvcim_jax.crossbar.chip import Chip, chip_axes, compensate, drift, program, read_back, reprogram, write
from nvcim_jax.crossbar.config import Config, Converters, geometry
from nvcim_jax.crossbar.converters import Bits
from nvcim_jax.crossbar.ir_drop import Wires, transfer_matrix
from nvcim_jax.crossbar.mapping import Target, encode
from nvcim_jax.crossbar.mitigation import column_factors, program_verified, selected
from nvcim_jax.crossbar.moments import product_moments
from nvcim_jax.crossbar.network import Kernel, OnChip, on_chip, reread
from nvcim_jax.crossbar.product import Info, matmul
from nvcim_jax.crossbar.report import report
from nvcim_jax.crossbar.sample import sample

__all__ = [
    "Bits",
    "Chip",
    "Config",
    "Converters",
    "Info",
    "Kernel",
    "OnChip",
    "Target",
    "Wires",
    "calibrate",
    "calibrate_network",
    "chip_axes",
    "column_factors",
    "compensate",
    "drift",
    "encode",
    "geometry",
    "matmul",
    "on_chip",
    "product_moments",
    "program",
    "program_verified",
    "read_back",
    "report",
    "reprogram",
    "reread",
    "sample",
    "selected",
    "transfer_matrix",
    "write",
]
