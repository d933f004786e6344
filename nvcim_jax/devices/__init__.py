"""Non-volatile memory cells: cited devices, their noise on three clocks, faults, and measured data."""

from nvcim_jax.devices.clocks import Cells, cycle_key, drift, drift_exponents, program, read, read_sigma, reprogram
from nvcim_jax.devices.measured import LevelFit, fit_table, from_fit, from_table
from nvcim_jax.devices.measured_csv import Records, from_csv, read_records
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
    "LevelFit",
    "LevelTable",
    "OneOverFRead",
    "Polynomial",
    "PowerLawDrift",
    "Programming",
    "Read",
    "Records",
    "cycle_key",
    "drift",
    "drift_exponents",
    "fit_table",
    "from_csv",
    "from_fit",
    "from_table",
    "get",
    "level_conductances",
    "mean_of",
    "names",
    "program",
    "program_moments",
    "programmed",
    "read",
    "read_records",
    "read_sigma",
    "reprogram",
    "sigma_of",
    "value_noise",
]
