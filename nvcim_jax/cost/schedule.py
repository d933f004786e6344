"""When what is moved and multiplied: a language model's forward pass, or a step that tunes a window of its blocks."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nvcim_jax import checks, models
from nvcim_jax.cost.gemm import Gemm, Tiling, best_tiling, sizes
from nvcim_jax.cost.machines import Machine
from nvcim_jax.cost.memory import kept_numbers
from nvcim_jax.ops import Weight
from nvcim_jax.signature import checked

__all__ = ["Item", "Placement", "Plan", "Stores", "products", "schedule"]

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
NO_BLOCK = -1
HEAD_BITS = 16
"""Bits of the head, which no policy compresses."""


class Item(NamedTuple):
    """One product of a plan.

    Attributes:
        name: Its matrix, or "scores", "values", "head"; with "'" in the backward pass, towards the inputs.
        block: Its block; -1 for the head.
        gemm: Its sizes.
        times: How often it is made.
        tiling: How.
        time_s: Seconds in all: of one start for all texts and heads of a block, and of the products.
    """

    name: str
    block: int
    gemm: Gemm
    times: int
    tiling: Tiling
    time_s: float


class Stores(NamedTuple):
    """Bytes that a pass needs.

    Attributes:
        weights: Of the blocks that run, and the head.
        activations: The stream, the widest product or the logits, and what a window keeps for its backward pass.
        gradients: Of the stream and of the widest product in the window, or of the logits.
    """

    weights: float
    activations: float
    gradients: float


class Placement(NamedTuple):
    """Where a store lies: its share in each memory behind the tiles, nearest first.

    Attributes:
        level: Names of the memories.
        share: Shares, which add up to 1.
    """

    level: tuple[str, ...]
    share: tuple[float, ...]


class Plan(NamedTuple):
    """The fastest schedule that was found.

    Attributes:
        items: Every product, in the order in which it is made.
        order: "row", block after block for the whole batch, or "column", text after text through all blocks.
        stores: Bytes that the pass needs.
        placement: Where weights, activations and gradients lie.
        stored_s: Seconds in which what does not fit into the working memory goes to the one behind it and comes back.
        time_s: Seconds in all.
        moved_bytes: Bytes between working memory and tiles.
        energy_j: Joules, with what the machine draws at rest.
    """

    items: tuple[Item, ...]
    order: str
    stores: Stores
    placement: dict[str, Placement]
    stored_s: float
    time_s: float
    moved_bytes: float
    energy_j: float


def _each(name: str, value: Any, layers: int, low: float, high: float) -> tuple[Any, ...]:
    """Return one value for each block, checked."""
    several = (value,) * layers if np.ndim(value) == 0 else tuple(value)
    if len(several) != layers:
        checks.fail(name, f"be one, or one for each of {layers} blocks", f"are {len(several)}")
    for one in several:
        checks.number(name, one, low=low, high=high)
    return several


def _held(lm: models.LM) -> tuple[list[int], list[float]] | None:
    """Return the bits that the codes of each block need, and their share of zeros; None where no matrix is codes.

    Raises:
        ValueError: If only some matrices are codes, or they are weights of another kind.
    """
    leaves = {n: a for n, a in lm.params["layers"].items() if models.is_block_matrix(f"layers/{n}", a)}
    coded = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Weight)}
    if not coded:
        return None
    for name, leaf in leaves.items():
        if name not in coded or not hasattr(leaf, "codes"):
            kind, fix = f"are floats or a {type(leaf).__name__}", "Give bits and sparsity."
            checks.fail("bits", f"be given where not all matrices are codes: layers.{name}", kind, fix)
    bits, zeros = [], []
    for i in range(lm.config.num_layers):
        own = [jax.tree.map(lambda a, i=i: a[i], leaf) for leaf in coded.values()]
        codes = [np.asarray(leaf.codes() if callable(leaf.codes) else leaf.codes) for leaf in own]
        most = max(max(int(c.max(initial=1)), -int(c.min(initial=0)) - 1) for c in codes)
        bits.append(most.bit_length() + 1)
        zeros.append(float(sum((c == 0).sum() for c in codes) / sum(c.size for c in codes)))
    return bits, zeros


def _forward(config: models.Config, block: int, rows: int, texts: int, tokens: int, how: tuple[Any, ...]) -> list[Any]:
    """Return the products of one block: (name, block, gemm, times)."""
    bits, wide, sparsity = how
    shapes = config.shapes["layers"]
    found = [
        (name, block, Gemm(rows, shapes[name][1], shapes[name][2], bits, wide, sparsity), 1)
        for name in MATRICES
        if name in shapes
    ]
    channels, heads = config.head_width, config.num_heads
    scores = ("scores", block, Gemm(tokens, channels, tokens, wide, wide), texts * heads)
    values = ("values", block, Gemm(tokens, tokens, channels, wide, wide), texts * heads)
    at = [name for name, *_ in found].index("o")
    return [*found[:at], scores, values, *found[at:]]


def _starts(name: str) -> int:
    """Return how many products an item has that a machine starts apart, each for all texts and heads."""
    return 2 if name in ("scores'", "values'") else 1


def _backward(items: Sequence[Any]) -> list[Any]:
    """Return the products towards the inputs; of scores and values, which multiply two streams, there are two."""
    return [
        (f"{name}'", block, g._replace(k=g.n, n=g.k), times * _starts(f"{name}'"))
        for name, block, g, times in reversed(items)
    ]


def products(
    config: models.Config,
    *,
    texts: int,
    tokens: int,
    bits: Sequence[int],
    activation_bits: int,
    sparsity: Sequence[float],
    window: tuple[int, int] | None,
    predicted: int,
) -> list[tuple[str, int, Gemm, int]]:
    """Return every product of a pass over some texts at once: name, block, sizes, and how often.

    The blocks of a window run forward and backward, those below it forward alone, and none above it at all. Adapters
    are left out: of rank 8 they are a few hundredths of the products that they stand beside.
    """
    start, stop = window or (0, config.num_layers)
    forward = [
        item
        for i in range(stop)
        for item in _forward(config, i, texts * tokens, texts, tokens, (bits[i], activation_bits, sparsity[i]))
    ]
    top = Gemm(texts * predicted, config.width, config.vocab_size, HEAD_BITS, activation_bits)
    head = [("head", NO_BLOCK, top, 1)]
    if window is None:
        return [*forward, *head]
    return [*forward, *head, *_backward(head), *_backward([item for item in forward if item[1] >= start])]


def _weights(name: str, gemm: Gemm, on: Machine) -> float:
    """Return the bytes of weights that a product reads; scores and values multiply two streams."""
    return 0.0 if name.rstrip("'") in ("scores", "values") else sizes(gemm, on.exploits_sparsity)[1]


def _stores(
    config: models.Config, items: Sequence[Any], texts: int, tokens: int, on: Machine, window: tuple[int, int] | None
) -> tuple[Stores, Stores]:
    """Return the bytes that a pass over some texts needs, and those that it reads and writes of each store.

    Weights are read in every pass over them, forward and back. The stream and its gradient are written and read once a
    block, each with the widest product of that block; logits, and what a window keeps, once.
    """
    wide = items[0][2].activation_bits / 8
    once = sum(_weights(name, g, on) for name, _, g, _ in items if not name.endswith("'"))
    read = sum(_weights(name, g, on) for name, _, g, _ in items)
    rows = texts * tokens
    stream = rows * config.width * wide
    widest = rows * max(g.n for name, _, g, _ in items if name != "head") * wide
    logits = next(g.m * g.n for name, _, g, _ in items if name == "head") * wide
    if window is None:
        moved = 2 * (config.num_layers * (stream + widest) + logits)
        return Stores(once, stream + max(widest, logits), 0.0), Stores(read, moved, 0.0)
    depth = window[1] - window[0]
    kept = depth * rows * kept_numbers(config, tokens) * wide
    back = 2 * (depth * (stream + widest) + logits)
    needed = Stores(once, kept + stream + logits, stream + max(widest, logits))
    return needed, Stores(read, 2 * (kept + window[1] * stream + logits), back)


def _place(stores: Stores, on: Machine, first: int) -> dict[str, Placement]:
    """Fill the memories behind the tiles: gradients, then activations, then weights go to the nearest with room.

    Raises:
        ValueError: If the last is full.
    """
    names = on.levels[first:]
    room = [float(on.values[f"{name}_size"]) for name in names]
    found = {}
    for store in ("gradients", "activations", "weights"):
        need = getattr(stores, store)
        taken = []
        for i in range(len(names)):
            part = min(need - sum(taken), room[i])
            room[i] -= part
            taken.append(part)
        if sum(taken) < 0.999 * need:
            held = f"{on.name} has no room for {store}"
            checks.fail("on", "hold weights and activations", held, "Take a smaller batch or another machine.")
        found[store] = Placement(names, tuple(part / need if need else float(i == 0) for i, part in enumerate(taken)))
    return found


def _first(stores: Stores, on: Machine) -> int:
    """Return the number of the working memory: the nearest behind one for tiles that holds all, short of storage."""
    last = max(len(on.levels) - (2 if on.storage else 1), 1)
    fits = [i for i in range(1, last) if sum(stores) <= float(on.values[f"{on.levels[i]}_size"])]
    return fits[0] if fits else last


def _plan(order: str, items: Sequence[Any], stores: Stores, moves: Stores, on: Machine, repeats: int) -> Plan:
    first = _first(stores, on)
    far, call = on.levels[first], float(on.values["call"])
    tiled = functools.cache(lambda gemm: best_tiling(gemm, on, far))

    def item(name: str, block: int, gemm: Gemm, times: int) -> Item:
        tiling = tiled(gemm)
        once = times * (tiling.time_s - call) + _starts(name) * call
        return Item(name, block, gemm, times * repeats, tiling, repeats * once)

    made = tuple(item(*one) for one in items)
    time = sum(item.time_s for item in made)
    energy = sum(item.times * item.tiling.energy_j for item in made)
    placement = _place(stores, on, first)
    stored = 0.0
    for store, place in placement.items():
        for name, share in list(zip(*place, strict=True))[1:]:
            behind = repeats * share * getattr(moves, store)
            stored += behind / float(on.values[f"{name}_bandwidth"])
            energy += behind * float(on.values[f"{name}_energy"])
    time = max(time, stored)
    moved = sum(item.times * item.tiling.moved_bytes for item in made)
    energy += float(on.values["static_power"]) * time
    return Plan(made, order, stores, placement, stored, time, moved, energy)


@checked
def schedule(
    lm: Any,
    *,
    batch: int,
    tokens: int,
    on: Machine,
    bits: float | int | Sequence[float | int] | None = None,
    activation_bits: int = 16,
    sparsity: float | Sequence[float] | None = None,
    window: tuple[int, int] | None = None,
    predicted: int = 1,
) -> Plan:
    """Return the fastest schedule of a model whose blocks have bits and zeros of their own.

    For every product, all tiles of 2^i and 3 x 2^i rows, all three orders of loops, and transfers beside the products
    or before them are tried; and both ways through (block, text): block after block for the whole batch, which reads a
    weight once, and text after text, which keeps the stream small. What few bits and zeros are worth is the machine's:
    one that scales with bits multiplies faster, one that knows of zeros leaves them out of transfers and products, any
    other moves fewer bits alone. Formulas in `nvcim_jax.cost.gemm`; they are inferred, since the paper gives none.

    Args:
        lm: A model, or its `models.Config`; only shapes count, and the codes of a compressed one.
        batch: Texts of a pass.
        tokens: Tokens of a text.
        on: The machine.
        bits: Bits of the weights, whole, of all blocks or one for each; the head has 16. None: those that the codes of
            a compressed model need, 16 for floats.
        activation_bits: Bits of activations, gradients, keys and values.
        sparsity: Share of the weights of a block that are zero, of all blocks or one for each, in [0, 1]. None: the
            share of codes that are 0, pruned or rounded to it; 0 for floats.
        window: First block of a window that is tuned, and one past its last; None: a forward pass of all blocks. Full
            tuning of an adapter is (0, blocks).
        predicted: Tokens of a text whose logits are computed.

    Returns:
        The plan, with every product.

    Raises:
        ValueError: If something is out of range, the machine does not multiply so many bits, or has no room; if the
            model is packed in a way whose bits are not known, and none are given.

    Example:
        >>> from nvcim_jax import cost, models
        >>> lm = models.Config(vocab_size=512, width=64, num_layers=4, num_heads=4, mlp_width=128)
        >>> edge = cost.machines.get("edge-8GB")
        >>> whole = cost.schedule(lm, batch=2, tokens=64, on=edge, window=(0, 4))
        >>> window = cost.schedule(lm, batch=2, tokens=64, on=edge, window=(2, 4), bits=4, sparsity=0.5)
        >>> whole.time_s > window.time_s, {item.block for item in window.items if item.name == "q'"}
        (True, {2, 3})

    References:
        Z. Yu et al., "Edge-LLM", arXiv:2406.15758, section 3.3.
    """
    config = lm.config if isinstance(lm, models.LM) else lm
    checks.instance("lm", config, models.Config, "Give a models.LM or its models.Config.")
    for name, value in (("batch", batch), ("tokens", tokens)):
        checks.integer(name, value)
    checks.integer("predicted", predicted, high=tokens)
    layers = config.num_layers
    if window is not None:
        checks.integer("window", window[0], low=0, high=layers - 1)
        checks.integer("window", window[1], low=window[0] + 1, high=layers)
    widest = on.widths[-1]
    held = _held(lm) if isinstance(lm, models.LM) and (bits is None or sparsity is None) else None
    if bits is None:
        bits = 16 if held is None else held[0]
    if sparsity is None:
        sparsity = 0.0 if held is None else held[1]
    each = _each("bits", bits, layers, 1.0, float(widest))
    for one in each:
        if int(one) != one:
            checks.fail("bits", "be whole", f"are {float(one):g}")
    zeros = _each("sparsity", sparsity, layers, 0.0, 1.0)
    checks.integer("activation_bits", activation_bits, high=widest)
    given = {"tokens": tokens, "bits": [int(b) for b in each], "activation_bits": activation_bits, "window": window}
    given |= {"sparsity": [float(p) for p in zeros], "predicted": predicted}
    plans = []
    for order, texts, repeats in (("row", batch, 1), ("column", 1, batch)):
        items = products(config, texts=texts, **given)
        # Text by text, no more than one is under way.
        stores, moves = _stores(config, items, texts, tokens, on, window)
        plans.append(_plan(order, items, stores, moves, on, repeats))
    return min(plans, key=lambda plan: plan.time_s)
