"""`nvcim compress` as a user meets it: a checkpoint that opens with its codes, a table, and one line for bad input."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nvcim_jax import cli, compression, models

BUNDLED = Path(models.__file__).parent / "bundled"
TINY = models.Config(vocab_size=4096, width=32, num_layers=2, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))
WORDS = "pay my card and cook the soup while the oven is hot and the loan is lost . " * 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    models.save(folder, models.init(jax.random.key(0), config=TINY, scale=0.2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt.gz"
    path.write_bytes(gzip.compress(WORDS.encode()))
    return path


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        code = cli.main(["compress", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--bits 3", "--bits 4 --policy random --method wanda --quantiser gptq"])
def test_a_checkpoint_is_written_that_opens_with_its_codes(tiny, text, tmp_path, capsys, how) -> None:
    out = tmp_path / "out"
    sizes = ["--num-windows", "4", "--num-tokens", "16"]
    code, said, err = _call([str(text), "--model", str(tiny), "--out", str(out), *sizes, *how.split()], capsys)
    assert code == 0, err
    about = json.loads((out / "compress.json").read_text())
    assert about["command"].startswith("nvcim compress")
    assert f"{about['perplexity']['after']:.2f} after" in said
    lm, again = models.load(out)
    assert again.tokenizer is not None
    for name in ("q", "down"):
        leaf = lm.params["layers"][name]
        assert isinstance(leaf, models.Packed)
        for codes, bits, sparsity in zip(np.asarray(leaf.codes), about["bits"], about["sparsity"], strict=True):
            assert np.abs(codes).max() <= 2 ** (bits - 1) - 1
            assert (codes == 0).sum() >= int(sparsity * codes.size)
    assert abs(np.mean(about["sparsity"]) - 0.5) < 1e-12
    policy = compression.Policy(about["bits"], about["sparsity"])
    rounded = compression.in_loop(lm, policy, parts=("activations",))
    assert bool(jnp.isfinite(models.forward(rounded, models.embed(rounded, jnp.array([[1, 2, 3]])))[0]).all())


def test_bad_input_is_one_line(tiny, text, tmp_path, capsys) -> None:
    binary = tmp_path / "text.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    damaged, whole = tmp_path / "damaged.txt.gz", gzip.compress(WORDS.encode())
    damaged.write_bytes(whole[:20] + b"\xff\xff\xff" + whole[23:])
    for words, said in {
        (str(tmp_path / "none.txt"),): "has no 'none.txt'",
        (str(binary),): "must be plain text in UTF-8, but text.txt is not",
        (str(damaged),): "must be plain text in UTF-8, but damaged.txt.gz is not",
        (str(text),): "must hold 33 windows of ",
        (str(text), "--policy", "lucky"): "`--policy` must be one of luc, random, uniform",
        (str(text), "--method", "sparse"): "`--method` must be one of",
        (str(text), "--bits", "8"): "`--bits` must be an integer",
        (str(text), "--sparsity", "1.5"): "`--sparsity` must lie in",
        (str(text), "--dtype", "int8"): "`--dtype` must be one of",
    }.items():
        code, out, err = _call([*words, "--model", str(tiny), "--out", str(tmp_path / "bad")], capsys)
        assert (code, out) == (2, ""), words
        assert said in err
        assert len(err.splitlines()) == 1
        assert not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_sides_that_no_file_holds_are_refused_before_any_work(tiny, text, tmp_path, capsys) -> None:
    """Eight codes of 4 bits fill a word, or four of 8: what neither fits is said before the blocks are calibrated."""
    for width in (34, 36):
        folder = tmp_path / str(width)
        config = dataclasses.replace(TINY, mlp_width=width)
        models.save(folder, models.init(jax.random.key(0), config=config, scale=0.2))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(BUNDLED / name, folder / name)
        words = [str(text), "--model", str(folder), "--num-windows", "4", "--num-tokens", "16", "--bits", "3"]
        code, said, err = _call([*words, "--out", str(tmp_path / f"out{width}"), "--method", "magnitude"], capsys)
        if width == 34:
            assert (code, said) == (2, "")
            assert "`--model` must have matrices whose sides 4 divides, but layers.up is (32, 34)." in err
        else:
            assert code == 0, err
            assert isinstance(models.load(tmp_path / "out36")[0].params["layers"]["down"], models.Packed)
