"""What `nvcim run` says of its own time: counted by hand on a small stream, and near what is measured."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import data, models, pipeline, study
from nvcim_jax.cli import duration

CONFIG = models.Config(vocab_size=4096, width=32, num_layers=2, num_heads=2, mlp_width=48)
DESIGN = study.Design(
    {"one": study.Method(), "two": study.Method(training="noise"), "three": study.Method(measure="ssa")},
    baselines=("frozen", "latest", "sequential", "joint", "1-NN text"),
    num_instances=5,
)


@pytest.fixture(scope="module")
def text() -> models.Text:
    return models.load(models.BUNDLED)[1]


@pytest.fixture(scope="module")
def stream() -> data.Stream:
    return data.builtin_users(0, num_users=2, num_topics=2, num_train=16, num_test=6, buffer_size=8, num_words=3)


def preset(**changes: object) -> pipeline.Preset:
    tuning = {"num_steps": 7, "batch": 3}
    return pipeline.presets["bundled"].changed(config={"num_virtual": 4, "num_prompts": 2, "tuning": tuning, **changes})


def test_counted_by_hand(text, stream) -> None:
    blocks = 2 * (4 * 32 * 32 + 3 * 32 * 48)
    head = 4096 * 32
    records = [record for block in stream.blocks for record in block.records]
    around = len(text.encode(text.template.prefix)) + len(text.encode(text.template.suffix)) + 4
    length = around + sum(len(text.encode(r.input)) for r in records) / len(records)
    answer = sum(len(text.encode(r.output)) + 1 for r in records) / len(records)
    labels = sum(len(text.encode(label)) for label in stream.labels)
    num_blocks = len(stream.blocks)
    # 2 kinds of training and `sequential` on every block, `latest` and `joint` once; 2 prompts at once
    tuned = 2 * 7 * 3 * (2 * num_blocks + num_blocks + 2)
    asked = 12 * (4 + 3 * (5 + 1))
    found = duration.count([stream], CONFIG, text, preset(), DESIGN)
    norms = 1.02  # they count as weights here
    assert found.tuning == pytest.approx(6 * tuned * (blocks * (length + answer) + head * answer), rel=norms - 1)
    assert found.answering == pytest.approx(2 * asked * (blocks * (length + labels) + head * (labels + 1)), rel=0.02)


def test_twice_the_work_counts_twice(text, stream) -> None:
    one = duration.count([stream], CONFIG, text, preset(), DESIGN)
    two = duration.count([stream, stream], CONFIG, text, preset(), DESIGN)
    assert two == pytest.approx((2 * one.tuning, 2 * one.answering))
    longer = duration.count([stream], CONFIG, text, preset(tuning={"num_steps": 14, "batch": 3}), DESIGN)
    assert longer == pytest.approx((2 * one.tuning, one.answering))
    every = duration.count([stream], CONFIG, text, preset(), DESIGN._replace(every_block=True))
    assert every.answering == pytest.approx(len(stream.blocks) * one.answering)


def test_an_untied_head_is_no_block(text, stream) -> None:
    tied = duration.count([stream], CONFIG, text, preset(), DESIGN)
    assert duration.count([stream], dataclasses.replace(CONFIG, tied=False), text, preset(), DESIGN) == tied


def test_the_rate_is_that_of_a_product() -> None:
    config = dataclasses.replace(CONFIG, width=256, mlp_width=512)
    x, w = jnp.ones((128, 256)), jnp.ones((256, 512))
    product = jax.jit(jnp.matmul)
    product(x, w).block_until_ready()
    found = []
    for _ in range(50):
        started = time.perf_counter()
        product(x, w).block_until_ready()
        found.append(time.perf_counter() - started)
    measured = 2 * 128 * 256 * 512 / sorted(found)[25]
    assert 0.1 < duration.rate(config, seconds=0.1) / measured < 10  # a shared machine


def test_a_time_is_said_in_words() -> None:
    for seconds, words in ((0.2, "1 s"), (40, "40 s"), (90, "1.5 minutes"), (7200, "2 hours"), (1e6, "12 days")):
        line = duration.said(duration.Operations(seconds / 2, seconds / 2), 1.0)
        assert re.match(f"About {re.escape(words)} here", line), line
