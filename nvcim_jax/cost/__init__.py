"""What hardware costs: latency, energy and area of chips, and of the digital machines that they are held against."""

from nvcim_jax.cost import machines
from nvcim_jax.cost.constants import MARKS, Constant, constant_table
from nvcim_jax.cost.machines import Machine

__all__ = ["MARKS", "Constant", "Machine", "constant_table", "machines"]
