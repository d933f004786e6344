"""`nvcim run` as a user meets it: files, tables, official predictions, and one line for bad input."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import pytest

from nvcim_jax import cli, data, devices, metrics, models, pipeline, study
from nvcim_jax.cli import before, official, run
from nvcim_jax.io import read_records

BUNDLED = Path(models.__file__).parent / "bundled"
TINY = models.Config(vocab_size=4096, width=32, num_layers=1, num_heads=2, mlp_width=32, bos_id=1, eos_ids=(2,))
SMALL = (
    "--config.tuning.num-steps 2 --config.tuning.batch 2 --buffer-size 4 --config.num-virtual 2 --instances 2 "
    "--num-users 2 --num-test 4"
)
METHODS = "--methods frozen,NVCiM-PT,NVP*(MIPS)"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint with random weights and the bundled tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    models.save(folder, models.init(jax.random.key(0), config=TINY))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder / name)
    return folder


@contextlib.contextmanager
def _users_defaults() -> Iterator[None]:
    """Set JAX as users have it, not as strictly as this suite does."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"), jax.debug_key_reuse(False):
        yield


def _call(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with _users_defaults():
        code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def _lamp(folder: Path, task: str = "LaMP_2", users: int = 2) -> Path:
    """Write a LaMP folder by hand: users who tag films, or write titles."""
    tags = metrics.LAMP_LABELS["LaMP_2M"]
    questions, golds = [], []
    for i in range(2 * users):
        user = i // 2
        if task == "LaMP_2":
            head = "Which tag does this movie relate to among the following tags? description:"
            made = [{"tag": tags[j % 3], "description": f"a film {j} of {user}"} for j in range(6)]
        else:
            head = "Generate a headline for the following article:"
            made = [{"title": f"news {j}", "text": f"a day {j} of {user}"} for j in range(6)]
        profile = [{"id": f"{user}{j}", **item} for j, item in enumerate(made)]
        questions.append({"id": f"{i}", "input": f"{head} a day with {i}", "profile": profile})
        golds.append({"id": f"{i}", "output": tags[user] if task == "LaMP_2" else f"day {i}"})
    folder.mkdir(parents=True)
    (folder / "dev_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    (folder / "dev_outputs.json").write_text(json.dumps({"task": task, "golds": golds}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], str]:
    """Return the folder of one small run over LaMP files, its words, and what it printed."""
    base = tmp_path_factory.mktemp("run")
    lamp = _lamp(base / "LaMP_2")
    words = ["run", "--data", str(lamp), "--task", "LaMP_2", "--model", str(tiny), *f"{SMALL} {METHODS}".split()]
    words += ["--every-block", "--predictions", "2", "--out", str(base / "out")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _users_defaults():
        assert cli.main(words) == 0
    return base / "out", words, printed.getvalue()


@pytest.mark.slow
def test_everything_that_is_written_is_listed(done: tuple[Path, list[str], str]) -> None:
    out, _, printed = done
    listed = printed.split("Written:\n")[1].split()
    there = {str(path) for path in out.iterdir() if path.name != "lock"}
    assert set(listed) == there
    names = {Path(path).name for path in listed}
    assert {"records.jsonl", "records.parquet", "summary.csv", "study.json", "config.json"} <= names
    assert {"accuracy.png", "shift.png"} <= names


def test_both_records_hold_the_same_and_the_command_is_kept(done: tuple[Path, list[str], str]) -> None:
    out, _, _ = done
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    rows, about = read_records(out / "records.parquet")
    assert rows == lines
    assert about["of"] == "study"
    assert about["command"].startswith("nvcim run --data ")
    assert {"method", "device", "sigma", "block", "domain"} <= set(about["axes"]) <= lines[0].keys() - {"accuracy"}
    assert {line["method"] for line in lines} == {"frozen", "NVCiM-PT", "NVP*(MIPS)"}
    assert {line["instance"] for line in lines if line["device"] == "FeFET3"} == {0, 1}
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["command"].startswith("nvcim run --data ")


def test_official_predictions_are_those_of_the_very_chips_of_the_records(done: tuple[Path, list[str], str]) -> None:
    out, _, _ = done
    scores = json.loads((out / "official.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for chip, row in enumerate(scores):
        preds = out / f"predictions_0_chip_{chip}.json"
        again = metrics.lamp_evaluate(out / "golds_0.json", preds, task="LaMP_2M")
        assert {name: row[name] for name in again} == again
        place = ("NVCiM-PT", "FeFET3", chip, 1)
        own = [r for r in lines if (r["method"], r["device"], r["instance"], r["block"]) == place]
        assert len(own) == 2  # as many questions of each user
        assert row["accuracy"] == pytest.approx(sum(r["accuracy"] for r in own) / 2)


def test_official_prompts_are_tuned_as_those_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(*_: Any, preset: pipeline.Preset, **__: Any) -> None:
        assert preset.lipschitz == 0.0
        raise KeyError("tuned")

    monkeypatch.setattr(study, "observe_stream", observe)
    stream = data.builtin_users(0, num_users=1, buffer_size=4, num_topics=1, num_train=4, num_test=2)
    preset = pipeline.presets["users"].changed(lipschitz=0.5)
    how: Any = {"preset": preset, "num_chips": 1, "max_new_tokens": 2, "advance": lambda done, note: None}
    lm, text = models.load(models.BUNDLED)
    with pytest.raises(KeyError, match="tuned"):
        official.predict(jax.random.key(0), stream, lm, text, devices.get("FeFET3"), **how)


@pytest.mark.slow
def test_other_adapters_are_kept_in_the_memory(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        "--model",
        str(tiny),
        "--adapter",
        "lora",
        *f"{SMALL} --methods NVCiM-PT,frozen,latest --no-plots".split(),
    ]
    code, _, err = _call([*words, "--config.rank", "1", "--out", str(tmp_path / "out")], capsys)
    assert code == 0, err
    options = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["options"]["chosen"]
    assert (options["config"]["tunes"], options["config"]["rank"], options["bound"]) == ("lora", 1, float("inf"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"NVCiM-PT", "frozen", "latest"}
    code, _, err = _call(["run", "--adapter", "loha"], capsys)
    assert code == 2
    assert "`--adapter`" in err


@pytest.mark.slow
def test_the_same_command_goes_on_and_other_settings_are_refused(
    done: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, words, printed = done
    before = (out / "records.jsonl").read_bytes()
    lines = before.splitlines(keepends=True)
    (out / "records.jsonl").write_bytes(b"".join(lines[:5]))  # a run that was killed early
    code, said, _ = _call(words, capsys)
    assert code == 0
    assert (out / "records.jsonl").read_bytes() == before
    assert _table(said) == _table(printed)
    for dry in ([], ["--dry-run"]):
        code, said, err = _call([*words, "--sigma", "0.2", *dry], capsys)
        assert (code, err.count("\n")) == (2, 1)
        assert "must hold the same study" in err
    there = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert _call([*words, "--dry-run"], capsys)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == there


def _table(printed: str) -> list[str]:
    return [line.strip() for line in printed.splitlines() if line[:1] in "│┃"]


def test_report_gives_the_same_table_and_figures_from_the_records_alone(
    done: tuple[Path, list[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out, _, printed = done
    (tmp_path / "records.jsonl").write_bytes((out / "records.jsonl").read_bytes())
    code, said, _ = _call(["report", str(tmp_path)], capsys)
    assert code == 0
    methods = [line for line in _table(printed) if "FeFET3" in line or "exact" in line]
    assert methods
    assert [line for line in _table(said) if "FeFET3" in line or "exact" in line] == methods
    for path in tmp_path.glob("*.png"):
        assert path.read_bytes() == (out / path.name).read_bytes()
        assert str(path) in said


@pytest.mark.slow
def test_free_text_is_written_and_scored_officially(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lamp = _lamp(tmp_path / "LaMP_4", "LaMP_4")
    size = SMALL.replace("--instances 2 ", "").split()
    words = ["run", "--data", str(lamp), "--model", str(tiny), *size, "--max-new-tokens", "3"]
    code, said, err = _call([*words, "--out", str(tmp_path / "out"), "--dry-run"], capsys)
    planned = said.rstrip(".\n").split(": ")[-1].split(", ")
    code, said, err = _call([*words, "--out", str(tmp_path / "out")], capsys)
    assert code == 0, err
    there = [path.name for path in (tmp_path / "out").iterdir() if path.name != "lock"]
    assert all(any(fnmatch(name, pattern) for pattern in planned) for name in there)
    assert all(any(fnmatch(name, pattern) for name in there) for pattern in planned)
    assert "rouge-1" in said
    preds = json.loads((tmp_path / "out" / "predictions_0_chip_0.json").read_text(encoding="utf-8"))
    assert preds["task"] == "LaMP_4"
    assert {row["id"] for row in preds["golds"]} == {"0", "1", "2", "3"}


def _without(folder: Path, target: Path, name: str) -> Path:
    shutil.copytree(folder, target, ignore=lambda _, names: [n for n in names if n.startswith(name)])
    return target


def _bad(name: str, tiny: Path, tmp: Path) -> tuple[list[str], str]:
    """Return the words and the message of one kind of bad input."""
    lamp = _lamp(tmp / "in" / "LaMP_2")
    use = ["--data", str(lamp)]
    if name == "no such path":
        return ["--data", str(tmp / "in" / "LaMP_3")], "Did you mean 'LaMP_2'"
    if name == "unknown task":
        return [*use, "--task", "LaMP_8"], "must be one of LaMP_1, LaMP_2, LaMP_2M, LaMP_2N"
    if name == "wrong task":
        return [*use, "--task", "LaMP_3"], "must be the task of the outputs file, LaMP_2"
    if name == "wrong variant":
        return [*use, "--task", "LaMP_2N"], r"must fit the profiles \(LaMP_2N: text, category\)"
    if name == "missing ids":
        golds = json.loads((lamp / "dev_outputs.json").read_text(encoding="utf-8"))
        (lamp / "dev_outputs.json").write_text(json.dumps({**golds, "golds": golds["golds"][1:]}), encoding="utf-8")
        return use, "must have the ids of the questions, but lacks '0'"
    if name == "HTML page":
        (lamp / "dev_questions.json").write_text("<!DOCTYPE html><html></html>", encoding="utf-8")
        return use, "is an HTML page"
    if name == "HTML lines":
        (tmp / "in" / "rows.jsonl").write_text("<html></html>\n", encoding="utf-8")
        return ["--data", str(tmp / "in" / "rows.jsonl")], "is an HTML page"
    if name == "dry run into a file":
        return ["--dry-run", "--out", str(lamp / "dev_outputs.json")], "`--out` must be a folder, but .* is a file"
    if name == "domains of LaMP":
        return [*use, "--domains", "a"], r"`--domains` must be left out with the files of LaMP, but is \('a',\)"
    if name == "domains without data":
        return ["--domains", "a"], "`--domains` must be left out without --data"
    if name == "labels without data":
        return ["--num-labels", "3"], "`--num-labels` must be left out without --data, but is 3"
    if name == "split of lines":
        (tmp / "in" / "rows.jsonl").write_text("{}\n", encoding="utf-8")
        return [
            "--data",
            str(tmp / "in" / "rows.jsonl"),
            "--split",
            "dev",
        ], "`--split` must be left out with JSON lines"
    if name == "conflict of free text":
        return ["--data", str(_lamp(tmp / "in" / "LaMP_4", "LaMP_4")), "--kind", "conflict"], "task of free text"
    if name == "no tokenizer":
        return ["--model", str(_without(tiny, tmp / "in" / "model", "tokenizer"))], "`--model` must have a tokenizer"
    if name == "no model":
        return ["--model", str(tmp / "in" / "none here")], "There is no folder"
    if name == "full store":
        return [
            "--config.capacity",
            "2",
        ], "`--config.capacity` must be at least 3, the prompts of all buffers, but is 2"
    if name == "small budget":
        return ["--memory-budget-mb", "1", "--model", str(tiny)], "`--memory-budget-mb` must be at least about"
    if name == "too many streams":
        return ["--streams", "1000000000"], "`--streams` must be an integer of at least 1 and at most 1000"
    if name == "unknown preset":
        return ["--preset", "bundle"], "Did you mean 'bundled'"
    if name == "wrong option of a preset":
        return ["--config.codec", "autoencode"], "`--config.codec` must be one of autoencoder, identity"
    if name == "huge number":
        return ["--instances", "99999999999"], "`--instances` must be an integer of at least 1 and at most 100000"
    if name == "unknown method":
        return ["--methods", "NVCiM"], "Did you mean 'NVCiM-PT'"
    if name == "unknown device":
        return ["--device", "FeFET7"], "Did you mean 'FeFET6'"
    if name == "methods of free text":
        free = ["--data", str(_lamp(tmp / "in" / "LaMP_4", "LaMP_4"))]
        return [*free, "--methods", "frozen"], r"`--methods` must be left out with LaMP_4, whose answers are written"
    if name == "chips of free text":
        free = ["--data", str(_lamp(tmp / "in" / "LaMP_4", "LaMP_4"))]
        return [*free, "--instances", "2"], "`--instances` must be left out with LaMP_4"
    if name == "blocks of free text":
        free = ["--data", str(_lamp(tmp / "in" / "LaMP_4", "LaMP_4"))]
        return [*free, "--every-block"], "`--every-block` must be left out with LaMP_4"
    if name == "tokens of labels":
        return [*use, "--max-new-tokens", "3"], "`--max-new-tokens` must be left out with LaMP_2M, .* are chosen"
    if name == "words of LaMP":
        return [*use, "--no-own-words"], "`--no-own-words` must be left out with --data, but is given"
    if name.endswith(" of built-in users"):
        word, *number = name.removesuffix(" of built-in users").split()
        return [f"--{word}", *number], f"`--{word}` must be left out without --data"
    if name.endswith(" of lines"):
        word, *number = name.removesuffix(" of lines").split()
        rows = [
            data.Record(f"{s}{i}", "u", "t", f"ask {i}", "yn"[i % 2], s) for s in ("train", "test") for i in range(4)
        ]
        data.write_jsonl(tmp / "in" / "rows.jsonl", rows)
        return ["--data", str(tmp / "in" / "rows.jsonl"), f"--{word}", *number], f"`--{word}` must be left out with"
    if name in ("no output", "labels alike"):
        answers = ("yes", "") if name == "no output" else ("polish", "Polish")
        rows = [
            data.Record(f"{s}{i}", "u", "t", f"ask {i}", a, s)
            for s in ("train", "test")
            for i, a in enumerate(answers * 2)
        ]
        data.write_jsonl(tmp / "in" / "rows.jsonl", rows)
        found = "have an output in each row, but row 'train1' of rows.jsonl has none"
        alike = "`labels` must have tokens of their own each, but 'polish' and 'Polish' have the same. Merge them"
        return ["--data", str(tmp / "in" / "rows.jsonl")], found if name == "no output" else alike
    if name == "wide code":
        return ["--config.codec", "autoencoder", "--config.code", "4000"], "`--config.code` must be .* at most 256"
    if name.startswith("budget of "):
        number = name.removeprefix("budget of ")
        return ["--memory-budget-mb", number], rf"`--memory-budget-mb` must lie in \(0, inf\], but is {number}"
    if name == "too few users":
        return [*use, "--num-users", "5"], "must be at most the users with 4 profile items, but 2 of 2 users have"
    raise AssertionError(name)


BAD = (
    "no such path", "unknown task", "wrong task", "wrong variant", "missing ids", "HTML page", "HTML lines",
    "no tokenizer", "no model", "full store", "small budget", "huge number", "unknown method", "unknown device",
    "dry run into a file", "domains of LaMP", "domains without data", "labels without data", "split of lines",
    "conflict of free text",
    "methods of free text", "chips of free text", "blocks of free text", "tokens of labels", "words of LaMP",
    "instruction of built-in users", "predictions 7 of built-in users", "max-new-tokens 3 of built-in users",
    "instruction of lines", "predictions 7 of lines", "max-new-tokens 3 of lines", "no-own-words of lines",
    "no output", "labels alike", "wide code", "budget of 0", "budget of nan",
    "too few users", "too many streams", "unknown preset", "wrong option of a preset",
)  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line_and_code_two_and_leaves_nothing(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = _bad(name, tiny, tmp_path)
    size = ["--buffer-size", "4"] if "--config.capacity" not in words else ["--buffer-size", "4", "--num-users", "3"]
    size += [] if "--num-users" in words or "--num-users" in size else ["--num-users", "2"]
    for dry in ([], ["--dry-run"]):
        code, said, err = _call(["run", "--out", str(tmp_path / "out"), *words, *size, *dry], capsys)
        assert code == 2
        assert said == ""
        assert err.startswith("nvcim run: ")
        assert err.count("\n") == 1
        assert re.search(expected, err), err
        assert not (tmp_path / "out").exists()


def test_estimate_prints_memory_and_room_of_the_published_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, _ = _call(["run", "--estimate", "--out", str(tmp_path / "out")], capsys)
    assert code == 0
    for name, count in (("Gemma-2B", 2_506_172_416), ("Phi-2", 2_779_683_840), ("Mistral-7B-GPTQ", 7_241_732_096)):
        assert name in said
        assert f"{count:,}" in said
    assert not (tmp_path / "out").exists()
    code, said, _ = _call(["run", "--estimate", "--json"], capsys)
    found = json.loads(said)
    assert code == 0
    assert "Gemma-2B" in {row["store of"] for row in found["stores"]}
    assert [row["remat"] for row in found["memory"]] == ["no", "yes"] * len(found["stores"])


def test_the_command_of_the_page_on_prompts_reads_the_file_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    assert all("extra" not in row.extra for row in data.read_jsonl("mine.jsonl"))
    words = re.findall(r"`nvcim (run --data mine.jsonl.*?)`", page)[0].split()
    code, _, err = _call([*words, "--dry-run"], capsys)
    assert code == 0, err


def test_streams_of_lines_take_the_domains_that_are_named(tmp_path: Path) -> None:
    from nvcim_jax.cli.source import read_source

    rows = [
        data.Record(f"{d}-{s}-{i}", d, "intent", f"ask {i}", f"{d} {i % 2}", s)
        for d in ("a", "b", "c")
        for s in ("train", "test")
        for i in range(6)
    ]
    data.write_jsonl(tmp_path / "rows.jsonl.gz", rows)
    options = run.Options(data=tmp_path / "rows.jsonl.gz", domains=("c", "a"), buffer_size=4, streams=2)
    made = read_source(options)
    assert [stream.domains for stream in made.streams] == [("c", "a")] * 2
    assert [stream.seed for stream in made.streams] == [0, 1]
    assert made.streams[0].labels == ("c 0", "c 1", "a 0", "a 1")
    with pytest.raises(ValueError, match="`--domains` must be one of a, b, c"):
        read_source(dataclasses.replace(options, domains=("d",)))


def test_a_conflict_is_between_users_who_disagree(tmp_path: Path) -> None:
    from nvcim_jax.cli.source import read_source

    answers = {"a": "yes", "b": "yes", "c": "no"}
    rows = [
        data.Record(f"{d}-{s}-{i}", d, "intent", f"ask {i}", answer, s)
        for d, answer in answers.items()
        for s in ("train", "test")
        for i in range(6)
    ]
    data.write_jsonl(tmp_path / "rows.jsonl", rows)
    lines = run.Options(data=tmp_path / "rows.jsonl", kind="conflict", num_users=2, buffer_size=4)
    assert read_source(lines).streams[0].domains == ("a", "c")
    assert read_source(dataclasses.replace(lines, kind="block")).streams[0].domains == ("a", "b")
    assert read_source(dataclasses.replace(lines, domains=("b", "a"))).streams[0].domains == ("b", "a")
    folder = _lamp(tmp_path / "LaMP_2", users=6)
    questions = json.loads((folder / "dev_questions.json").read_text(encoding="utf-8"))
    for question in questions[:-2]:  # all but the last user give one answer
        question["profile"] = [{**item, "tag": "comedy"} for item in question["profile"]]
    (folder / "dev_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    for seed in range(3):
        made = read_source(dataclasses.replace(lines, data=folder, seed=seed)).streams[0]
        answers = [{row.output for row in block.records} for block in made.blocks]
        assert {"comedy"} in answers
        assert len(answers) == 2
        assert answers != [{"comedy"}, {"comedy"}]


@pytest.mark.parametrize("most", [None, 2])
def test_what_is_cut_of_inputs_is_counted_and_said(most: int | None, tiny: Path, capsys: Any) -> None:
    from nvcim_jax.cli.source import read_source

    options = run.Options(model=str(tiny), max_input=most, buffer_size=4)
    source = read_source(options)
    run._announce(options, source, *run._load(options), run._device(options))
    every = len(before.inputs(source))
    cut = f"{every} of {every} inputs are cut to their first 2 tokens, for every method."
    assert (cut in capsys.readouterr().out) is (most is not None)
