"""How many bits and how much sparsity each block gets: Edge-LLM's policy, and those that it is compared with."""

from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks
from nvcim_jax.compression.quantise import check_bits
from nvcim_jax.compression.sensitivity import Table
from nvcim_jax.signature import checked
from nvcim_jax.types import Key

__all__ = ["FORMS", "Policy", "luc", "random", "uniform"]

FORMS = ("insensitivity", "printed")
"""What the sparsity of a block is in proportion to."""


class Policy(NamedTuple):
    """Say what each block becomes. NumPy's arrays: how many weights are left decides what is computed.

    Attributes:
        bits: Bits of weights (and, where they are quantised, activations, keys and values), integers (blocks,).
        sparsity: Share of the weights of each matrix that is zero, float64 (blocks,).
    """

    bits: Any
    sparsity: Any


def check_policy(policy: Policy, num_layers: int) -> Policy:
    """Return a policy as NumPy's arrays, checked against a model."""
    bits, sparsity = np.asarray(policy.bits), np.asarray(policy.sparsity, np.float64)
    for name, own in (("bits", bits), ("sparsity", sparsity)):
        checks.shape(f"policy.{name}", own, (num_layers,), "(blocks,)", "Make it for this model.")
    check_bits("policy.bits", bits)
    checks.number("policy.sparsity", sparsity, low=0.0, high=1.0)
    return Policy(bits.astype(np.int64), sparsity)


def _filled(share: np.ndarray, total: float, cap: float) -> np.ndarray:
    """Return numbers in proportion to `share` of which none exceeds the cap, with the total wanted.

    What is above the cap goes to the others in proportion, again and again; evenly once they have no share.
    """
    made = np.zeros(len(share))
    free = np.ones(len(share), bool)
    while free.any():
        left = total - cap * (~free).sum()
        own = share * free
        part = left * (own / own.sum() if own.sum() > 0 else free / free.sum())
        over = free & (part > cap)
        if not over.any():
            made[free] = part[free]
            break
        made[over], free = cap, free & ~over
    return made


@checked
def luc(table: Table, *, bits: int = 4, sparsity: float = 0.5, form: str = "insensitivity", cap: float = 1.0) -> Policy:
    """Return Edge-LLM's policy: a bit more for sensitive blocks (eq. 1), more zeros in insensitive ones (eq. 2).

    `b_j = B + 1[s_j >= mean s]` with the sensitivities to quantisation. `p_j = P L g_j / sum g` with
    `g = 1 - (s - min s) / (max s - min s)` of the sensitivities to pruning; what exceeds the cap goes to the
    other blocks in proportion, so that the mean sparsity is P. The mean of the bits is B + the share of sensitive
    blocks.

    Args:
        table: What `sensitivity` has found.
        bits: B, from 2 to 7.
        sparsity: P, in [0, cap].
        form: "insensitivity", or "printed": eq. 2 as the paper prints it, `p_j = P L s_j / sum s`, which prunes
            sensitive blocks most (its code does not) and may exceed the cap: then it is refused.
        cap: The greatest sparsity of a block, in (0, 1].

    Raises:
        ValueError: If a number is out of range, or the printed form asks for more of a block than the cap.

    Example:
        >>> table = Table(np.array([1.0, 1.0, 1.0, 5.0]), np.array([1.0, 2.0, 3.0, 4.0]), bits=4, sparsity=0.5)
        >>> policy = luc(table, bits=4, sparsity=0.5)
        >>> policy.bits, policy.sparsity.round(2)  # g = 1, 2/3, 1/3, 0
        (array([4, 4, 4, 5]), array([1.  , 0.67, 0.33, 0.  ]))

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, eqs. 1 and 2. That g is what its code uses is from that code.
    """
    checks.choice("form", form, FORMS)
    checks.integer("bits", bits, low=2, high=7, fix="A sensitive block gets one more, and codes are at most a byte.")
    checks.number("cap", cap, low=0.0, high=1.0, low_open=True)
    checks.number("sparsity", sparsity, low=0.0, high=cap)
    to_bits, to_zeros = (np.asarray(s, np.float64) for s in (table.quantisation, table.pruning))
    for name, s in (("quantisation", to_bits), ("pruning", to_zeros)):
        checks.shape(f"table.{name}", s, (max(to_bits.size, 1),), "(blocks,)", "compression.sensitivity makes it.")
        checks.number(f"table.{name}", s, low=0.0, fix="Sensitivities are mean squared errors.")
        checks.finite(f"table.{name}", s, "Sensitivities are mean squared errors.")
    wanted = to_bits >= to_bits.mean() * (1.0 - 1e-12)  # equal ones are all at the mean, whatever it is rounded to
    chosen = bits + wanted.astype(np.int64)
    total = sparsity * len(to_zeros)
    if form == "printed":
        share = to_zeros / to_zeros.sum() if to_zeros.any() else np.full(len(to_zeros), 1.0 / len(to_zeros))
        printed = total * share
        if printed.max() > cap * (1.0 + 1e-12):  # equal ones are all at the mean, which may be the cap
            found = f"gives the block {int(printed.argmax())} a sparsity of {printed.max():.3g}"
            fix = 'Use form="insensitivity", or a lower sparsity.'
            checks.fail("form", f"keep sparsities at most the cap, {cap:g}", found, fix)
        return Policy(chosen, np.minimum(printed, cap))
    reach = to_zeros.max() - to_zeros.min()
    share = np.ones(len(to_zeros)) if reach == 0 else 1.0 - (to_zeros - to_zeros.min()) / reach
    return Policy(chosen, _filled(share, total, cap))


@checked
def uniform(num_layers: int, *, bits: float | int = 4, sparsity: float = 0.5) -> Policy:
    """Return the policy that treats all blocks alike.

    Args:
        num_layers: Blocks.
        bits: Bits of all blocks, from 2 to 8. Where it is no whole number, it is the mean: the blocks that get one bit
            more are spread evenly over the depth, neither end favoured, as many as come nearest to it.
        sparsity: In [0, 1].

    Example:
        >>> uniform(4, bits=4.5, sparsity=0.5)
        Policy(bits=array([5, 4, 5, 4]), sparsity=array([0.5, 0.5, 0.5, 0.5]))
    """
    checks.integer("num_layers", num_layers, high=10**6)
    check_bits("bits", bits, whole=False)
    checks.number("sparsity", sparsity, low=0.0, high=1.0)
    extra = round((bits - int(bits)) * num_layers)
    steps = (2 * np.arange(num_layers + 1) * extra + num_layers) // (2 * num_layers)
    return Policy(int(bits) + np.diff(steps), np.full(num_layers, float(sparsity)))


@checked
def random(key: Key, policy: Policy) -> Policy:
    """Return the bits of a policy in another order, and its sparsities in another: the same budget, whatever it is.

    Args:
        key: A key.
        policy: Whose numbers they are.

    Example:
        >>> made = random(jax.random.key(0), Policy(np.array([3, 4, 5]), np.array([0.0, 0.5, 1.0])))
        >>> sorted(made.bits.tolist()), float(made.sparsity.mean())
        ([3, 4, 5], 0.5)
    """
    checks.key("key", key)
    keys = jax.random.split(key)
    bits, sparsity = check_policy(policy, np.size(policy.bits))
    orders = [np.asarray(jax.random.permutation(own, len(bits))) for own in keys]
    return Policy(bits[orders[0]], sparsity[orders[1]])
