"""`nvcim tune` as a user meets it: an adapter in PEFT's files, a table, and one line for bad input."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from nvcim_jax import cli, data, io, models

BUNDLED = Path(models.__file__).parent / "bundled"
TINY = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    models.save(folder, models.init(jax.random.key(0), config=TINY))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = ("pay my card", "cook the soup", "card is lost", "salt in soup", "pay a loan", "oven is hot")
    made = [
        data.Record(f"r{i}", "one", "topic", text, ("bank", "food")[i % 2], "test" if i > 3 else "train")
        for i, text in enumerate(texts)
    ]
    data.write_jsonl(path, made)
    return path


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        code = cli.main(["tune", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        "--adapter lora --rank 2",
        "--adapter prefix --num-virtual 2",
        "--adapter ia3 --zeroth-order 1e-3 --learning-rate 1e-2",
    ],
)
def test_an_adapter_is_tuned_saved_and_opened_again(tiny, rows, tmp_path, capsys, how) -> None:
    words = [str(rows), "--model", str(tiny), "--out", str(tmp_path / "out"), "--num-steps", "40", *how.split()]
    code, out, err = _call(words, capsys)
    assert code == 0, err
    assert "4 train, 2 test rows." in out
    about = json.loads((tmp_path / "out" / "tune.json").read_text())
    train = about["losses"][0]
    assert train["split"] == "train"
    assert train["after"] < train["before"]
    assert about["command"].startswith("nvcim tune")
    lm, _ = models.load(tiny)
    state, adapter = io.load_peft(tmp_path / "out", lm)
    assert adapter.details[0].kind == how.split()[1]
    assert bool(jnp.isfinite(state).all())


def test_bad_input_is_one_line(tiny, rows, tmp_path, capsys) -> None:
    other = tmp_path / "other.jsonl"
    data.write_jsonl(other, [data.Record("a", "u", "t", "x", "y", "test")])
    for words, said in {
        (str(tmp_path / "none.jsonl"),): "has no 'none.jsonl'",
        (str(other), "--model", str(tiny)): "must have rows of the split train, but other.jsonl has none",
        (str(rows), "--adapter", "lora2"): "`--adapter`",
        (str(rows), "--adapter", "prompt", "--targets", "q"): "`--targets` must be left out with --adapter prompt",
        (
            str(rows),
            "--adapter",
            "prompt",
            "--alpha",
            "3",
        ): "`--alpha` must be left out with --adapter prompt, but is 3",
        (str(rows), "--adapter", "ia3", "--alpha", "32"): "`--alpha` must be left out with --adapter ia3, but is 32",
        (str(rows), "--domains", "two"): "`--domains`",
        (str(rows), "--num-steps", "0"): "`--num-steps` must be an integer of at least 1",
        (str(rows), "--zeroth-order", "-1"): "`--zeroth-order` must lie in",
    }.items():
        code, out, err = _call(list(words), capsys)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


def test_a_tuning_that_diverges_is_not_saved(tiny, rows, tmp_path, capsys) -> None:
    words = [str(rows), "--model", str(tiny), "--adapter", "ia3", "--num-steps", "3", "--batch", "1"]
    code, _, err = _call([*words, "--learning-rate", "inf", "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert "`--learning-rate` must let the loss fall, but made numbers that are not finite in 3 updates" in err
    assert not list((tmp_path / "out").glob("*"))
