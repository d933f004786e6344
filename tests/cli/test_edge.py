"""`nvcim edge` as a user meets it: tables, a checkpoint, records, a figure, and one line for bad input."""

import json
import shutil
from pathlib import Path

import jax
import pytest

from nvcim_jax import cli, compression, cost, data, models, tuning
from nvcim_jax.cli import edge

BUNDLED = Path(models.__file__).parent / "bundled"
TINY = models.Config(vocab_size=4096, width=32, num_layers=2, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    models.save(folder, models.init(jax.random.key(0), config=TINY, scale=0.2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = ["pay my card", "cook the soup", "send money home", "heat the oven"]
    found = [
        data.Record(f"{i}", "user", "topic", texts[i % 4], ("bank", "food")[i % 2], "train" if i < 16 else "test")
        for i in range(20)
    ]
    data.write_jsonl(path, found)
    return path


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        code = cli.main(["edge", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
def test_a_model_is_compressed_tuned_asked_and_scheduled(tiny, rows, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    sizes = ["--window", "1", "--num-steps", "30", "--batch", "4", "--rank", "2", "--method", "magnitude"]
    code, said, err = _call([str(rows), "--model", str(tiny), "--out", str(out), *sizes], capsys)
    assert code == 0, err
    about = json.loads((out / "edge.json").read_text())
    assert about["command"].startswith("nvcim edge")
    losses = about["losses"]
    assert list(losses)[-2:] == ["windows, exit 1", "windows, exit 2"]
    assert losses["LoRA"] < losses["as it is"]
    assert losses["windows, vote by max"] < losses["compressed"]
    assert f"{losses['windows, vote by mean']:.4g}" in said
    plans = about["schedule"]
    assert plans["windows"]["seconds"] < plans["LoRA"]["seconds"]
    assert plans["windows"]["mb"] < plans["LoRA"]["mb"]
    assert isinstance(models.load(out / "model")[0].params["layers"]["up"], models.Packed)
    assert (out / "edge.png").stat().st_size > 5000


def test_what_is_scheduled_has_the_texts_of_an_update() -> None:
    """They are drawn with replacement, so that a batch may hold more than there are rows."""
    lm = models.init(jax.random.key(0), config=TINY)
    train = tuning.examples([[1, 5, 6], [1, 7]], [[8, 2], [9, 2]])
    policy, machine = compression.uniform(2, bits=4, sparsity=0.5), cost.machines.get("edge-8GB")
    few, many = (
        edge._plans(edge.Options(data=Path("x"), batch=batch), lm, policy, 1, machine, train) for batch in (2, 8)
    )
    wanted = cost.schedule(lm, window=(0, 2), batch=8, tokens=train.ids.shape[1], predicted=2, on=machine)
    assert many["LoRA"]["seconds"] == wanted.time_s
    assert few["LoRA"]["mb"] < many["LoRA"]["mb"]


def test_bad_input_is_one_line(tiny, rows, tmp_path, capsys) -> None:
    bare = tmp_path / "bare.jsonl"
    data.write_jsonl(bare, [data.Record("0", "user", "topic", "pay", "bank", "train")])
    short = tmp_path / "short.jsonl"
    data.write_jsonl(short, [data.Record(s, "user", "topic", "pay", "bank", s) for s in ("train", "test")])
    for words, said in {
        (str(tmp_path / "none.jsonl"),): "has no 'none.jsonl'",
        (str(short), "--dry-run"): "must have 32 tokens in its train rows",
        (str(bare),): "must have test rows, each with an output",
        (str(rows), "--window", "3"): "`--window` must divide the 2 blocks of the model, but is 3. Use one of 1, 2.",
        (str(rows), "--machine", "edge"): "`--machine` must be one of",
        (str(rows), "--bits", "9"): "`--bits` must be an integer",
        (str(rows), "--window", "1", "--num-steps", "1"): "`--num-steps` must be an integer of at least 2",
    }.items():
        code, out, err = _call([*words, "--model", str(tiny), "--out", str(tmp_path / "bad")], capsys)
        assert (code, out) == (2, ""), words
        assert said in err, err
