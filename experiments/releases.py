"""What becomes of each public release: rows or text as the experiments read them."""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet

from nvcim_jax import checks, data, files

__all__ = ["CLINC_DOMAINS", "RELEASES", "SNIPS_INTENTS", "Release"]

CLINC_DOMAINS = {
    "travel": "plug_type travel_notification translate flight_status international_visa timezone exchange_rate "
    "travel_suggestion travel_alert vaccines lost_luggage book_flight book_hotel carry_on car_rental",
    "banking": "freeze_account routing pin_change bill_due pay_bill account_blocked interest_rate min_payment "
    "bill_balance transfer order_checks balance spending_history transactions report_fraud",
    "small_talk": "who_made_you meaning_of_life who_do_you_work_for do_you_have_pets what_are_your_hobbies fun_fact "
    "what_is_your_name where_are_you_from goodbye thank_you greeting tell_joke are_you_a_bot how_old_are_you "
    "what_can_i_ask_you",
    "work": "pto_request_status next_holiday insurance_change insurance meeting_schedule payday taxes income "
    "rollover_401k pto_balance pto_request w2 schedule_meeting direct_deposit pto_used",
    "home": "what_song play_music todo_list_update reminder reminder_update calendar_update order_status "
    "update_playlist shopping_list calendar next_song order todo_list shopping_list_update smart_home",
    "kitchen_and_dining": "food_last confirm_reservation how_busy ingredients_list calories nutrition_info recipe "
    "restaurant_reviews restaurant_reservation meal_suggestion restaurant_suggestion cancel_reservation "
    "ingredient_substitution cook_time accept_reservations",
}
"""The six domains of CLINC150 that are read, by the release's own list of domains."""

SNIPS_INTENTS = ("AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "SearchScreeningEvent")
FEWEST_RATINGS = 100
PLAYS = (
    *("antony-and-cleopatra", "asyoulikeit", "errors", "juliuscaesar", "merchant", "msnd"),
    *("muchado", "richardiii", "romeojuliet", "shrew", "tempest"),
)
WORDS = range(4, 41)
"""Words of a line of a play that is read, on both sides."""


class Release(NamedTuple):
    """A public release, and what is made of it.

    Attributes:
        folder: Folder that experiments read.
        source: Where to get it.
        licence: Its licence.
        needs: Names of the files in it, by the names that `write` knows; several patterns are alternatives.
        write: Function of the files' bytes and the folder that writes and returns the number of rows.
        rows: Rows that the recorded results were made from; None where none were.
        note: What else there is to know.
    """

    folder: str
    source: str
    licence: str
    needs: dict[str, tuple[str, ...]]
    write: Callable[[dict[str, bytes], Path], int]
    rows: int | None
    note: str


def _text(name: str, content: bytes) -> str:
    """Return UTF-8, or Latin-1 where it is none."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if b"\x00" in content[:1000]:
            checks.fail("PATH", "hold text", f"{name} is binary")
        return content.decode("latin-1")


def _json(name: str, content: bytes) -> Any:
    try:
        return json.loads(_text(name, content))
    except ValueError as error:
        checks.fail("PATH", "hold JSON", f"{name} is none: {error}", "Download the raw file, not its web page.")


def _write(path: Path, rows: Iterator[data.Record]) -> int:
    kept = list(rows)
    if not kept:
        checks.fail("PATH", "hold rows that an experiment reads", "holds none")
    return data.write_jsonl(path, kept)


def _once(rows: Iterator[data.Record]) -> Iterator[data.Record]:
    """Yield each pair of input and output the first time that it comes, so that no test row was trained on."""
    seen = set()
    for row in rows:
        if (row.input, row.output) not in seen:
            seen.add((row.input, row.output))
            yield row


def _clinc150(parts: dict[str, bytes], folder: Path) -> int:
    """Write utterance -> intent, names with spaces for underscores; an id counts the rows of the whole split."""
    release = _json("data_full.json", parts["full"])
    if not isinstance(release, dict) or not {"train", "val", "test"} <= release.keys():
        checks.fail("PATH", "hold the lists train, val and test", "data_full.json has other ones")
    domains = {intent: domain for domain, intents in CLINC_DOMAINS.items() for intent in intents.split()}

    def rows() -> Iterator[data.Record]:
        for split in ("train", "val", "test"):
            for i, row in enumerate(release[split]):
                if not (isinstance(row, list) and len(row) == 2 and all(isinstance(part, str) for part in row)):
                    checks.fail("PATH", "hold pairs of text and intent", f"row {i} of {split} is none")
                text, intent = row
                if intent in domains:
                    name = f"clinc-{split}-{i}"
                    yield data.Record(name, domains[intent], "intent", text, intent.replace("_", " "), split)

    return _write(folder / "clinc150.jsonl.gz", _once(rows()))


def _utterance(name: str, row: Any) -> tuple[str, str]:
    """Return the text of an utterance of SNIPS, and its slots."""
    if not isinstance(row, dict) or not isinstance(row.get("data"), list):
        checks.fail("PATH", "hold utterances as lists of `data`", f"{name} holds {checks.shown(row)}")
    parts = row["data"]
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        checks.fail("PATH", "hold utterances as parts with a `text`", f"{name} holds {parts!r}")
    text = " ".join("".join(part["text"] for part in parts).split())
    named = [(part["entity"].replace("_", " "), " ".join(part["text"].split())) for part in parts if "entity" in part]
    return text, " | ".join(f"{slot} = {value}" for slot, value in named)


def _snips(parts: dict[str, bytes], folder: Path) -> int:
    """Write utterance -> `slot = value | ...`; the release's validation files are the test split."""

    def rows() -> Iterator[data.Record]:
        for intent in SNIPS_INTENTS:
            for split in ("train", "test"):
                name = f"{split} {intent}"
                release = _json(name, parts[name])
                if not isinstance(release, dict) or intent not in release:
                    checks.fail("PATH", f"hold the intent {intent}", f"the file of {name} holds other ones")
                for i, row in enumerate(release[intent]):
                    text, slots = _utterance(name, row)
                    if slots:
                        yield data.Record(f"snips-{intent}-{split}-{i}", intent, "slots", text, slots, split)

    return _write(folder / "snips_slots.jsonl.gz", _once(rows()))


def _table(name: str, content: bytes, columns: Sequence[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(_text(name, content)))
    if not set(columns) <= set(reader.fieldnames or ()):
        checks.fail("PATH", f"hold the columns {', '.join(columns)}", f"{name} has {reader.fieldnames}")
    return list(reader)


def _film(row: dict[str, str]) -> str:
    """Return title and genres of a film, its article in front."""
    title = re.sub(r"^(.*), (The|A|An)( \(\d{4}\))?$", r"\2 \1\3", row["title"].strip())
    return f"{title}. {row['genres'].replace('|', ', ').lower()}."


def _movielens(parts: dict[str, bytes], folder: Path) -> int:
    """Write film -> rating 1..5 (half up) of everyone with 100 ratings or more; the last fifth in time is the test."""
    films = {row["movieId"]: row for row in _table("movies.csv", parts["movies"], ("movieId", "title", "genres"))}
    users: dict[str, list[dict[str, str]]] = {}
    for i, row in enumerate(_table("ratings.csv", parts["ratings"], ("userId", "movieId", "rating", "timestamp"))):
        whole = row["movieId"] in films and str(row["timestamp"]).isdigit()
        if not (whole and re.fullmatch(r"[0-5](\.[05])?", row["rating"])):
            checks.fail("PATH", "hold ratings of 0.5 to 5 of films in movies.csv", f"row {i} of ratings.csv is {row}")
        users.setdefault(row["userId"], []).append(row)

    def rows() -> Iterator[data.Record]:
        for user, rated in users.items():
            if len(rated) < FEWEST_RATINGS:
                continue
            rated = sorted(rated, key=lambda row: int(row["timestamp"]))
            for i, row in enumerate(rated):
                film, stars = films[row["movieId"]], float(row["rating"])
                yield data.Record(
                    f"ml-{user}-{row['movieId']}",
                    f"ml-user-{user}",
                    "rating",
                    _film(film),
                    str(int(stars + 0.5)),
                    "train" if i < len(rated) * 4 // 5 else "test",
                    {"raw": row["rating"], "ts": int(row["timestamp"]), "genre": film["genres"].split("|")[0]},
                )

    return _write(folder / "movielens_users.jsonl.gz", rows())


def _paraphrase(parts: dict[str, bytes], folder: Path) -> int:
    """Write modern line -> original line where both have 4 to 40 words; every fifth pair of a play is the test."""

    def rows() -> Iterator[data.Record]:
        for play in PLAYS:
            modern, original = (_text(play, parts[f"{play} {side}"]).split("\n") for side in ("modern", "original"))
            if len(modern) != len(original):
                found = f"{play} has {len(modern)} and {len(original)}"
                checks.fail("PATH", "hold as many modern as original lines", found)
            for i, (line, wanted) in enumerate(zip(map(str.strip, modern), map(str.strip, original), strict=True)):
                if len(line.split()) in WORDS and len(wanted.split()) in WORDS:
                    yield data.Record(f"shk-{play}-{i}", play, "paraphrase", line, wanted, "train" if i % 5 else "test")

    return _write(folder / "shakespeare_paraphrase.jsonl.gz", rows())


def _wikitext_split(content: bytes) -> str:
    """Return a split as one text; rows of a Parquet file lost the blank of an empty line, which is put back."""
    if content[:4] == b"PAR1":
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        return "".join(line or " \n" for line in table["text"].to_pylist())
    return content.decode("utf-8")


def _write_lines(path: Path, text: str) -> int:
    files.write(path, gzip.compress(text.encode("utf-8"), mtime=0))
    return sum(1 for line in text.split("\n") if line.strip())


def _wikitext2(parts: dict[str, bytes], folder: Path) -> int:
    """Write the two splits as they are."""
    splits = {name: _wikitext_split(content) for name, content in parts.items()}
    for name, text in splits.items():
        if "<unk>" not in text:
            checks.fail(
                "PATH", "hold the tokenised release with <unk>", f"its {name} split has none", "Not the raw one."
            )
    return sum(_write_lines(folder / f"{name}.txt.gz", text) for name, text in splits.items())


def _relaxation(parts: dict[str, bytes], folder: Path) -> int:
    """Write the reads as they are: cell, seconds, ohm, siemens, siemens as programmed, range, nominal seconds."""
    content = parts["reads"]
    packed = content if content[:2] == b"\x1f\x8b" else gzip.compress(content, mtime=0)
    try:
        lines = gzip.decompress(packed).decode("utf-8").split("\n")
    except (EOFError, zlib.error) as error:
        checks.fail("PATH", "be whole", f"it is cut short or damaged ({error})", "Download it again.")
    if lines[0].count("\t") != 6:
        checks.fail("PATH", "hold reads of seven columns", f"its first line has {lines[0].count(chr(9)) + 1}")
    files.write(folder / "techC_relaxation.tsv.gz", packed)
    return sum(1 for line in lines if line)


def _sentences(parts: dict[str, bytes], folder: Path, *, name: str, encoding: str = "latin-1") -> int:
    """Write sentences line by line, one class after the other, read as the bundled model's were."""
    texts = [content.decode(encoding).rstrip("\n") + "\n" for content in parts.values()]
    return _write_lines(folder / f"{name}.txt.gz", "".join(texts))


_NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora"
_OOS = "https://raw.githubusercontent.com/clinc/oos-eval/master/data"

RELEASES = {
    "clinc150": Release(
        "clinc150",
        f"{_OOS}/data_full.json",
        "CC BY 3.0",
        {"full": ("data_full.json",)},
        _clinc150,
        13_499,
        "six domains of fifteen intents; Larson et al. 2019",
    ),
    "snips": Release(
        "snips_slots",
        "https://github.com/sonos/nlu-benchmark, folder 2017-06-custom-intent-engines",
        "CC0 1.0",
        {f"train {name}": (f"train_{name}_full.json",) for name in SNIPS_INTENTS}
        | {f"test {name}": (f"validate_{name}.json",) for name in SNIPS_INTENTS},
        _snips,
        10_235,
        "five of the seven intents; Coucke et al. 2018",
    ),
    "movielens": Release(
        "movielens_users",
        "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        "research use, see its README",
        {"ratings": ("ratings.csv",), "movies": ("movies.csv",)},
        _movielens,
        None,
        "films of the recorded results have a sentence on their plot, too; Harper and Konstan 2015",
    ),
    "paraphrase": Release(
        "shakespeare_paraphrase",
        "https://github.com/cocoxu/Shakespeare, folder data/align/plays/merged",
        "none given, to be cited; research use",
        {
            f"{play} {side}": (f"merged/{play}_{side}.snt.aligned", f"{play}_{side}.snt.aligned")
            for play in PLAYS
            for side in ("modern", "original")
        },
        _paraphrase,
        10_296,
        "eleven plays in modern words; Xu et al. 2012",
    ),
    "wikitext2": Release(
        "wikitext2",
        "https://github.com/pytorch/examples/tree/main/word_language_model/data/wikitext-2, or wikitext-2-v1 of "
        "https://huggingface.co/datasets/Salesforce/wikitext",
        "CC BY-SA 3.0",
        {
            split: (f"wiki.{split}.tokens", f"{split}.txt", f"wikitext-2-v1/{long}-*.parquet", f"{long}-*.parquet")
            for split, long in {"valid": "validation", "test": "test"}.items()
        },
        _wikitext2,
        5_352,
        "the tokenised release, not the raw one; Merity et al. 2016",
    ),
    "rram_relaxation": Release(
        "rram_relaxation",
        "https://github.com/akashlevy/RRAM-Relaxation-Master-Model, data/techC/relaxdata.min.tsv.gz at commit ca0cfff",
        "MIT",
        {"reads": ("techC/relaxdata.min.tsv.gz", "relaxdata.min.tsv.gz")},
        _relaxation,
        89_115,
        "reads of 16,292 cells",
    ),
    "sentence_polarity": Release(
        "pretrain_text",
        f"{_NLTK}/sentence_polarity.zip",
        "CC BY 4.0, by NLTK's index",
        {"bad": ("rt-polarity.neg",), "good": ("rt-polarity.pos",)},
        partial(_sentences, name="sentence_polarity"),
        10_662,
        "for `experiments.pretrain` alone; Pang and Lee 2005",
    ),
    "subjectivity": Release(
        "pretrain_text",
        f"{_NLTK}/subjectivity.zip",
        "CC BY 4.0, by NLTK's index",
        {"plot": ("plot.tok.gt9.5000",), "review": ("quote.tok.gt9.5000",)},
        partial(_sentences, name="subjectivity"),
        10_000,
        "for `experiments.pretrain` alone; Pang and Lee 2004",
    ),
    "clinc_wiki_sents": Release(
        "pretrain_text",
        f"{_OOS}/all_wiki_sents.txt",
        "CC BY 3.0",
        {"all": ("all_wiki_sents.txt",)},
        partial(_sentences, name="clinc_wiki_sents", encoding="utf-8"),
        14_750,
        "for `experiments.pretrain` alone; Larson et al. 2019",
    ),
}
"""Every release that an experiment reads, by name."""
