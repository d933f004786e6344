"""A random language model of width 32, a tokenizer of a few words, two buffers, and a memory made of them."""

from typing import Any, NamedTuple

import jax
import pytest

from nvcim_jax import crossbar, devices, models, pipeline, selection, tuning
from nvcim_jax.pipeline.store import insert
from support.tracing import count_traces

MODEL = models.Config(vocab_size=64, width=32, num_layers=2, num_heads=4, mlp_width=64, bos_id=1, eos_ids=(2,))
WORDS = ("=", "pay", "card", "bank", "loan", "oven", "soup", "salt", "cook", "yes", "no", "maybe")


class Record(NamedTuple):
    id: str
    input: str
    output: str


class Tokenizer:
    """Words of the list by their place, 0 for another; 1 starts a text."""

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids = [3 + WORDS.index(word) if word in WORDS else 0 for word in text.split()]
        return {"input_ids": [1] * add_special_tokens + ids}

    def decode(self, ids, skip_special_tokens: bool = True) -> str:
        assert skip_special_tokens
        return " ".join(WORDS[int(i) - 3] if 3 <= i < 3 + len(WORDS) else f"<{int(i)}>" for i in ids if i > 2)


BANK = ("pay card", "bank loan", "card bank", "pay loan", "loan card", "pay bank")
FOOD = ("oven soup", "salt cook", "soup salt", "cook oven", "cook soup", "oven salt")


def records(texts: tuple[str, ...], answer: str) -> list[Record]:
    return [Record(f"{answer}-{i}", text, answer) for i, text in enumerate(texts)]


CONFIG = pipeline.Config(
    num_virtual=2,
    num_prompts=2,
    capacity=4,
    codec="identity",
    tuning=tuning.Options(num_steps=4),
    codec_fit=selection.FitConfig(num_steps=4),
)
ARRAYS = crossbar.Config(rows=32, cols=8, weight_bits=4, cell_bits=2, weight_scale="column")


class Learnt(NamedTuple):
    """What two buffers made of an empty memory on FeFET3 at sigma 0.1, the seed being 7."""

    state: pipeline.State
    info: tuple[Any, ...]
    traced: tuple[list[str], ...]


@pytest.fixture(scope="session")
def lm() -> models.LM:
    return models.init(jax.random.key(0), config=MODEL, scale=0.3)


@pytest.fixture(scope="session")
def text() -> models.Text:
    return models.Text(Tokenizer())


@pytest.fixture(scope="session")
def device() -> devices.Device:
    return devices.get("FeFET3", sigma=0.1)


@pytest.fixture(scope="session")
def config() -> pipeline.Config:
    return CONFIG


@pytest.fixture(scope="session")
def arrays() -> crossbar.Config:
    return ARRAYS


@pytest.fixture(scope="session")
def memory(device) -> pipeline.Memory:
    return pipeline.crossbar_memory(device, ARRAYS)


@pytest.fixture(scope="session")
def buffers() -> tuple[list[Record], list[Record]]:
    return records(BANK, "yes"), records(FOOD, "no")


@pytest.fixture(scope="session")
def make_learnt(lm, text, memory, buffers):
    """Return a function of a seed that shows both buffers to an empty memory."""

    def make(seed: int) -> Learnt:
        init_key, *keys = jax.random.split(jax.random.key(seed), 3)
        state, infos, traced = pipeline.init(init_key, lm, config=CONFIG, memory=memory), [], []
        for key, rows in zip(keys, buffers, strict=True):
            with count_traces() as found:
                buffer = pipeline.make_buffer(rows, lm, text, config=CONFIG)
                state, info = pipeline.observe(key, state, buffer, lm, config=CONFIG, memory=memory)
            infos.append(info)
            traced.append(found)
        return Learnt(state, tuple(infos), tuple(traced))

    return make


@pytest.fixture(scope="session")
def learnt(make_learnt) -> Learnt:
    return make_learnt(7)


def filled_store(lm, config, num: int = 3, codec=None) -> pipeline.Store:
    """Return a store of some random prompts, the other slots empty."""
    prompts = jax.random.normal(jax.random.key(0), (num, config.num_virtual, lm.config.width))
    features = jax.random.normal(jax.random.key(1), (num, config.search_tokens, lm.config.width))
    empty = pipeline.init(jax.random.key(2), lm, config=config).store
    store, _ = insert(empty, prompts, features, config=config)
    return store if codec is None else store._replace(codec=codec)
