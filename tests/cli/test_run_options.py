"""What `nvcim run` makes of its words and files, before it does anything."""

import shlex
from pathlib import Path

import pytest

from experiments.shift import settings
from nvcim_jax import cli, pipeline
from nvcim_jax.cli import before, entry, matrix, run


def test_a_file_of_options_is_read_and_words_count_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'sigma = 0.2\nbuffer-size = 9\nmethods = ["frozen"]\nplots = false\n[config]\nkeys = "representative"\n'
        "[config.tuning]\nnum_steps = 7\n",
        encoding="utf-8-sig",
    )
    found = run.read([str(file), "--buffer-size", "7"])
    assert isinstance(found, run.Options)
    assert (found.sigma, found.buffer_size, found.methods, found.plots) == (0.2, 7, ("frozen",), False)
    assert found.chosen == pipeline.presets["users"].changed(
        config={"keys": "representative", "tuning": {"num_steps": 7}}
    )
    for text, message in (
        ("sigm = 0.2\n", f"`sigm` must be an option of the command, but stands in {file}. Did you mean 'sigma'?"),
        ("foo = 3\n", f"`foo` must be an option of the command, but stands in {file}."),
        ("[config.tuning]\nnum_step = 3\n", "`config.tuning.num_step` must be an option"),
        ("sigma = [[1]]\n", "`FILE` must hold"),
        ("a", "`FILE` must be"),
    ):
        file.write_text(text, encoding="utf-8")
        code, said = cli.main(["run", str(file)]), capsys.readouterr()
        assert (code, said.out, said.err.count("\n")) == (2, "", 1)
        assert message in said.err


def test_what_the_options_of_the_memory_refuse_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = cli.main(["run", "--preset", "paper", "--config.keys", "prompt"]), capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("nvcim run: Argument `--config.num-keys` must be 1 ")


def test_there_is_one_truth_for_defaults() -> None:
    bundled = pipeline.presets["bundled"]
    assert run.Options().chosen is pipeline.presets["users"]
    assert settings.Settings().preset is bundled
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert 'preset = nv.pipeline.presets["users"]' in readme
    assert matrix.Product().arrays is pipeline.Preset().arrays is bundled.arrays
    for words, name in (
        ([], "users"),
        (["--data", "x.jsonl"], "bundled"),
        (["--model", "x"], "pretrained"),
        (["--preset", "paper"], "paper"),
    ):
        found = run.read(words)
        assert isinstance(found, run.Options)
        assert found.chosen == pipeline.presets[name]


def test_the_command_that_is_kept_gives_the_same_options() -> None:
    words = ["--model", "x", "--config.capacity", "3", "--arrays.adc-bits", "None", "--bound", "0.5", "--no-plots"]
    found = run.read(words)
    assert isinstance(found, run.Options)
    again = run.read(shlex.split(entry.command_line("run", found))[2:])
    assert again == found
    assert found.chosen == pipeline.presets["pretrained"].changed(
        bound=0.5, config={"capacity": 3}, arrays={"adc_bits": None}
    )


def test_memory_counts_the_prompts_that_are_tuned() -> None:
    for words, num in ((["--preset", "pretrained"], 1), (["--preset", "bundled"], 5)):
        options = run.read([*words, "--buffer-size", "25"])
        assert isinstance(options, run.Options)
        assert before.work(options).prompts == num
