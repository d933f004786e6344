"""Accuracy and cost of one configuration of the prompt store in one place: what noise and converters leave, and take.

What is stored are codes of 48 values of texts of CLINC150 (five intents of four domains, embeddings of the bundled
model behind their principal components); a search is right if what it finds has the intent of the query. Codes and
search are those of the pipeline: centred, clipped at 1.5, unit length, scaled search on one copy. Cells: FeFET3 at
sigma 0.1; costs: FeFET-22nm.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data as public
from nvcim_jax import cost, crossbar, data, devices, models, pipeline, selection

__all__ = ["COLUMNS_PER_ADC", "layouts", "measure"]

Record = dict[str, Any]
CODE, CLIP = 48, 1.5
PRESET = pipeline.presets["bundled"]
COLUMNS_PER_ADC = (1, 8, 32)


def _records(config: Any) -> tuple[list[Any], list[Any]]:
    """Return rows to store and rows to ask, the same number of each intent."""
    if not config.real:
        rows, _ = data.builtin_records(config.seed, num_train=40, num_test=20)
        chosen = list(rows)
    else:
        chosen = data.clinc5(list(data.read_jsonl(public.folder("clinc150") / "clinc150.jsonl.gz")))
        chosen = [row for row in chosen if row.user_or_domain in data.CLINC5_DOMAINS]
    return tuple(
        _balanced([row for row in chosen if (row.split == "train") == train], num)
        for train, num in ((True, config.num_stored), (False, config.num_queries))
    )  # type: ignore[return-value]


def _balanced(rows: list[Any], num: int) -> list[Any]:
    labels = list(dict.fromkeys(row.output for row in rows))
    each = -(-num // len(labels))
    kept = [row for label in labels for row in [r for r in rows if r.output == label][:each]]
    return kept[:num]


def _codes(config: Any) -> tuple[jax.Array, jax.Array, jax.Array, np.ndarray]:
    """Return stored keys (rows, slots), queries (queries, rows), and which are right (queries, slots)."""
    lm, text = models.load(models.BUNDLED)
    stored, asked = _records(config)
    features = []
    for rows in (stored, asked):
        seen = pipeline.make_queries([row.input for row in rows], lm, text, config=PRESET.config)
        features.append(seen.features[:, 0])
    init_key, pca_key = jax.random.split(jax.random.key(config.seed))
    codec = selection.codec_pca(pca_key, selection.codec_init(init_key, lm.config.width, code=CODE), features[0])
    codes = [selection.encode(codec, x) for x in features]
    centre = codes[0].mean(axis=0)
    keys, queries = (_unit(code - centre[None, :]) for code in codes)
    spread = jnp.sqrt(jnp.mean(keys**2, axis=1, keepdims=True))
    keys = jnp.clip(keys, -CLIP * spread, CLIP * spread)
    search = PRESET.config.search
    weights = jnp.asarray(selection.SSA_WEIGHTS, jnp.float32)
    queries = jax.vmap(lambda q: selection.query_vector(q[None, :], weights, config=search))(queries)
    right = np.array([[a.output == s.output for s in stored] for a in asked])
    return keys.T, queries, jnp.asarray(right), right


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-9)


def _accuracy(config: Any, layout: crossbar.Config, keys: Any, queries: Any, right: Any) -> np.ndarray:
    """Return the share of right searches on each chip."""
    device = devices.get("FeFET3", sigma=0.1)

    def one(key: jax.Array, keys: jax.Array, queries: jax.Array, right: jax.Array) -> jax.Array:
        write_key, read_key = jax.random.split(key)
        chip = crossbar.program(write_key, keys, device, config=layout)
        scores, _ = crossbar.matmul(read_key, queries, chip)
        return jnp.mean(jnp.take_along_axis(right, scores.argmax(axis=1)[:, None], axis=1))

    chips = jax.random.split(jax.random.key(config.seed + 1), config.num_chips)
    return np.asarray(jax.jit(lambda ks, *args: jax.lax.map(lambda k: one(k, *args), ks))(chips, keys, queries, right))


def _plain(chip: cost.Technology) -> cost.Technology:
    """Return a technology of Python's numbers: hundreds of bills, one at a time, cost no dispatch."""
    return chip.replace(values={name: float(value) for name, value in chip.values.items()})


def layouts(config: Any) -> Iterator[tuple[Record, crossbar.Config]]:
    """Yield the options of each configuration, and the crossbars that they make."""
    names = [name for name, _ in config.grid]
    for values in itertools.product(*(options for _, options in config.grid)):
        chosen = {"rows": 384, "slices": "rows", "dac_bits_per_cycle": None, **dict(zip(names, values, strict=True))}
        yield chosen, crossbar.Config(cols=128, weight_scale="column", dac_bits=8, **chosen)


def measure(config: Any, out: Path) -> Iterator[Record]:
    """Measure the accuracy of each configuration over chips, and price it."""
    del out
    keys, queries, right, table = _codes(config)
    exact = np.asarray(jnp.matmul(queries, keys, precision="highest")).argmax(axis=1)
    yield {
        "kind": "exact",
        "accuracy": float(table[np.arange(len(exact)), exact].mean()),
        "chance": float(table.mean()),
        "stored": keys.shape[1],
        "queries": queries.shape[0],
    }
    chip = _plain(cost.technology("FeFET-22nm"))
    for chosen, layout in layouts(config):
        found = _accuracy(config, layout, keys, queries, right)
        record = {"kind": "point", **chosen, "stored": keys.shape[1], "chips": len(found)}
        record |= {"accuracy": float(found.mean()), "error": float(found.std(ddof=min(1, len(found) - 1)))}
        record["error"] /= len(found) ** 0.5
        for columns in COLUMNS_PER_ADC:
            bill = cost.search(layout, keys.shape[1], on=chip, periphery=cost.Periphery(columns_per_adc=columns))
            yield record | {
                "columns_per_adc": columns,
                "latency_s": float(bill.latency_s),
                "energy_j": float(bill.energy_j),
                "area_m2": float(bill.area_m2),
                "lossless_bits": bill.operations.lossless_bits,
            }
