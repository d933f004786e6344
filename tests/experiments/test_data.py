"""Public releases become what the experiments read: small files in their shape, and files that are wrong."""

import gzip
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from experiments import data as public
from experiments import releases, wikitext
from nvcim_jax import data, models

CLINC = {
    "oos_train": [["how much has the dow changed today", "oos"]],
    "val": [["hey what's up", "greeting"], ["hey how's it going", "greeting"], ["sync phone", "sync_device"]],
    "train": [
        ["what expression would i use to say i love you if i were an italian", "translate"],
        ["sync with my phone", "sync_device"],
        ["hey what's up", "greeting"],
        ["what is on my to do list", "todo_list"],
    ],
    "test": [["what is on my to do list", "reminder"]],
}


def part(text: str, entity: str = "") -> dict[str, str]:
    return {"text": text, "entity": entity} if entity else {"text": text}


WEATHER = [
    [part("What will the weather be "), part("faraway", "spatial_relation"), part(" from "),
     part("here", "current_location"), part("?")],
    [part("what is the forecast for "), part("Morocco", "country"), part("  at "), part("Lake Ozark", "city"),
     part(" on "), part("December seventeenth, 2022", "timeRange"), part(" ")],
    [part("Is it cold")],
    [part("Will it be hot in "), part("Ōtone Park", "geographic_poi")],
]  # fmt: skip
MOVIES = (
    'movieId,title,genres\n1,"Incredibles, The (2004)",Action|Adventure|Children\n2,Heat (1995),(no genres listed)\n'
)


def snips(folder: Path) -> Path:
    for intent in releases.SNIPS_INTENTS:
        below = folder / "nlu-benchmark" / "2017-06-custom-intent-engines" / intent
        below.mkdir(parents=True)
        for name, rows in {f"train_{intent}_full": WEATHER[:2], f"validate_{intent}": WEATHER[1:]}.items():
            text = json.dumps({intent: [{"data": row} for row in rows]}, ensure_ascii=False)
            own = text.replace("Lake", intent).replace("faraway", f"far {intent}").replace("hot", intent)
            (below / f"{name}.json").write_bytes(own.encode())
    return folder


def rows(folder: Path) -> list[tuple[str, ...]]:
    (file,) = folder.iterdir()
    return [(row.id, row.user_or_domain, row.input, row.output, row.split) for row in data.read_jsonl(file)]


def test_clinc150(tmp_path: Path) -> None:
    path = tmp_path / "downloaded.json"  # whatever it was saved as
    path.write_text(json.dumps(CLINC))
    folder, number = public.make("clinc150", path, tmp_path / "out")
    said = "what expression would i use to say i love you if i were an italian"
    assert rows(folder) == [
        ("clinc-train-0", "travel", said, "translate", "train"),
        ("clinc-train-2", "small_talk", "hey what's up", "greeting", "train"),
        ("clinc-train-3", "home", "what is on my to do list", "todo list", "train"),
        ("clinc-val-1", "small_talk", "hey how's it going", "greeting", "val"),  # the first stands in train, too
        ("clinc-test-0", "home", "what is on my to do list", "reminder", "test"),  # with another answer
    ]
    assert number == 5
    intents = [intent for names in releases.CLINC_DOMAINS.values() for intent in names.split()]
    assert len(intents) == len(set(intents)) == 90


def test_snips(tmp_path: Path) -> None:
    folder, number = public.make("snips", snips(tmp_path), tmp_path / "out")
    found = [row for row in rows(folder) if row[1] == "GetWeather"]
    assert found == [
        (
            "snips-GetWeather-train-0",
            "GetWeather",
            "What will the weather be far GetWeather from here?",
            "spatial relation = far GetWeather | current location = here",
            "train",
        ),
        (
            "snips-GetWeather-train-1",
            "GetWeather",
            "what is the forecast for Morocco at GetWeather Ozark on December seventeenth, 2022",
            "country = Morocco | city = GetWeather Ozark | timeRange = December seventeenth, 2022",
            "train",
        ),
        (  # the first of the file stands in train, too, and the second has no slots
            "snips-GetWeather-test-2",
            "GetWeather",
            "Will it be GetWeather in Ōtone Park",
            "geographic poi = Ōtone Park",
            "test",
        ),
    ]
    assert number == 15


def test_movielens(tmp_path: Path) -> None:
    stars = ("5.0", "4.5", "3.5", "2.0", "0.5")
    with zipfile.ZipFile(tmp_path / "ml-latest-small.zip", "w") as archive:
        archive.writestr("ml-latest-small/movies.csv", MOVIES)
        archive.writestr("ml-latest-small/ratings.csv", "userId,movieId,rating,timestamp\n" + "7,1,5.0,9\n")
    with pytest.raises(ValueError, match="hold rows that an experiment reads"):
        public.make("movielens", tmp_path / "ml-latest-small.zip", tmp_path / "out")
    films = MOVIES + "".join(f"{i},Film {i} (1990),Drama\n" for i in range(3, 103))
    lines = [f"7,{1 + i},{stars[i % 5]},{1000 - i}" for i in range(101)] + ["8,1,4.0,5"]
    with zipfile.ZipFile(tmp_path / "ml-latest-small.zip", "w") as archive:
        archive.writestr("ml-latest-small/movies.csv", films)
        archive.writestr("ml-latest-small/ratings.csv", "userId,movieId,rating,timestamp\n" + "\n".join(lines))
    folder, number = public.make("movielens", tmp_path / "ml-latest-small.zip", tmp_path / "out")
    (file,) = folder.iterdir()
    found = list(data.read_jsonl(file))
    assert number == len(found) == 101
    assert found[-1].input == "The Incredibles (2004). action, adventure, children."  # the newest
    assert (found[-1].id, found[-1].output, found[-1].split) == ("ml-7-1", "5", "test")
    assert found[-2].input == "Heat (1995). (no genres listed)."
    assert {(row.extra["raw"], row.output) for row in found} == set(zip(stars, "55421", strict=True))
    assert sum(row.split == "test" for row in found) == 21
    assert [row.extra["ts"] for row in found] == sorted(row.extra["ts"] for row in found)


def test_paraphrase(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    for play in releases.PLAYS:
        modern = [f"these are words of {play}", "too short", "and four more words", *["none"] * 2, "a line to test"]
        (folder / f"{play}_modern.snt.aligned").write_text("\n".join(modern) + "\n")
        original = ["so speaketh he in verse", "a b c d", "and " * 41, *["none"] * 2, " thus is it tested "]
        (folder / f"{play}_original.snt.aligned").write_text("\n".join(original) + "\n")
    made, number = public.make("paraphrase", tmp_path, tmp_path / "out")
    assert number == 22
    assert rows(made)[2:4] == [
        ("shk-asyoulikeit-0", "asyoulikeit", "these are words of asyoulikeit", "so speaketh he in verse", "test"),
        ("shk-asyoulikeit-5", "asyoulikeit", "a line to test", "thus is it tested", "test"),
    ]
    (folder / "shrew_original.snt.aligned").write_text("one line")
    with pytest.raises(ValueError, match="as many modern as original lines, but shrew has 7 and 1"):
        public.make("paraphrase", tmp_path, tmp_path / "out")


def test_wikitext2_of_any_kind(tmp_path: Path, monkeypatch) -> None:
    lines = [" \n", " = Robert <unk> = \n", " \n", " Robert is an English film actor . \n"] * 30
    plain, parquet = tmp_path / "wikitext-2", tmp_path / "hub" / "wikitext-2-v1"
    for folder in (plain, parquet):
        folder.mkdir(parents=True)
    for split, long in {"valid": "validation", "test": "test"}.items():
        (plain / f"wiki.{split}.tokens").write_text("".join(lines))
        table = pyarrow.table({"text": [line if line.strip() else "" for line in lines]})
        pyarrow.parquet.write_table(table, parquet / f"{long}-00000-of-00001.parquet")
    made = [public.make("wikitext2", path, tmp_path / path.name / "out") for path in (plain, tmp_path / "hub")]
    assert [number for _, number in made] == [120, 120]
    for folder, _ in made:
        assert gzip.decompress((folder / "test.txt.gz").read_bytes()).decode() == "".join(lines)
    monkeypatch.setenv("NVCIM_DATA", str(made[0][0].parent))
    assert wikitext.windows(models.load(models.BUNDLED)[1], "valid", tokens=16, num=2).shape == (2, 16)
    (plain / "wiki.test.tokens").write_text("no word is replaced")
    with pytest.raises(ValueError, match="tokenised release"):
        public.make("wikitext2", plain, tmp_path / "out")


def test_what_stays_as_it_is(tmp_path: Path) -> None:
    reads = b"10354\t0.0\t2082325.8\t4.8e-07\t4.8e-07\t0\t0.0\n"
    (tmp_path / "relaxdata.min.tsv.gz").write_bytes(gzip.compress(reads))
    folder, number = public.make("rram_relaxation", tmp_path / "relaxdata.min.tsv.gz", tmp_path / "out")
    assert gzip.decompress((folder / "techC_relaxation.tsv.gz").read_bytes()) == reads
    assert number == 1
    for name, text in {"rt-polarity.neg": b"simplistic , silly .\n", "rt-polarity.pos": b"clich\xc3\xa9s\n"}.items():
        (tmp_path / name).write_bytes(text)
    with tarfile.open(tmp_path / "rt.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "rt-polarity.pos", "a/rt-polarity.pos")
        tar.add(tmp_path / "rt-polarity.neg", "a/rt-polarity.neg")
    folder, number = public.make("sentence_polarity", tmp_path / "rt.tar.gz", tmp_path / "out")
    found = gzip.decompress((folder / "sentence_polarity.txt.gz").read_bytes()).decode()
    assert found == "simplistic , silly .\nclichÃ©s\n"
    assert number == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clinc150", "<!DOCTYPE html>", "hold JSON"),
        ("clinc150", '{"train": []}', "train, val and test"),
        ("clinc150", '{"train": [["a"]], "val": [], "test": []}', "row 0 of train"),
        ("rram_relaxation", "a,b,c\n", "seven columns"),
        ("snips", "{}", "hold train_AddToPlaylist_full.json"),
        ("movielens", "userId,movieId\n", "hold ratings.csv"),
    ],
)
def test_a_wrong_file_is_one_line(name: str, content: str, message: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "wrong").write_text(content)
    with pytest.raises(SystemExit) as error:
        public.main([name, str(tmp_path / "wrong"), "--out", str(tmp_path / "out")])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_commands(tmp_path: Path, capsys, monkeypatch) -> None:
    public.main([])
    said = capsys.readouterr().out
    for name, release in releases.RELEASES.items():
        assert f"\n{name}\n" in said
        assert release.licence in said
        assert release.source in said
    with pytest.raises(SystemExit, match="There is no"):
        public.main(["clinc150", str(tmp_path / "none")])
    (tmp_path / "data_full.json").write_text(json.dumps(CLINC))
    monkeypatch.delenv("NVCIM_DATA", raising=False)
    public.main(["clinc150", str(tmp_path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "5 rows" in said
    assert "recorded results: 13,499" in said
    assert f"export NVCIM_DATA={tmp_path / 'out'}" in said
    with pytest.raises(SystemExit):
        public.main(["clinc150"])
    assert "data_full.json" in capsys.readouterr().err


def test_a_missing_folder_names_the_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(data, "data_folder", lambda name: None)
    with pytest.raises(ValueError, match=r"holds clinc150, but none is there.*experiments.data.*Or run --tiny"):
        public.folder("clinc150", "Or run --tiny.")
