"""Time adapters, decoding and ranking on SmolLM2-135M against PEFT + torch and Hugging Face, pair by pair.

    python -m experiments.benchmarks.adapters              # about fifteen minutes on two idle cores; needs `parity`
    python -m experiments.benchmarks.adapters --tiny       # a random model, seconds, for a check that it runs

Both sides hold the same float32 weights, those of the 4-bit file made floats. Every figure is the median of the ratios
of two runs made one right after the other; above 1, this library is faster. The exceptions compare this library with
itself: `users_together` (eight users' LoRA steps as one `jax.vmap` over the frozen model, against one after the other)
and `mezo` (a zeroth-order step of LoRA against a forward pass) give the time of the first over that of the second.
Records go to results/adapters.json beside this file.

Expect (results/adapters.json, two quiet cores): steps 1.7 x for a prompt, a prefix, LoRA and (IA)3; decoding 2.1 x,
from 4-bit codes (`packed_decode`) 2.3 x; ranking 3.5 x; a MeZO step 1.9 forward passes; eight users' steps together
.80 of one by one, short of the .6 that was aimed at: products of one user's size already fill two cores.

Steps: batch 5 of 48 tokens, the loss on the last 4, Adam; a prompt of 16 tokens, a prefix of 8, LoRA of rank 8 on q and
v, (IA)3 on k, v and down. Decoding: 64 tokens after 32. Ranking: 20 answers of 3 tokens for 80 queries of 32.
"""

# pyright: reportMissingImports=false

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.models import machine, paired, seconds, torch_model
from experiments.shift.settings import MODELS
from nvcim_jax import files, models, tuning


class Shape(NamedTuple):
    """Sizes of the benchmark."""

    batch: int = 5
    tokens: int = 48
    answer: int = 4
    new_tokens: int = 64
    queries: int = 80
    answers: int = 20
    users: int = 8
    rounds: int = 7


TINY = Shape(batch=2, tokens=12, answer=2, new_tokens=4, queries=4, answers=3, users=2, rounds=2)


def examples(shape: Shape, config: models.Config) -> tuning.Examples:
    """Return random texts with random answers."""
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (shape.batch, shape.tokens)).tolist()
    split = shape.tokens - shape.answer
    return tuning.examples([row[:split] for row in ids], [row[split:] for row in ids])


def stepper(lm: models.LM, batch: tuning.Examples, adapter: tuning.Adapter) -> tuple[Any, Any]:
    """Return one compiled update of Adam, and where it starts: (state, optimiser)."""
    optimiser = optax.adam(1e-3)
    state = adapter.init(jax.random.key(0), lm, batch, None)

    @jax.jit
    def step(carry: Any, lm: models.LM, batch: tuning.Examples) -> tuple[Any, jax.Array]:
        state, memory = carry
        ones = jnp.ones(len(batch.ids))
        value, slope = jax.value_and_grad(tuning.answer_loss)(state, lm, batch, ones, adapter=adapter)
        change, memory = optimiser.update(slope, memory)
        return (optax.apply_updates(state, change), memory), value

    return step, (state, optimiser.init(state))


def step_times(shape: Shape, lm: models.LM, folder: Path, adapter: tuning.Adapter, config: Any) -> dict[str, float]:
    """Compare one step of tuning."""
    import peft
    import torch

    batch = examples(shape, lm.config)
    step, start = stepper(lm, batch, adapter)
    tuned: Any = peft.get_peft_model(torch_model(folder), config)
    tuned.train()
    adam = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=1e-3)
    # The whole text with the last answer token, which ours predicts and does not read.
    rows = np.concatenate([np.asarray(batch.ids), np.asarray(batch.targets)[:, -1:]], axis=1).astype(np.int64)
    labels = np.where(np.arange(rows.shape[1]) >= rows.shape[1] - shape.answer, rows, -100)
    ids_t, labels_t = torch.from_numpy(rows), torch.from_numpy(labels)

    def theirs() -> Any:
        adam.zero_grad()
        value = tuned(input_ids=ids_t, labels=labels_t, use_cache=False).loss
        value.backward()
        adam.step()
        return value.item()

    carry = [start]

    def ours() -> Any:
        carry[0], value = step(carry[0], lm, batch)
        return value

    return paired(ours, theirs, shape.rounds)


def together_times(shape: Shape, lm: models.LM) -> dict[str, float]:
    """Compare users' steps as one vmap with the same steps one after the other."""
    batch, adapter = examples(shape, lm.config), tuning.lora(8)
    step, start = stepper(lm, batch, adapter)
    many = jax.tree.map(lambda a: jnp.stack([a] * shape.users), (start, batch))
    together = jax.jit(jax.vmap(step, in_axes=(0, None, 0)))

    def apart() -> Any:
        return jax.block_until_ready([step(start, lm, batch)[1] for _ in range(shape.users)])

    found = paired(lambda: together(many[0], lm, many[1])[1], apart, shape.rounds)
    return {"together_ms": found["ours_ms"], "apart_ms": found["theirs_ms"], "together_over_apart": 1 / found["ratio"]}


def mezo_times(shape: Shape, lm: models.LM) -> dict[str, float]:
    """Compare a zeroth-order step with a forward pass of the same texts."""
    batch, adapter = examples(shape, lm.config), tuning.lora(8)
    state = adapter.init(jax.random.key(0), lm, batch, None)
    options = tuning.Options(num_steps=1)

    @jax.jit
    def step(key: jax.Array, state: Any, lm: models.LM, batch: tuning.Examples) -> Any:
        chosen: Any = {"gradient": tuning.zeroth_order(1e-2), "optimiser": lambda n: optax.sgd(1e-4)}
        return tuning.tune(key, state, lm, batch, adapter=adapter, options=options, **chosen)[0]

    @jax.jit
    def forward(state: Any, lm: models.LM, batch: tuning.Examples) -> jax.Array:
        return tuning.answer_loss(state, lm, batch, jnp.ones(len(batch.ids)), adapter=adapter)

    key = jax.random.key(1)
    found = paired(
        lambda: step(key, state, lm, batch), lambda: jax.block_until_ready(forward(state, lm, batch)), shape.rounds
    )
    return {"step_ms": found["ours_ms"], "forward_ms": found["theirs_ms"], "step_over_forward": 1 / found["ratio"]}


def decode_times(shape: Shape, lm: models.LM, folder: Path) -> dict[str, float]:
    """Compare greedy decoding of one text."""
    import torch

    hf = torch_model(folder)
    given = np.random.default_rng(1).integers(3, lm.config.vocab_size, (1, 32))
    never = lm.replace(config=dataclasses.replace(lm.config, eos_ids=()))
    run = jax.jit(partial(models.generate_tokens, max_new_tokens=shape.new_tokens))
    x, tokens = models.embed(lm, jnp.asarray(given, jnp.int32)), torch.from_numpy(given)

    def theirs() -> Any:
        with torch.no_grad():
            asked: Any = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(tokens)}
            number = {"max_new_tokens": shape.new_tokens, "min_new_tokens": shape.new_tokens}
            return hf.generate(tokens, **asked, **number)

    return paired(lambda: run(jax.random.key(0), never, x), theirs, shape.rounds)


def rank_times(shape: Shape, lm: models.LM, folder: Path) -> dict[str, float]:
    """Compare ranking answers behind every query with a torch loop that keeps the text's cache."""
    import copy

    import torch

    hf = torch_model(folder)
    draw = np.random.default_rng(2)
    queries = draw.integers(3, lm.config.vocab_size, (shape.queries, 32))
    answers = draw.integers(3, lm.config.vocab_size, (shape.answers, 3))
    laid = models.candidates(answers.tolist(), end=lm.config.eos_ids[0])
    run = jax.jit(lambda lm, ids: models.rank(lm, models.embed(lm, ids), laid))
    parts = jnp.asarray(queries.reshape(-1, min(20, shape.queries), 32), jnp.int32)
    ended = np.concatenate([answers, np.full((shape.answers, 1), lm.config.eos_ids[0])], axis=1)
    tails, rows = torch.from_numpy(ended), torch.from_numpy(queries)

    def theirs() -> Any:
        scores = []
        with torch.no_grad():
            for row in rows:
                first = hf(row[None], use_cache=True)
                cache = copy.deepcopy(first.past_key_values)
                cache.batch_repeat_interleave(len(tails))
                after = hf(tails[:, :-1], past_key_values=cache).logits
                logits = torch.cat([first.logits[:, -1:].expand(len(tails), 1, -1), after], dim=1)
                logs = torch.log_softmax(logits, dim=-1)
                scores.append(logs.gather(2, tails[..., None]).sum((1, 2)))
        return torch.stack(scores).numpy()

    def ours() -> Any:
        return [run(lm, part) for part in parts]

    difference = float(np.abs(np.concatenate([np.asarray(a) for a in ours()]) - theirs()).max())
    return paired(ours, theirs, max(shape.rounds // 2, 2)) | {"max_difference": difference}


def load_times(name: str, rounds: int) -> dict[str, float]:
    """Time the loading of a file, packed and as floats."""
    found: dict[str, float] = {}
    for kind, dtype in (("packed", None), ("floats", jnp.float32)):
        times = [seconds(lambda dtype=dtype: models.load(name, dtype=dtype)[0]) for _ in range(rounds)]
        found[f"{kind}_s"] = statistics.median(times)
    return found


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a random model, small sizes, two rounds")
    parser.add_argument("--only", default="", help="run only the parts whose name contains this, and keep the others")
    parser.add_argument("--model", default=MODELS["smollm2"], help="the checkpoint")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results") / "adapters.json")
    options = parser.parse_args()
    shape = TINY if options.tiny else Shape()
    small = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=2, mlp_width=64, eos_ids=(2,))
    lm = (
        models.init(jax.random.key(0), config=small)
        if options.tiny
        else models.load(options.model, dtype=jnp.float32)[0]
    )
    import peft

    task: Any = {"task_type": "CAUSAL_LM"}
    adapters = {
        "prompt": (tuning.prompt(16), peft.PromptTuningConfig(num_virtual_tokens=16, **task)),
        "prefix": (tuning.prefix(8), peft.PrefixTuningConfig(num_virtual_tokens=8, **task)),
        "lora": (tuning.lora(8), peft.LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj"], **task)),
        "ia3": (
            tuning.ia3(),
            peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **task),
        ),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.save(folder, lm)
        parts: dict[str, Callable[[], Any]] = {
            f"{kind}_step": partial(step_times, shape, lm, folder, adapter, config)
            for kind, (adapter, config) in adapters.items()
        }
        parts |= {
            "users_together": lambda: together_times(shape, lm),
            "mezo": lambda: mezo_times(shape, lm),
            "decode": lambda: decode_times(shape, lm, folder),
            "rank": lambda: rank_times(shape, lm, folder),
        }
        if not options.tiny:
            parts["packed_decode"] = lambda: decode_times(shape, models.load(options.model)[0], folder)
            parts["load"] = lambda: load_times(options.model, 3)
        kept = json.loads(options.out.read_text("utf-8")) if options.only and options.out.is_file() else {}
        records = kept | {"machine": machine(), "parameters": lm.config.num_params}
        for part, run in parts.items():
            if options.only in part:
                records[part] = run()
                print(part, json.dumps(records[part], default=lambda v: round(v, 3)), flush=True)
                files.write(options.out, json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
