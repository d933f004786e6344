"""Non-volatile memory cells: cited devices, their noise on three clocks, faults, and measured data."""

from nvcim_jax.devices.clocks import Cells, cycle_key, drift, program, read, read_sigma, reprogram
from nvcim_jax.devices.laws import level_table, log_linear, one_over_f, polynomial
from nvcim_jax.devices.measured import LevelFit, fit_table, from_fit, from_table
from nvcim_jax.devices.measured_csv import from_csv, read_records
from nvcim_jax.devices.programming import (
    cell_moments,
    level_conductances,
    program_moments,
    programmed,
    sigma_of,
)
from nvcim_jax.devices.spec import Device, Drift, Law, Read, check_device
from nvcim_jax.devices.table import get, names
from nvcim_jax.devices.values import value_noise

__all__ = [
    "Cells",
    "Device",
    "Drift",
    "Law",
    "LevelFit",
    "Read",
    "cell_moments",
    "check_device",
    "cycle_key",
    "drift",
    "fit_table",
    "from_csv",
    "from_fit",
    "from_table",
    "get",
    "level_conductances",
    "level_table",
    "log_linear",
    "names",
    "one_over_f",
    "polynomial",
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
