"""What hardware costs: latency, energy and area of chips, and of the digital machines that they are held against."""

from nvcim_jax.cost import machines
from nvcim_jax.cost.bill import Bill
from nvcim_jax.cost.constants import MARKS, Constant, constant_table
from nvcim_jax.cost.converter import conversion_time, converter_area, converter_energy, lossless_bits
from nvcim_jax.cost.machines import Machine
from nvcim_jax.cost.product import Periphery, count
from nvcim_jax.cost.search import DigitalBill, digital, search, search_digital
from nvcim_jax.cost.technologies import Technology, node_factors, technology, technology_names

__all__ = [
    "MARKS",
    "Bill",
    "Constant",
    "DigitalBill",
    "Machine",
    "Periphery",
    "Technology",
    "constant_table",
    "conversion_time",
    "converter_area",
    "converter_energy",
    "count",
    "digital",
    "lossless_bits",
    "machines",
    "node_factors",
    "search",
    "search_digital",
    "technology",
    "technology_names",
]
