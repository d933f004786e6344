"""Non-volatile memory cells: cited devices, their noise on three clocks, faults, and measured data."""

from nvcim_jax.devices.cellfit import fit_records
from nvcim_jax.devices.clocks import Cells, cycle_key, drift, program, read, read_sigma, reprogram
from nvcim_jax.devices.four_laws import from_records
from nvcim_jax.devices.laws import level_table, log_linear, one_over_f, polynomial
from nvcim_jax.devices.measured import fit_table, from_table
from nvcim_jax.devices.measured_csv import from_csv
from nvcim_jax.devices.programming import (
    cell_moments,
    level_conductances,
    program_moments,
    programmed,
    sigma_of,
)
from nvcim_jax.devices.records import read_records
from nvcim_jax.devices.spec import BY_NAME, Device, Drift, Law, Read
from nvcim_jax.devices.table import get, names
from nvcim_jax.devices.values import value_noise

__all__ = [
    "BY_NAME",
    "Cells",
    "Device",
    "Drift",
    "Law",
    "Read",
    "cell_moments",
    "cycle_key",
    "drift",
    "fit_records",
    "fit_table",
    "from_csv",
    "from_records",
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
