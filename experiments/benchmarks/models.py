"""Time the language models against PEFT + torch and Hugging Face's generate, pair by pair.

    python -m experiments.benchmarks.models                # about five minutes on two idle cores; needs `parity`
    python -m experiments.benchmarks.models --tiny         # seconds, for a check that it runs

Every figure is the median of the ratios of two runs made one right after the other, so that what else the machine
does falls on both. A ratio above 1 means that this library is faster. Records go to results/models.json beside this
file.

The model is a random Llama of 10 M parameters: 6 layers, width 320, 5 heads, feed-forward 880, vocabulary 8192, tied.
Batch 8 of 128 tokens, 20 virtual tokens before them. Expect (results/models.json, two cores of an EPYC): forward
1.9, soft-prompt step 1.5 to 1.7, greedy decoding of 64 tokens 2.7 (2.6 to 3.2) at batch 1 and 1.9 at batch 8, short of
the five that were aimed at: `products_alone` is the time of the bare products with the weights, which no float32
decoder can do without, and its ratio, 3.6 and 3.1, is the most that could be had. Compilation at 24 layers .3 s
forward, 1.3 s with gradients; bf16 slower than float32; remat a fifth of the memory at no measurable time.
"""

# pyright: reportMissingImports=false

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nvcim_jax import files, models


class Shape(NamedTuple):
    """Sizes of one benchmark."""

    config: models.Config
    batch: int
    tokens: int
    virtual: int
    new_tokens: int
    rounds: int


FULL = Shape(models.Config(vocab_size=8192, width=320, num_layers=6, num_heads=5, mlp_width=880), 8, 128, 20, 64, 7)
TINY = Shape(models.Config(vocab_size=64, width=32, num_layers=2, num_heads=2, mlp_width=64), 2, 16, 4, 8, 2)


def machine() -> dict[str, Any]:
    """Describe where the times were taken."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
    }


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one call takes, until its arrays are there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def paired(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Time two functions in turn, in alternating order, and return medians and the median ratio theirs / ours."""
    for _ in range(2):
        jax.block_until_ready(ours())
        theirs()
    pairs = []
    for i in range(rounds):
        if i % 2:
            second = seconds(theirs)
            pairs.append((seconds(ours), second))
        else:
            pairs.append((seconds(ours), seconds(theirs)))
    ratios = sorted(b / a for a, b in pairs)
    return {
        "ours_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "theirs_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 10],
        "ratio_high": ratios[-1 - len(ratios) // 10],
        "rounds": rounds,
    }


def torch_model(folder: Path) -> Any:
    """Return transformers' model of a checkpoint, on both cores."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def forward_times(shape: Shape, lm: models.LM, hf: Any, ids: np.ndarray) -> dict[str, float]:
    """Compare logits of the whole batch."""
    import torch

    run = jax.jit(lambda lm, x: models.forward(lm, x)[0])
    x = models.embed(lm, jnp.asarray(ids))
    tokens = torch.from_numpy(ids.astype(np.int64))

    def theirs() -> Any:
        with torch.no_grad():
            return hf(tokens, use_cache=False).logits.numpy()

    difference = float(np.abs(np.asarray(run(lm, x)) - theirs()).max())
    return paired(lambda: run(lm, x), theirs, shape.rounds) | {"max_difference": difference}


def soft_prompt_times(shape: Shape, lm: models.LM, hf: Any, ids: np.ndarray, answer: int | None) -> dict[str, float]:
    """Compare one step of prompt tuning (Adam); the loss is on the last `answer` tokens, or on all."""
    import peft
    import torch

    config = shape.config
    labels = ids.copy()
    if answer is not None:
        labels[:, :-answer] = models.IGNORE
    start = 0.02 * np.random.default_rng(0).standard_normal((shape.virtual, config.width)).astype(np.float32)
    optimiser = optax.adam(1e-2)

    def objective(prompt: jax.Array, lm: models.LM, x: jax.Array, labels: jax.Array) -> jax.Array:
        whole = jnp.concatenate([jnp.broadcast_to(prompt, (x.shape[0], *prompt.shape)), x], axis=1)
        ignored = jnp.full((x.shape[0], shape.virtual), models.IGNORE, labels.dtype)
        return models.loss(lm, whole, jnp.concatenate([ignored, labels], axis=1))[0]

    @jax.jit
    def step(prompt: jax.Array, state: Any, lm: models.LM, ids: jax.Array, labels: jax.Array) -> Any:
        x = models.embed(lm, ids)
        value, gradient = jax.value_and_grad(objective)(prompt, lm, x, labels)
        change, state = optimiser.update(gradient, state)
        return optax.apply_updates(prompt, change), state, value

    tuned: Any = peft.get_peft_model(
        hf, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=shape.virtual)
    )
    weight = tuned.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(torch.from_numpy(start))
    adam = torch.optim.Adam([weight], lr=1e-2)
    ids_t, labels_t = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(labels.astype(np.int64))

    def theirs() -> Any:
        adam.zero_grad()
        value = tuned(input_ids=ids_t, labels=labels_t, use_cache=False).loss
        value.backward()
        adam.step()
        return value.item()

    carry = [jnp.asarray(start), optimiser.init(jnp.asarray(start))]
    arrays = jnp.asarray(ids), jnp.asarray(labels)

    def ours() -> Any:
        prompt, state, value = step(carry[0], carry[1], lm, *arrays)
        carry[:] = [prompt, state]
        return value

    difference = abs(float(ours()) - theirs())
    return paired(ours, theirs, shape.rounds) | {"max_difference": difference}


def bare_products(shape: Shape, params: Any, batch: int) -> Callable[[], Any]:
    """Return a run of nothing but the products with weights that `new_tokens` steps of decoding need, in float32.

    No way of decoding that multiplies by every weight once a step is faster, whatever it does besides.
    """
    layers = [jax.tree.map(lambda a, i=i: a[i], params["layers"]) for i in range(shape.config.num_layers)]

    def step(x: jax.Array, layers: Any, table: jax.Array) -> jax.Array:
        for layer in layers:
            q, k, v = (x @ layer[name] for name in ("q", "k", "v"))
            x = x + (q + k + v) @ layer["o"]
            x = x + ((x @ layer["gate"]) * (x @ layer["up"])) @ layer["down"]
            x = x / (1.0 + jnp.abs(x).max())
        return x + table[jnp.argmax(jnp.einsum("bw,vw->bv", x, table), axis=-1)]

    @jax.jit
    def run(x: jax.Array, layers: Any, table: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, shape.new_tokens, lambda _, x: step(x, layers, table), x)

    x = jnp.ones((batch, shape.config.width))
    return lambda: run(x, layers, params["embedding"])


def decode_times(shape: Shape, lm: models.LM, hf: Any, ids: np.ndarray, batch: int) -> dict[str, Any]:
    """Compare greedy decoding of `new_tokens` tokens after 32."""
    import torch

    given = ids[:batch, :32]
    run = jax.jit(models.generate_tokens, static_argnames="max_new_tokens")
    x = models.embed(lm, jnp.asarray(given))
    tokens = torch.from_numpy(given.astype(np.int64))

    def ours() -> Any:
        return run(jax.random.key(0), lm, x, max_new_tokens=shape.new_tokens)

    def theirs() -> Any:
        with torch.no_grad():
            return hf.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=shape.new_tokens,
                min_new_tokens=shape.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )

    same = float((np.asarray(ours()[0]) == theirs()[:, given.shape[1] :].numpy()).mean())
    most = paired(bare_products(shape, lm.params, batch), theirs, shape.rounds)
    bound = {"products_alone_ms": most["ours_ms"], "products_alone_ratio": most["ratio"]}
    return paired(ours, theirs, shape.rounds) | {"share_of_equal_tokens": same} | bound


def compile_times(shape: Shape, num_layers: int) -> dict[str, float]:
    """Time tracing and compiling of forward and soft-prompt gradient at many layers."""
    config = models.Config(
        vocab_size=shape.config.vocab_size,
        width=shape.config.width,
        num_layers=num_layers,
        num_heads=shape.config.num_heads,
        mlp_width=shape.config.mlp_width,
    )
    lm = jax.eval_shape(lambda: models.init(jax.random.key(0), config=config))
    x = jax.ShapeDtypeStruct((shape.batch, shape.tokens, config.width), jnp.float32)
    labels = jax.ShapeDtypeStruct((shape.batch, shape.tokens), jnp.int32)
    forward = jax.jit(lambda lm, x: models.forward(lm, x)[0])
    step = jax.jit(jax.value_and_grad(lambda x, lm, labels: models.loss(lm, x, labels)[0]))
    found: dict[str, float] = {"layers": num_layers}
    for name, lower in (
        ("forward", lambda: forward.lower(lm, x)),
        ("gradient", lambda: step.lower(x, lm, labels)),
    ):
        wall, processor = time.perf_counter(), time.process_time()
        lower().compile()
        found[f"{name}_s"] = time.perf_counter() - wall
        found[f"{name}_processor_s"] = time.process_time() - processor  # what it costs on a busy machine, too
    return found


def cost_times(shape: Shape, lm: models.LM, ids: np.ndarray) -> dict[str, Any]:
    """Compare float32 with bf16 and with remat: time of a gradient step, and its temporary memory."""

    def make(remat: bool) -> Any:
        def objective(x: jax.Array, lm: models.LM, labels: jax.Array) -> jax.Array:
            return models.loss(lm, x, labels, remat=remat)[0]

        return jax.jit(jax.value_and_grad(objective))

    labels = jnp.asarray(ids)
    x = models.embed(lm, labels)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), lm)
    plain, remat = make(False), make(True)
    cases = {
        "remat": (lambda: remat(x, lm, labels), remat.lower(x, lm, labels)),
        "bf16": (
            lambda: plain(x.astype(jnp.bfloat16), half, labels),
            plain.lower(x.astype(jnp.bfloat16), half, labels),
        ),
        "bf16_weights_float32_compute": (lambda: plain(x, half, labels), plain.lower(x, half, labels)),
    }
    base = plain.lower(x, lm, labels).compile().memory_analysis().temp_size_in_bytes
    found: dict[str, Any] = {"float32_temporary_mib": base / 2**20}
    for name, (run, lowered) in cases.items():
        memory = lowered.compile().memory_analysis().temp_size_in_bytes / 2**20
        found[name] = paired(run, lambda: jax.block_until_ready(plain(x, lm, labels)), shape.rounds)
        found[name]["temporary_mib"] = memory
    return found


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--only", default="", help="run only the parts whose name contains this, and keep the others")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "models.json")
    options = parser.parse_args()
    shape = TINY if options.tiny else FULL
    lm = models.init(jax.random.key(0), config=shape.config)
    ids = np.random.default_rng(1).integers(0, shape.config.vocab_size, (shape.batch, shape.tokens)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, lm)
        hf = torch_model(Path(folder))
        parts: dict[str, Callable[[], Any]] = {
            "compile_24_layers": lambda: compile_times(shape, 24),
            "forward": lambda: forward_times(shape, lm, hf, ids),
            "decode_batch_1": lambda: decode_times(shape, lm, hf, ids, 1),
            "decode_batch_8": lambda: decode_times(shape, lm, hf, ids, shape.batch),
            "costs": lambda: cost_times(shape, lm, ids),
            "soft_prompt_all_labels": lambda: soft_prompt_times(shape, lm, hf, ids, None),
            "soft_prompt_8_labels": lambda: soft_prompt_times(shape, lm, torch_model(Path(folder)), ids, 8),
        }
        kept = json.loads(options.out.read_text("utf-8")) if options.only and options.out.is_file() else {}
        records = kept | {"machine": machine(), "parameters": shape.config.num_params}
        for name, part in parts.items():
            if options.only in name:
                records[name] = part()
                print(name, json.dumps(records[name], indent=None, default=lambda v: round(v, 3)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    files.write(options.out, json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
