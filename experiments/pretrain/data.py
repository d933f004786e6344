"""Text, tokenizer and pseudo-classes for pretraining the bundled language model.

Only text whose licence allows it is read: sentence_polarity and subjectivity (CC BY 4.0), the Wikipedia sentences
and the `small_talk` and `work` domains of CLINC150 (CC BY 3.0), and the inputs of SNIPS (CC0 1.0). The domains of
the personalisation streams (banking, home, kitchen_and_dining, travel) are never opened. Five `work` intents are held
out of everything, tokenizer included, so that recipes can be chosen on intents that the model has never seen.
"""

import gzip
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

__all__ = [
    "HELD_OUT_INTENTS",
    "SPECIAL_TOKENS",
    "Corpus",
    "Group",
    "data_folder",
    "encode",
    "read_clinc",
    "read_corpus",
    "tiny_corpus",
    "train_tokenizer",
]

HELD_OUT_INTENTS = ("insurance", "insurance change", "pto balance", "pto request", "pto used")
"""Intents of the `work` domain kept for choosing recipes."""

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
PRETRAIN_DOMAINS = ("small_talk", "work")
SNIPS_NAMES = {
    "AddToPlaylist": "add to playlist",
    "BookRestaurant": "book restaurant",
    "GetWeather": "get weather",
    "PlayMusic": "play music",
    "SearchScreeningEvent": "screening event",
}
# The two review corpora list one class after the other: (first class, second class, rows of the first).
TWO_CLASS = {"sentence_polarity": ("bad", "good", 5331), "subjectivity": ("plot", "review", 5000)}


class Group(NamedTuple):
    """Sentences that share a meaning: one class an episode can draw.

    Attributes:
        name: A label in words that fits the meaning.
        members: Indices into the sentences of the corpus.
    """

    name: str
    members: np.ndarray


class Corpus(NamedTuple):
    """Sentences and the labelled families drawn over them.

    Attributes:
        train: Sentences for training, lower case.
        valid: Sentences never trained on, for perplexity.
        families: Families of groups; the groups of one episode come from one family.
        requests: Indices of the training sentences that ask or tell an assistant something.
    """

    train: list[str]
    valid: list[str]
    families: list[list[Group]]
    requests: np.ndarray


def data_folder() -> Path | None:
    """Return the folder named by NVCIM_DATA, else `../shared/data` beside the repository, else None."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for folder in (os.environ.get("NVCIM_DATA"), beside):
        if folder and (Path(folder) / "pretrain_text").is_dir():
            return Path(folder)
    return None


def read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a gzipped text file, lower case."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.strip().lower() for line in file if line.strip()]


def read_clinc(folder: Path, domains: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the CLINC150 records of some domains, in file order."""
    with gzip.open(folder / "clinc150" / "clinc150.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [record for record in records if record["user_or_domain"] in domains]


def read_labelled(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Return family -> group name -> sentences, for the corpora that come with labels."""
    families: dict[str, dict[str, list[str]]] = {domain: {} for domain in PRETRAIN_DOMAINS}
    for record in read_clinc(folder, PRETRAIN_DOMAINS):
        if record["output"] not in HELD_OUT_INTENTS:
            groups = families[record["user_or_domain"]]
            groups.setdefault(record["output"], []).append(record["input"].lower())
    snips: dict[str, list[str]] = {}
    with gzip.open(folder / "snips_slots" / "snips_slots.jsonl.gz", "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            if record["split"] == "train":
                name = SNIPS_NAMES[record["user_or_domain"]]
                snips.setdefault(name, []).append(record["input"].lower())
    families["snips"] = snips
    for corpus, (first, second, size) in TWO_CLASS.items():
        lines = read_lines(folder / "pretrain_text" / f"{corpus}.txt.gz")
        families[corpus] = {first: lines[:size], second: lines[size:]}
    families["wikipedia"] = {"article": read_lines(folder / "pretrain_text" / "clinc_wiki_sents.txt.gz")}
    return families


def assemble(labelled: dict[str, dict[str, list[str]]], *, every: int = 50) -> Corpus:
    """Number the sentences, keep every `every`-th for validation, and make the labelled families.

    The groups of all intent corpora also form one family together, so that an episode can mix them; so do the
    corpora themselves ("which source is this sentence from").
    """
    train: list[str] = []
    valid: list[str] = []
    families: list[list[Group]] = []
    sources: list[Group] = []
    for family, groups in labelled.items():
        start = len(train)
        family_groups = []
        for name, sentences in groups.items():
            first = len(train)
            valid += sentences[every - 1 :: every]
            train += [s for i, s in enumerate(sentences) if i % every != every - 1]
            family_groups.append(Group(name, np.arange(first, len(train))))
        families.append(family_groups)
        sources.append(Group(family.replace("_", " "), np.arange(start, len(train))))
    intents = [group for family in families for group in family if len(family) > 2]
    requests = np.concatenate([group.members for group in intents])
    return Corpus(train, valid, [f for f in [*families, intents, sources] if len(f) > 1], requests)


def read_corpus(folder: Path) -> Corpus:
    """Return the full corpus from the data folder."""
    return assemble(read_labelled(folder))


def tiny_corpus() -> Corpus:
    """Return a corpus of a few hundred hand-written template sentences, for a run without any data."""
    things = ["lamp", "song", "garden", "river", "letter", "engine", "coffee", "window", "doctor", "train"]
    verbs = {
        "ask": "where is the {} that i saw",
        "buy": "i would like to buy a {} today",
        "mend": "my {} is broken please repair it",
        "like": "what a lovely {} thank you",
    }
    ends = ["", " please", " now", " for me", " my friend"]
    labelled = {
        name: {name: [form.format(thing) + end for thing in things for end in ends]} for name, form in verbs.items()
    }
    merged = {"requests": {name: groups[name] for name, groups in labelled.items()}}
    return assemble(merged, every=10)


def train_tokenizer(sentences: list[str], vocab_size: int) -> Tokenizer:
    """Train a lower-case BPE tokenizer whose words carry their leading space, with byte fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # A piece is a word, one digit or one sign, each with the space before it: no merge crosses words.
    pieces = Regex(r"▁?\d|▁?[^\W\d]+|▁?[^\w▁]|▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split(pieces, behavior="isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *byte_tokens], show_progress=False, min_frequency=2
    )
    # The answer sign is shown often enough to become one token.
    tokenizer.train_from_iterator([*sentences, *["a = b"] * 200], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    # Bytes had to be announced as special to enter the vocabulary; left so, decoding would drop them.
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = [t for t in written["added_tokens"] if t["content"] in SPECIAL_TOKENS]
    return Tokenizer.from_str(json.dumps(written))


def encode(tokenizer: Tokenizer, sentences: list[str]) -> list[np.ndarray]:
    """Return the token ids of each sentence, without the start token."""
    encoded = tokenizer.encode_batch(sentences, add_special_tokens=False)
    return [np.asarray(item.ids, np.int32) for item in encoded]
