"""`nvcim compress`: prune and quantise the blocks of a model by a policy, and save it with its codes."""

import dataclasses
import gzip
import json
import math
import time
import zlib
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from nvcim_jax import checks, compression, files, models
from nvcim_jax.cli import duration
from nvcim_jax.cli.entry import command_line
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, print_result
from nvcim_jax.progress import progress_bar

__all__ = ["POLICIES", "Options", "check_sides", "main"]

POLICIES = ("luc", "uniform", "random")
METHODS = ("sparsegpt", "wanda", "magnitude")
QUANTISERS = ("absmax", "gptq")

FILES = ("config.json", "model.safetensors", "compress.json")

HELD_OUT = 16
"""Windows of the text, at its end, that are kept to measure with, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compress the blocks of a model, calibrated on plain text, and write a checkpoint that keeps its codes.

    Writes config.json, model.safetensors and the tokenizer, which `models.load` opens, and compress.json: the policy,
    the sensitivities, what it takes, and the perplexity before and after.
    """

    text: Annotated[Path, tyro.conf.Positional]
    """Plain text, a file (.txt or .txt.gz), to calibrate with and, at its end, to measure with."""
    model: str = "bundled"
    """Folder or hub id of a Hugging Face checkpoint, a GGUF file, package:NAME/FILE, or bundled."""
    bits: int = 4
    """Bits of a weight, from 2 to 7; luc gives sensitive blocks one more."""
    sparsity: float = 0.5
    """Mean share of weights that become 0."""
    policy: str = "luc"
    """luc (by sensitivity), uniform, or random (the numbers of luc in another order)."""
    method: str = "sparsegpt"
    """Which weights become 0: sparsegpt, wanda, magnitude."""
    quantiser: str = "absmax"
    """absmax (the nearest code) or gptq."""
    num_windows: int = 32
    """Windows of the text to calibrate with."""
    num_tokens: int = 128
    """Tokens of a window."""
    dtype: str = "float32"
    """dtype of what is no code: float32, float16, bfloat16."""
    seed: int = 0
    """Seed of the random policy."""
    out: Path = Path("runs/compress")
    """Folder of the checkpoint."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    _check(options)
    words = _words(checks.file("text", options.text))
    lm, text = models.load(models.BUNDLED if options.model == "bundled" else options.model)
    if text.tokenizer is None:
        checks.fail("--model", "have a tokenizer", f"{options.model} has none", "Add its tokenizer.json to the folder.")
    check_sides(lm)
    calibration, held = _windows(words, text, options)
    if options.dry_run:
        return _planned(options, lm, calibration, held)
    files.folder("--out", options.out)
    started = time.perf_counter()
    table = compression.sensitivity(lm, calibration, bits=options.bits, sparsity=options.sparsity)
    policy = _policy(table, lm.config.num_layers, options)
    with progress_bar(lm.config.num_layers, options.said.progress, "blocks", lines=True) as advance:
        small = compression.apply(
            lm, policy, calibration, method=options.method, quantiser=options.quantiser, advance=advance
        )
    seconds = time.perf_counter() - started
    models.save(options.out, small, text, dtype=jnp.dtype(options.dtype), keep_codes=True)
    perplexities = [math.exp(float(_loss(own, held))) for own in (lm, small)]
    _report(options, table, policy, compression.memory(small, policy), perplexities, len(held))
    _save(options, table, policy, perplexities, seconds)
    return 0


def _planned(options: Options, lm: models.LM, calibration: jax.Array, held: jax.Array) -> int:
    """Say how long the forward passes would take and what would be written."""
    tokens = 5 * calibration.size + 2 * held.size  # exact, rounded and pruned; calibrated and what comes of it
    seconds = duration.updates(lm.config, tokens, 1, of_update=2.0) / duration.rate(lm.config)
    print(f"{len(calibration)} windows to calibrate with, {len(held)} to measure with.")
    print(duration.passes(seconds, "forward passes") + " Nor is what the method solves.")
    print(duration.nothing_done(options.out, FILES))
    print_result(options, {"seconds": seconds, "out": str(options.out)})
    return 0


def _check(options: Options) -> None:
    checks.choice("--policy", options.policy, POLICIES)
    checks.choice("--method", options.method, METHODS)
    checks.choice("--quantiser", options.quantiser, QUANTISERS)
    checks.choice("--dtype", options.dtype, ("float32", "float16", "bfloat16"))
    checks.integer("--bits", options.bits, low=2, high=7, fix="A sensitive block gets one more; a code is a byte.")
    checks.number("--sparsity", options.sparsity, low=0.0, high=1.0)
    checks.integer("--num-windows", options.num_windows, high=10**6)
    checks.integer("--num-tokens", options.num_tokens, low=2, high=10**6)
    checks.integer("--seed", options.seed, low=0, high=2**31)


def check_sides(lm: models.LM) -> None:
    """Refuse a model whose codes no file holds, before any work: a word of a file has four of them at least."""
    for name, leaf in lm.params["layers"].items():
        if models.is_block_matrix(f"layers/{name}", leaf) and any(side % 4 for side in leaf.shape[-2:]):
            sides = f"layers.{name} is {leaf.shape[-2:]}"
            checks.fail("--model", "have matrices whose sides 4 divides", sides, "Use compression.apply in Python.")


def _words(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error):
        checks.fail("text", "be plain text in UTF-8", f"{path.name} is not", "Compressed text ends in .gz.")


def _windows(words: str, text: models.Text, options: Options) -> tuple[jax.Array, jax.Array]:
    """Return windows spread over the text to calibrate with, and its last ones to measure with."""
    first = text.begin()
    size = options.num_tokens - len(first)
    checks.integer("--num-tokens", size, fix="A window holds at least one token of the text.")
    ids = np.asarray(text.encode(words), np.int32)
    found = ids[: len(ids) // size * size].reshape(-1, size)
    wanted = options.num_windows + 1
    if len(found) < wanted:
        have = f"{options.text.name} has {len(found)}"
        fix = "Give more text, fewer --num-windows, or fewer --num-tokens; one is left to measure with."
        checks.fail("text", f"hold {wanted} windows of {size} tokens", have, fix)
    num = min(HELD_OUT, len(found) - options.num_windows)
    whole = np.concatenate([np.tile(np.asarray(first, np.int32), (len(found), 1)), found], axis=1)
    at = np.arange(options.num_windows) * (len(found) - num) // options.num_windows
    return jnp.asarray(whole[at]), jnp.asarray(whole[-num:])


def _policy(table: compression.Table, num_layers: int, options: Options) -> compression.Policy:
    if options.policy == "uniform":
        return compression.uniform(num_layers, bits=options.bits, sparsity=options.sparsity)
    found = compression.luc(table, bits=options.bits, sparsity=options.sparsity)
    return found if options.policy == "luc" else compression.random(jax.random.key(options.seed), found)


@jax.jit
def _loss(lm: models.LM, windows: jax.Array) -> jax.Array:
    """Return the mean loss of a token."""
    one = lambda ids: models.loss(lm, models.embed(lm, ids), ids)[0]  # noqa: E731
    return jax.lax.map(one, windows).mean()


def _report(
    options: Options,
    table: compression.Table,
    policy: compression.Policy,
    taken: compression.Memory,
    perplexities: list[float],
    num: int,
) -> None:
    rows = [
        {"block": i, "error quantised": float(q), "error pruned": float(p), "bits": int(b), "sparsity": float(s)}
        for i, (q, p, b, s) in enumerate(zip(table.quantisation, table.pruning, *policy, strict=True))
    ]
    print_table(rows, title=f"Policy {options.policy}: mean squared errors of each block, and what it gets")
    print(f"Mean: {policy.bits.mean():.4g} bits, sparsity {policy.sparsity.mean():.4g}.")
    sizes = [f"{own.sum() / 2**20:.1f} MiB {name}" for name, own in taken._asdict().items()]
    print(f"Matrices of the blocks: {sizes[0]}, {sizes[1]} (a byte a code), {sizes[2]} (bits, masks, scales).")
    print(f"Perplexity on {num} windows not calibrated on: {perplexities[0]:.2f} before, {perplexities[1]:.2f} after.")


def _save(
    options: Options,
    table: compression.Table,
    policy: compression.Policy,
    perplexities: list[float],
    seconds: float,
) -> None:
    about: dict[str, Any] = {
        "command": command_line("compress", options, ("text",)),
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "bits": policy.bits.tolist(),
        "sparsity": policy.sparsity.tolist(),
        "sensitivity": {part: np.asarray(getattr(table, part)).tolist() for part in ("quantisation", "pruning")},
        "perplexity": dict(zip(("before", "after"), perplexities, strict=True)),
        "seconds": round(seconds, 1),
    }
    files.write_json(options.out / "compress.json", about)
    print_result(options, about)
    print("Written:")
    for name in FILES:
        print(f"  {options.out / name}")
