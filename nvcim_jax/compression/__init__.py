"""Weights of fewer bits and fewer connections, as much in each block as it bears: Edge-LLM's layer-wise compression."""

from nvcim_jax.compression.apply import apply
from nvcim_jax.compression.in_loop import Quantised, in_loop
from nvcim_jax.compression.memory import Memory, memory
from nvcim_jax.compression.pack import Planes, pack
from nvcim_jax.compression.policy import Policy, luc, random, uniform
from nvcim_jax.compression.prune import magnitude, wanda
from nvcim_jax.compression.quantise import quantise, to_codes
from nvcim_jax.compression.sensitivity import Table, sensitivity
from nvcim_jax.compression.solve import gptq, sparsegpt

__all__ = [
    "Memory",
    "Planes",
    "Policy",
    "Quantised",
    "Table",
    "apply",
    "gptq",
    "in_loop",
    "luc",
    "magnitude",
    "memory",
    "pack",
    "quantise",
    "random",
    "sensitivity",
    "sparsegpt",
    "to_codes",
    "uniform",
    "wanda",
]
