"""`nvcim run`: NVCiM-PT on a stream of users, from buffers to answers, on noisy chips."""

import dataclasses
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

import nvcim_jax
from nvcim_jax import checks, cost, data, devices, files, io, models, pipeline, study
from nvcim_jax.cli import before, duration, estimate, official
from nvcim_jax.cli.chip_means import table
from nvcim_jax.cli.entry import command_line, parse
from nvcim_jax.cli.known import known_device
from nvcim_jax.cli.options_file import words_of
from nvcim_jax.cli.report import is_sweep, report
from nvcim_jax.cli.source import Source, read_source
from nvcim_jax.cli.tables import print_table
from nvcim_jax.cli.voice import SPOKEN, Said, flags, print_result
from nvcim_jax.progress import progress_bar

__all__ = ["Options", "main", "read"]

MOST_STREAMS, MOST_ROWS = 1000, 10**6
"""More is a slip of the finger, and would fill the memory before it is noticed."""

DEFAULT_METHODS = ("frozen", "latest", "1-NN text", "random route", "NVP*(MIPS)", "NVCiM-PT", "oracle route")
ADAPTERS = ("prompt", "prefix", "lora", "ia3")
"""What a store may hold."""

NAMES = {"path": "--data", "name": "--device", "folder": "--out"}
"""Options of what the library calls otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Tune prompts on a stream of users, keep them in noisy memory, and answer with the ones that it finds.

    Without options: the bundled language model and built-in users, about a minute. The same command goes on after an
    interruption; a folder with other settings is refused.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with any of these options by name, [config] for those of config; words on the command line count
    more."""
    data: Path | None = None
    """LaMP folder or questions file, or JSON lines (.jsonl, .jsonl.gz) of {id, user_or_domain, task, input, output,
    split}. None: built-in users."""
    task: str | None = None
    """Task of the LaMP files: LaMP_1, LaMP_2 (what fits), LaMP_2M, LaMP_2N, LaMP_3, LaMP_4, LaMP_5, LaMP_7."""
    split: str | None = None
    """Split of the LaMP files: train, dev."""
    model: str = "bundled"
    """Folder or hub id of a Hugging Face checkpoint, or bundled."""
    dtype: str = "float32"
    """Of the weights: float32, bfloat16, float16."""
    device: str = "FeFET3"
    """Memory cell: a name, a file that nvcim device wrote, or FILE@G_MAX_US of a table of measurements."""
    sigma: float | None = None
    """Programming noise: a share of g_max (the five of NVCiM-PT, Gaussian), or a multiple of a measured noise (the
    others). None: the device's own, 0.1 for the five."""
    instances: int = 5
    """Chips."""
    kind: str = "block"
    """Kind of the stream: block, return, gradual, conflict, preference."""
    num_users: int = 3
    """Users, or domains, of a stream."""
    domains: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A domain of the JSON lines to take, in this order; may be repeated. None: the first --num-users, or of a conflict
    those who disagree most."""
    num_labels: int | None = None
    """Answers kept of each domain of the JSON lines, the first that occur. None: all."""
    own_words: bool = True
    """Built-in users: whether the text can tell whose question it is."""
    instruction: bool = False
    """LaMP: keep the wording that all questions of a task share."""
    buffer_size: int = 16
    """Rows of a buffer."""
    num_test: int | None = None
    """Test rows kept of each user. None: all (built-in: 12)."""
    streams: int = 1
    """Streams, of the seeds from --seed on."""
    methods: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A row of the table; may be repeated, or several with commas. None: seven of them; all: all."""
    every_block: bool = False
    """Measure after every buffer: a matrix of what is forgotten."""
    seed: int = 0
    """Seed of streams, tuning and chips."""
    preset: str | None = None
    """Where the options of the memory below start from: bundled, users, pretrained, paper. None: with the bundled model
    users for the built-in users and bundled for --data; pretrained with another model."""
    adapter: str | None = None
    """What is tuned and kept in the memory: prompt, prefix, lora, ia3. What is no prompt has bounds and learning rates
    of its own where the preset's were not changed. None: what --config.tunes says."""
    chosen: Annotated[pipeline.Preset, tyro.conf.arg(name="")] = pipeline.presets["users"]
    max_input: int | None = None
    """Tokens of an input that are kept, from its beginning; all of them by default."""
    max_new_tokens: int = 24
    """Tokens that the model may write, for tasks without labels."""
    predictions: int = 1
    """LaMP: chips whose predictions are written and scored officially."""
    memory_budget_mb: float | None = None
    """MiB that tuning and answering may take; more is refused before anything is computed. None: all that the machine
    has."""
    estimate: bool = False
    """Only print what the run would take: memory, arrays, cells. Without --model also for Gemma-2B, Phi-2 and
    Mistral-7B-GPTQ, without their weights."""
    out: Path = Path("runs/run")
    """Folder of the results."""
    plots: bool = True
    """Whether to draw the figures."""
    dry_run: bool = False
    """Say what would be done, about how long it would take here, and what would be written; write nothing."""
    said: Annotated[Said, tyro.conf.arg(name="")] = SPOKEN


def read(words: Sequence[str]) -> Options | int:
    """Return the options that words, a file and a preset give together, or an exit code."""
    found = parse(Options, "nvcim run", words)
    if isinstance(found, int):
        return found
    if found.file is not None:
        words = [*words_of(found.file, flags(Options)), *words]
        found = parse(Options, "nvcim run", words)
        if isinstance(found, int):
            return found
    with_bundled = "users" if found.data is None else "bundled"
    name = found.preset or (with_bundled if found.model == "bundled" else "pretrained")
    checks.choice("--preset", name, pipeline.presets)
    chosen = _adapted(pipeline.presets[name], found, words)
    if chosen == Options().chosen:
        return found
    return parse(Options, "nvcim run", words, default=Options(chosen=chosen))


def _adapted(preset: pipeline.Preset, found: Options, words: Sequence[str]) -> pipeline.Preset:
    """Return the preset with the numbers of what is stored, by --adapter or --config.tunes, and of --made-for."""
    given = {word.partition("=")[0].replace("_", "-") for word in words}
    config = found.chosen.config
    tunes = config.tunes if found.adapter is None else found.adapter
    checks.choice("--adapter", tunes, ADAPTERS)
    if "--config.tunes" in given and config.tunes != tunes:
        wanted = f"be that of --config.tunes, {config.tunes!r}"
        checks.fail("--adapter", wanted, f"is {tunes!r}", "Give one of the two.")
    fields: dict[str, Any] = {"made_for": found.chosen.made_for} if "--made-for" in given else {}
    if tunes != "prompt":
        keys = {"keys": config.keys} if "--config.keys" in given else {}
        fields["config"] = {"tunes": tunes, "start": "text", **keys}
    return preset.changed(**fields)


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    _check(options)
    files.folder("--out", options.out, make=False)
    if is_sweep(options.out):
        checks.fail("--out", "be a folder of its own", f"{options.out} holds a sweep", "Use another folder.")
    compared, device = _compared(options), _device(options)
    if options.estimate:
        return _estimate(options)
    source = read_source(options)
    before.check_capacity(options, source)
    lm, text = _load(options)
    before.check_memory(options, source, lm, text)
    before.check_answers(options, source, lm, text)
    _announce(options, source, lm, text, device)
    design = study.Design(*compared, num_instances=options.instances, every_block=options.every_block)
    if options.dry_run:
        return _planned(options, source, lm, text, device, design)
    files.folder("--out", options.out)
    started = time.perf_counter()
    written = _measure(options, source, lm, text, device, design)
    written += _official(options, source, lm, text, device)
    written.append(_about(options, source, lm, time.perf_counter() - started))
    if source.streams[0].labels:
        written += report(options.out, plots=options.plots)
    print("Written:")
    for path in written:
        print(f"  {path}")
    print_result(options, _result(options, source))
    return 0


def _result(options: Options, source: Source) -> Any:
    """Return the rows of the table, or the official scores where there is nothing to choose from."""
    if source.streams[0].labels:
        return table(study.read(options.out))
    return files.read_json("--out", options.out / "official.json")


def _planned(
    options: Options, source: Source, lm: models.LM, text: models.Text, device: devices.Device, design: study.Design
) -> int:
    """Say how long it would take and what would be written."""
    result: dict[str, Any] = {"out": str(options.out)}
    if source.streams[0].labels:
        asked = (jax.random.key(options.seed), source.streams, lm, text, [device])
        how: Any = {"preset": options.chosen, "design": design, "session": study.Session(dry_run=True)}
        study.run(options.out, *asked, **how)  # refuses what the run itself would
        work = duration.count(source.streams, lm.config, text, options.chosen, design)
        rate = duration.rate(lm.config)
        units = study.plan(source.streams, [device], design)
        print(f"{len(units)} rows of the table. {duration.said(work, rate)}")
        result |= {"rows": len(units), "seconds": sum(work) / rate}
    written = ["records.jsonl", "study.json", io.RECORDS, "summary.csv"] if source.streams[0].labels else []
    written += ["golds_*.json", "predictions_*.json", "official.json"] if source.task else []
    written += ["config.json", *(["*.png"] if source.streams[0].labels and options.plots else [])]
    print(duration.nothing_done(options.out, written))
    print_result(options, result)
    return 0


def _compared(options: Options) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the methods with a memory and the baselines that were asked for."""
    words = tuple(word.strip() for given in options.methods for word in given.split(",")) or DEFAULT_METHODS
    known = [*study.METHODS, *study.BASELINES]
    if words == ("all",):
        words = tuple(known)
    for word in words:
        checks.choice("--methods", word, known)
    return (
        {name: method for name, method in study.METHODS.items() if name in words},
        tuple(name for name in study.BASELINES if name in words),
    )


def _check(options: Options) -> None:
    """Check the options that are this command's own; those of a preset have checked themselves."""
    checks.integer("--instances", options.instances, high=study.MOST_CHIPS)
    checks.integer("--streams", options.streams, high=MOST_STREAMS)
    for name in ("num_users", "buffer_size", "max_new_tokens", "predictions"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(options, name), high=MOST_ROWS)
    for name in ("max_input", "num_test", "num_labels"):
        if getattr(options, name) is not None:
            checks.integer(f"--{name.replace('_', '-')}", getattr(options, name), high=MOST_ROWS)
    if options.memory_budget_mb is not None:
        checks.number("--memory-budget-mb", options.memory_budget_mb, low=0.0, low_open=True)
    checks.integer("--seed", options.seed, low=0, high=2**31)
    checks.choice("--kind", options.kind, data.KINDS)
    checks.choice("--dtype", options.dtype, ("float32", "bfloat16", "float16"))


def _device(options: Options) -> Any:
    given = {} if options.sigma is None else {"sigma": options.sigma}
    return known_device(options.device, "--device", **given)


def _folder(options: Options) -> str | Path:
    return models.BUNDLED if options.model == "bundled" else options.model


def _load(options: Options) -> Any:
    lm, text = models.load(_folder(options), dtype=jnp.dtype(options.dtype))
    if text.tokenizer is None:
        checks.fail("--model", "have a tokenizer", f"{options.model} has none", "Add its tokenizer.json to the folder.")
    cut = {} if options.max_input is None else {"max_input": options.max_input}
    return lm, text.replace(template=dataclasses.replace(options.chosen.template, **cut))


def _estimate(options: Options) -> int:
    """Print memory and room without computing anything."""
    wanted = {options.model: models.load_config(_folder(options))}
    raw = Path(_folder(options)) / "config.json"
    found = files.read_json("--model", raw) if raw.is_file() else {}
    packed = {options.model} if found.get("quantization_config") else set()
    if options.model == "bundled":
        wanted |= cost.PUBLISHED
        packed |= {name for name in wanted if estimate.PACKED in name}
    work = before.work(options)
    memory, stores = estimate.rows(wanted, options.chosen, work, frozenset(packed))
    print_table(
        memory,
        title=f"{work.prompts} prompts tuned at once, {work.batch} texts each of {work.virtual} + {work.text} tokens, "
        f"{work.dtype}; {work.queries} query answered",
    )
    print_table(stores, title="The memory of the prompts")
    print_result(options, {"memory": memory, "stores": stores})
    return 0


def _announce(options: Options, source: Source, lm: models.LM, text: models.Text, device: devices.Device) -> None:
    """Say what is about to happen."""
    room = pipeline.capacity(lm.config, options.chosen.config, options.chosen.arrays)
    print(f"Model {options.model}: {lm.config.num_params:,} parameters.")
    print(f"Data {source.about}; {options.streams} stream(s), kind {options.kind}, buffers of {options.buffer_size}.")
    if options.max_input is not None:
        inputs = before.inputs(source)
        cut = sum(len(text.encode(words)) > options.max_input for words in inputs)
        print(f"{cut} of {len(inputs)} inputs are cut to their first {options.max_input} tokens, for every method.")
    arrays = room.value_arrays + room.key_arrays
    noise = device.sigma_label.replace("sigma", f"sigma {float(device.sigma):g}")
    print(f"Memory {device.name}, {noise}: {room.prompts} prompts in {arrays} arrays.", flush=True)


def _measure(
    options: Options, source: Source, lm: models.LM, text: models.Text, device: devices.Device, design: study.Design
) -> list[Path]:
    """Run the study into the folder; streams of free text have nothing to choose from and are left out."""
    if not source.streams[0].labels:
        return []
    work = duration.count(source.streams, lm.config, text, options.chosen, design)
    print(duration.said(work, duration.rate(lm.config)), flush=True)
    total = len(study.plan(source.streams, [device], design))
    with progress_bar(total, options.said.progress, "rows of the table", even=False, lines=True) as advance:
        records = study.run(
            options.out,
            jax.random.key(options.seed),
            source.streams,
            lm,
            text,
            [device],
            preset=options.chosen,
            design=design,
            session=study.Session(advance),
        )
    trained = options.out / "trained"  # not there where nothing was trained
    found = [options.out / name for name in ("records.jsonl", "study.json")]
    return [*found, *_tables(options, records), *([trained] if trained.is_dir() else [])]


def _tables(options: Options, records: Sequence[dict[str, Any]]) -> list[Path]:
    """Write every chip's row as a sweep does, and the summary."""
    values = ("instance", "queries", "accuracy", "hit")
    return [
        io.write_records(
            options.out,
            records,
            axes=[name for name in records[0] if name not in values],
            command=_command(options),
            of="study",
            larger_is_better=("accuracy", "hit"),
        ),
        files.write(options.out / "summary.csv", files.csv(table(records))),
    ]


def _command(options: Options) -> str:
    return command_line("run", dataclasses.replace(options, file=None))


def _official(options: Options, source: Source, lm: models.LM, text: models.Text, device: devices.Device) -> list[Path]:
    """Write the predictions of LaMP with their official scores."""
    if not source.task:
        return []
    steps = sum(len(stream.blocks) + options.predictions for stream in source.streams)
    rows, written = [], []
    with progress_bar(steps, options.said.progress, "predictions", even=False, lines=True) as advance:
        for stream in source.streams:
            made = official.predict(
                jax.random.key(options.seed),
                stream,
                lm,
                text,
                device,
                preset=options.chosen,
                num_chips=options.predictions,
                max_new_tokens=options.max_new_tokens,
                advance=advance,
            )
            scores, paths = official.score(options.out, stream, source.task, made)
            rows, written = [*rows, *scores], [*written, *paths]
    path = options.out / "official.json"
    files.write_json(path, rows)
    if not source.streams[0].labels:  # the report prints it with the other table
        print_table(rows, title="Official LaMP scores, chip by chip")
    return [*written, path]


def _about(options: Options, source: Source, lm: models.LM, seconds: float) -> Path:
    """Write what was run."""
    plain = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    content = {
        "command": _command(options),
        "options": plain,
        "data": source.about,
        "parameters": lm.config.num_params,
        "seconds": round(seconds, 1),
        "versions": {
            "nvcim_jax": nvcim_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "platform": {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind},
    }
    return files.write_json(options.out / "config.json", content)
