"""Measure the bundled language model: perplexity, and what one tuned soft prompt a domain is worth.

    NVCIM_DATA=<data folder> python -m experiments.pretrain.evaluate --out runs/bundled  # the model shipped
    NVCIM_DATA=<data folder> python -m experiments.pretrain.evaluate --checkpoint runs/pretrain/model \
        --config.domains held_out --out runs/trial  # choosing a recipe

Takes about 10 minutes on one core for the four stream domains and three buffers. Expect the table of
nvcim_jax/models/bundled/MODEL_CARD.md. Recipes are chosen on `held_out` (five intents of the `work` domain that the
model never saw); the stream domains are for the final report.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tokenizers import Tokenizer

from experiments.pretrain import data
from experiments.pretrain.ngrams import ngram_losses
from experiments.pretrain.steer import (
    END,
    START,
    Example,
    accuracy,
    make_candidates,
    make_labelled,
    make_queries,
    prompt_from_examples,
    prompt_from_words,
    token_ids,
    tune,
)
from nvcim_jax import checks, files, models, study

__all__ = ["Config", "Domain", "perplexity", "read_domains", "steering"]

STREAM = ("banking", "home", "kitchen_and_dining", "travel")
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""97.5 % quantile of Student's t by the number of values, from its usual table."""


@checks.frozen_config
class Config:
    """How the model is measured.

    Attributes:
        domains: "stream" (the four stream domains, five intents each) or "held_out" (five intents of `work`).
        num_seeds: Buffers a domain.
        buffer: Labelled examples in a buffer.
        num_each: Soft tokens a label; every prompt has that many times the number of labels.
        num_steps: Updates of the prompt.
        learning_rate: Of Adam for a prompt made from examples.
        word_steps: Updates of a prompt that starts from random words of the vocabulary.
        word_rate: Its learning rate.
        bound: Largest entry of a bounded prompt.
        sigma: Noise on a prompt's values, relative to its largest entry.
        num_noisy: Noisy copies of each prompt.
    """

    domains: str = "stream"
    num_seeds: int = 3
    buffer: int = 25
    num_each: int = 2
    num_steps: int = 80
    learning_rate: float = 2e-2
    word_steps: int = 120
    word_rate: float = 2e-2
    bound: float = 0.4
    sigma: float = 0.1
    num_noisy: int = 1

    def __post_init__(self) -> None:
        """Check the names."""
        checks.choice("domains", self.domains, ("stream", "held_out"))
        checks.integer("num_seeds", self.num_seeds, low=2, high=10)


TUNED = "made from examples, tuned"


class Domain(NamedTuple):
    """Examples of one domain: those buffers are drawn from, and those that are asked."""

    name: str
    pool: list[Example]
    test: list[Example]


class Model(NamedTuple):
    """A loaded checkpoint with its plain tokenizer."""

    params: Any
    config: models.Config
    tokenizer: Tokenizer


def read_domains(folder: Path, which: str) -> tuple[list[Domain], list[str]]:
    """Return the domains to measure and the labels to rank.

    "clinc5" takes the first five intents of each domain in file order; all 20 labels are ranked. For the held-out
    intents the other labels are 15 that the model was trained on.
    """
    if which == "stream":
        records = {name: data.read_clinc(folder, (name,)) for name in STREAM}
        kept = {name: list(dict.fromkeys(r["output"] for r in found))[:5] for name, found in records.items()}
        tests, labels = ("test",), [label for found in kept.values() for label in found]
    else:
        records = {"work": data.read_clinc(folder, ("work",))}
        kept, tests = {"work": list(data.HELD_OUT_INTENTS)}, ("val", "test")
        known = [r["output"] for r in [*records["work"], *data.read_clinc(folder, ("small_talk",))]]
        labels = list(dict.fromkeys([*kept["work"], *known]))[:20]
    domains = []
    for name, found in records.items():
        rows = [(r["split"], Example(r["input"], r["output"])) for r in found if r["output"] in kept[name]]
        pool = [example for split, example in rows if split == "train"]
        domains.append(Domain(name, pool, [example for split, example in rows if split in tests]))
    return domains, labels


def perplexity(model: Model, corpus: data.Corpus) -> dict[str, float]:
    """Return losses on held-out sentences: of the model and of n-gram models of the same training tokens."""
    train, valid = data.encode(model.tokenizer, corpus.train), data.encode(model.tokenizer, corpus.valid)
    size = max(map(len, valid)) + 2
    ids = np.zeros((len(valid), size), np.int32)
    for row, sentence in zip(ids, valid, strict=True):
        row[: len(sentence) + 2] = [START, *sentence, END]
    weights = np.arange(1, size) < np.asarray([len(sentence) + 2 for sentence in valid])[:, None]
    total = 0.0
    for first in range(0, len(ids), 64):
        total += float(
            sentence_losses(model.params, ids[first : first + 64], weights[first : first + 64], model.config)
        )
    num_tokens, num_bytes = int(weights.sum()), sum(len(text.encode()) + 1 for text in corpus.valid)
    ngrams = {
        f"{order}-gram": ngram_losses(train, valid, model.config.vocab_size, order, start=START, end=END)
        for order in (1, 5)
    }
    losses = {"model": total / num_tokens, **ngrams}
    found = {f"nats_per_token {name}": loss for name, loss in losses.items()}
    found |= {f"bits_per_byte {name}": loss * num_tokens / num_bytes / math.log(2) for name, loss in losses.items()}
    return found | {"num_tokens": num_tokens, "num_bytes": num_bytes}


def sentence_losses(params: Any, ids: np.ndarray, weights: np.ndarray, config: models.Config) -> jax.Array:
    """Return the sum of next-token losses in nats over the positions with a weight."""
    lm = models.LM(params, config)
    logits, _ = models.forward(lm, models.embed(lm, jnp.asarray(ids[:, :-1])))
    logs = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(logs, jnp.asarray(ids[:, 1:])[..., None], axis=-1)[..., 0]
    return -(picked * weights).sum()


def draw_buffer(domain: Domain, size: int, seed: int) -> list[Example]:
    """Return examples drawn at random from a domain."""
    generator = np.random.default_rng([seed, *domain.name.encode()])
    return [domain.pool[i] for i in generator.choice(len(domain.pool), size, replace=False)]


def class_means(model: Model, buffer: list[Example], texts: Sequence[str]) -> list[str]:
    """Return for each text the label whose examples' summed embeddings have the largest cosine to its own."""
    table = np.asarray(model.params["embedding"])

    def direction(several: Sequence[str]) -> np.ndarray:
        total = table[np.concatenate([token_ids(model.tokenizer, text) for text in several])].sum(0)
        return total / np.linalg.norm(total)

    labels = sorted({example.label for example in buffer})
    means = np.stack([direction([e.text for e in buffer if e.label == label]) for label in labels])
    return [labels[i] for i in np.argmax(np.stack([direction([text]) for text in texts]) @ means.T, axis=1)]


class Plan(NamedTuple):
    """How one prompt is tuned: where it starts, and the settings of `tune`."""

    start: jax.Array
    learning_rate: float
    num_steps: int
    bound: float = math.inf


def make_prompts(
    model: Model, buffer: list[Example], config: Config, seed: int
) -> Iterator[tuple[str, jax.Array, dict[str, float]]]:
    """Yield the prompts of one buffer by method, with what is to be noted about each."""
    examples = make_labelled(model.tokenizer, buffer)
    start = prompt_from_examples(model.params, model.tokenizer, buffer, config=model.config, num_each=config.num_each)
    yield "made from examples, not tuned", start, {"largest": float(jnp.abs(start).max())}
    words = prompt_from_words(model.params, len(start), seed=seed)
    plans = {
        TUNED: Plan(start, config.learning_rate, config.num_steps),
        f"made from examples, tuned within {config.bound}": Plan(
            start, config.learning_rate, config.num_steps, config.bound
        ),
        "made from random words, tuned": Plan(words, config.word_rate, config.word_steps),
    }
    for name, (prompt, rate, steps, bound) in plans.items():
        tuned, losses = tune(
            model.params, prompt, examples, jnp.float32(rate), config=model.config, num_steps=steps, bound=bound
        )
        note = {"first_loss": float(losses[0]), "last_loss": float(losses[-1]), "largest": float(jnp.abs(tuned).max())}
        yield name, tuned, note


def noisy_copies(prompt: jax.Array, config: Config, seed: int) -> Iterator[jax.Array]:
    """Yield the prompt with Gaussian noise on its values, sigma relative to its largest entry."""
    scale = config.sigma * jnp.abs(prompt).max()
    for key in jax.random.split(jax.random.key(seed), config.num_noisy):
        yield prompt + scale * jax.random.normal(key, prompt.shape)


def steering(model: Model, folder: Path, config: Config) -> Iterator[dict[str, Any]]:
    """Yield one record per domain, buffer and method: accuracy on the domain's test rows."""
    domains, labels = read_domains(folder, config.domains)
    candidates = make_candidates(model.tokenizer, labels)
    asked = [make_queries(model.tokenizer, [e.text for e in domain.test]) for domain in domains]
    truth = [np.asarray([labels.index(e.label) for e in domain.test]) for domain in domains]

    def score(prompt: jax.Array, i: int) -> float:
        return accuracy(model.params, prompt, asked[i], candidates, truth[i], config=model.config)

    for i, domain in enumerate(domains):
        frozen = score(jnp.zeros((0, model.config.width)), i)
        for seed in range(config.num_seeds):
            buffer = draw_buffer(domain, config.buffer, seed)
            about = {"domain": domain.name, "seed": seed}
            yield about | {"method": "frozen", "accuracy": frozen}
            texts, names = [e.text for e in buffer], [e.label for e in buffer]
            nearest = [names[k] for k in study.nearest_text(texts, [e.text for e in domain.test])]
            hits = [found == e.label for found, e in zip(nearest, domain.test, strict=True)]
            yield about | {"method": "1-NN of the same examples (TF-IDF)", "accuracy": float(np.mean(hits))}
            nearest = class_means(model, buffer, [e.text for e in domain.test])
            hits = [found == e.label for found, e in zip(nearest, domain.test, strict=True)]
            yield about | {"method": "nearest class mean (embeddings of this model)", "accuracy": float(np.mean(hits))}
            for method, prompt, note in make_prompts(model, buffer, config, seed):
                yield about | {"method": method, "accuracy": score(prompt, i), "num_virtual": len(prompt), **note}
                noisy = [score(copy, i) for copy in noisy_copies(prompt, config, seed)]
                yield about | {"method": f"{method}; noise {config.sigma}", "accuracy": float(np.mean(noisy))}
                if method == TUNED and len(domains) > 1:
                    other = (i + 1) % len(domains)
                    yield about | {"method": "tuned on the wrong domain", "accuracy": score(prompt, other)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return mean accuracies with 95 % intervals over the buffers, domains averaged within each seed."""
    domains = list(dict.fromkeys(r["domain"] for r in records))
    lines = ["| method | " + " | ".join(domains) + " | mean | 95 % |", "|---" * (len(domains) + 3) + "|"]
    for method in dict.fromkeys(r["method"] for r in records):
        chosen = [r for r in records if r["method"] == method]
        by_domain = [np.mean([r["accuracy"] for r in chosen if r["domain"] == domain]) for domain in domains]
        by_seed = [
            np.mean([r["accuracy"] for r in chosen if r["seed"] == s]) for s in sorted({r["seed"] for r in chosen})
        ]
        half = STUDENT_T[len(by_seed)] * np.std(by_seed, ddof=1) / math.sqrt(len(by_seed))
        cells = [f"{value:.3f}" for value in [*by_domain, np.mean(by_seed)]]
        lines.append(f"| {method} | " + " | ".join(cells) + f" | ± {half:.3f} |")
    return "\n".join(lines)


def main(out: Path, config: Config, checkpoint: Path | None = None) -> None:
    """Measure a checkpoint, write records and print the tables.

    Args:
        out: Folder for records.jsonl and perplexity.json.
        config: What to measure.
        checkpoint: Folder of the model; the one shipped with the package by default.
    """
    folder = data.data_folder()
    if folder is None:
        raise SystemExit(
            "No pretrain_text, clinc150 and snips_slots in NVCIM_DATA: `python -m experiments.data` makes them."
        )
    source = checkpoint or Path(models.__file__).parent / "bundled"
    lm, _ = models.load(source, tokenizer=False)
    model = Model(lm.params, lm.config, Tokenizer.from_file(str(source / "tokenizer.json")))
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    found = perplexity(model, data.read_corpus(folder))
    files.write_json(out / "perplexity.json", found)
    print("\n".join(f"{name}: {value:.4g}" for name, value in found.items()), flush=True)
    records = []
    path = files.write(out / "records.jsonl", "")
    for record in steering(model, folder, config):
        records.append(record)
        files.append(path, json.dumps(record) + "\n")
        print(f"{time.monotonic() - started:6.0f} s  {record}", flush=True)
    print(table(records))


if __name__ == "__main__":
    tyro.cli(main)
