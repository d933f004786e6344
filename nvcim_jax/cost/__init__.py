"""What hardware costs: latency, energy and area of chips, and of the digital machines that they are held against."""

from nvcim_jax.cost import machines
from nvcim_jax.cost.bill import Bill
from nvcim_jax.cost.constants import Constant, constant_table
from nvcim_jax.cost.converter import converter_energy, lossless_bits
from nvcim_jax.cost.layers import layer, program, read_back
from nvcim_jax.cost.lm import model, model_digital
from nvcim_jax.cost.machines import Machine
from nvcim_jax.cost.memory import PUBLISHED, Work, memory
from nvcim_jax.cost.product import Periphery
from nvcim_jax.cost.schedule import schedule
from nvcim_jax.cost.search import digital, search, search_digital
from nvcim_jax.cost.technologies import Technology, technology, technology_names
from nvcim_jax.cost.uncertainty import bands, break_even, draw, headline, sensitivities

__all__ = [
    "PUBLISHED",
    "Bill",
    "Constant",
    "Machine",
    "Periphery",
    "Technology",
    "Work",
    "bands",
    "break_even",
    "constant_table",
    "converter_energy",
    "digital",
    "draw",
    "headline",
    "layer",
    "lossless_bits",
    "machines",
    "memory",
    "model",
    "model_digital",
    "program",
    "read_back",
    "schedule",
    "search",
    "search_digital",
    "sensitivities",
    "technology",
    "technology_names",
]
