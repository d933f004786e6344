"""Non-volatile memory cells: cited devices, their noise on three clocks, faults, and measured data."""

from nvcim_jax.devices.clocks import Cells, drift, drift_exponents, program, read, read_sigma, reprogram
from nvcim_jax.devices.programming import level_conductances, mean_of, program_moments, programmed, sigma_of
from nvcim_jax.devices.spec import (
    Device,
    Drift,
    GaussianRead,
    LevelTable,
    OneOverFRead,
    Polynomial,
    PowerLawDrift,
    Programming,
    Read,
)
from nvcim_jax.devices.table import get, names
from nvcim_jax.devices.values import value_noise

__all__ = [
    "Cells",
    "Device",
    "Drift",
    "GaussianRead",
    "LevelTable",
    "OneOverFRead",
    "Polynomial",
    "PowerLawDrift",
    "Programming",
    "Read",
    "drift",
    "drift_exponents",
    "get",
    "level_conductances",
    "mean_of",
    "names",
    "program",
    "program_moments",
    "programmed",
    "read",
    "read_sigma",
    "reprogram",
    "sigma_of",
    "value_noise",
]
