"""`nvcim run`: NVCiM-PT on a stream of users, from buffers to answers, on noisy chips."""

import dataclasses
import platform
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any

import tyro

from nvcim_jax import checks, files

__all__ = ["Options", "main"]

DEFAULT_METHODS = ("frozen", "latest", "1-NN text", "random route", "NVP*(MIPS)", "NVCiM-PT", "oracle route")
TYPICAL_INPUT = 32
"""Tokens of an input that an estimate without data assumes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Tune prompts on a stream of users, keep them in noisy memory, and answer with the ones that it finds.

    Without options: the bundled language model and built-in users, about a minute. The same command goes on after an
    interruption; a folder with other settings is refused.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    """TOML file with any of these options by name; words on the command line come first."""
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
    """Memory cell."""
    sigma: float = 0.1
    """Programming noise, relative to the largest conductance."""
    instances: int = 5
    """Chips."""
    kind: str = "block"
    """Kind of the stream: block, return, gradual, conflict, preference."""
    num_users: int = 3
    """Users, or domains, of a stream."""
    domains: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A domain of the JSON lines to take, in this order; may be repeated. None: the first --num-users."""
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
    steps: int = 40
    """Updates of a prompt."""
    batch: int | None = 4
    """Examples a step. None: all of the buffer."""
    learning_rate: float = 2e-2
    """Of Adam."""
    num_virtual: int = 8
    """Virtual tokens of a prompt."""
    noise: str = "value"
    """Noise in noise-aware training: value, cell, censored, none."""
    init: str | None = None
    """Where a prompt starts: text, vocabulary, activations, examples. None: examples, which the bundled model was
    taught to read; text with any other model."""
    cluster_by: str = "input"
    """What the records of a buffer are clustered by: input, or record (input and answer)."""
    train_on: str = "cluster"
    """Examples of a prompt: those of its cluster, or the whole buffer."""
    features: str = "last"
    """How texts are compared: embedding, hidden, last."""
    key: str = "centroid"
    """What is searched: prompt, anchored, contrastive, representative, centroid."""
    key_centre: bool = True
    """Take keys and queries relative to the mean of what is stored."""
    codec: str = "identity"
    """Between prompt and memory: autoencoder, identity."""
    search_axis: str = "features"
    """What the scaled search pools: features, tokens."""
    search_storage: str = "shared"
    """Pooled copies: shared, apart."""
    capacity: int = 32
    """Prompts that the memory holds."""
    when_full: str = "refuse"
    """A full memory: refuse, oldest, least_used."""
    max_input: int | None = None
    """Tokens of an input that are kept, from its beginning; all of them by default."""
    max_new_tokens: int = 24
    """Tokens that the model may write, for tasks without labels."""
    predictions: int = 1
    """LaMP: chips whose predictions are written and scored officially."""
    remat: bool = False
    """Compute blocks again in the backward pass: less memory, more time."""
    memory_budget_mb: float | None = None
    """MiB that tuning and answering may take; more is refused before anything is computed."""
    estimate: bool = False
    """Only print what the run would take: memory, arrays, cells. Without --model also for Gemma-2B, Phi-2 and
    Mistral-7B-GPTQ, without their weights."""
    out: Path = Path("runs/run")
    """Folder of the results."""
    plots: bool = True
    """Whether to draw the figures."""


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    options = _with_file(options)
    methods, baselines = _rows(options)
    preset = _preset(options)
    device = _device(options)
    if options.estimate:
        return _estimate(options, preset)
    from nvcim_jax.cli.source import read_source

    source = read_source(options)
    _check_room(options, source, preset.config)
    lm, text = _load(options)
    _check_memory(options, source, lm, text)
    files.folder("--out", options.out)
    started = time.perf_counter()
    _announce(options, source, (lm, text), preset)
    written = _measure(options, source, lm, text, device, preset, (methods, baselines))
    written += _official(options, source, lm, text, device, preset)
    written.append(_about(options, source, lm, time.perf_counter() - started))
    from nvcim_jax.cli.report import report

    if source.streams[0].labels:
        written += report(options.out, plots=options.plots)
    print("Written:")
    for path in written:
        print(f"  {path}")
    return 0


def _with_file(options: Options) -> Options:
    """Return the options with those of the file where the command line says nothing."""
    if options.file is None:
        return options
    path = checks.file("file", options.file)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        checks.fail("file", "be a TOML file", f"{path} is not: {error}")
    fields = {field.name: field for field in dataclasses.fields(options) if field.name != "file"}
    given = {}
    for name, value in found.items():
        plain = name.replace("-", "_")
        if plain not in fields:
            checks.fail(name, "be an option of `nvcim run`", f"stands in {path}", checks.suggestion(plain, fields))
        if getattr(options, plain) == fields[plain].default:
            given[plain] = _as_option(plain, value, fields[plain].default)
    return dataclasses.replace(options, **given)


def _as_option(name: str, value: Any, default: Any) -> Any:
    """Return a value of a TOML file as the option holds it."""
    if isinstance(default, tuple):
        return tuple(value) if isinstance(value, list) else (str(value),)
    if name in ("data", "out"):
        return Path(str(value))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        checks.fail(name, f"be {type(default).__name__}", f"is {value!r}")
    return value


def _rows(options: Options) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the methods with a memory and the baselines that were asked for."""
    from nvcim_jax import study

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


def _preset(options: Options) -> Any:
    """Return everything that is chosen about memory and tuning, which checks its values."""
    from nvcim_jax import data, pipeline, selection, study, tuning

    checks.integer("--instances", options.instances, high=study.MOST_CHIPS)
    for name in ("num_users", "buffer_size", "streams", "max_new_tokens", "predictions"):
        checks.integer(f"--{name.replace('_', '-')}", getattr(options, name))
    checks.integer("--seed", options.seed, low=0, high=2**31)
    checks.choice("--kind", options.kind, data.KINDS)
    checks.choice("--dtype", options.dtype, ("float32", "bfloat16", "float16"))
    checks.number("--learning-rate", options.learning_rate, low=0.0, low_open=True)
    config = pipeline.Config(
        num_virtual=options.num_virtual,
        start=options.init or ("examples" if options.model == "bundled" else "text"),
        cluster_by=options.cluster_by,
        train_on=options.train_on,
        tuning=tuning.Options(num_steps=options.steps, batch=options.batch, remat=options.remat),
        features=options.features,
        keys=options.key,
        key_centre=options.key_centre,
        search=selection.SearchConfig(axis=options.search_axis, storage=options.search_storage),
        codec=options.codec,
        capacity=options.capacity,
        when_full=options.when_full,
    )
    return pipeline.Preset(config=config, noise=options.noise, learning_rate=options.learning_rate)


def _device(options: Options) -> Any:
    from nvcim_jax import devices

    checks.choice("--device", options.device, devices.names())
    return devices.get(options.device, sigma=options.sigma)


def _folder(options: Options) -> str | Path:
    from nvcim_jax import models

    return models.BUNDLED if options.model == "bundled" else options.model


def _load(options: Options) -> Any:
    import jax.numpy as jnp

    from nvcim_jax import models

    lm, text = models.load(_folder(options), dtype=jnp.dtype(options.dtype))
    if text.tokenizer is None:
        checks.fail("--model", "have a tokenizer", f"{options.model} has none", "Add its tokenizer.json to the folder.")
    return lm, text.replace(template=models.Template(max_input=options.max_input))


def _check_room(options: Options, source: Any, config: Any) -> None:
    """Say before anything is tuned that the prompts will not fit."""
    from nvcim_jax import selection

    each = selection.num_representatives(options.buffer_size) if config.num_prompts is None else config.num_prompts
    needed = max(each * len(stream.blocks) for stream in source.streams)
    if config.when_full == "refuse" and needed > config.capacity:
        fix = "Raise it, or let --when-full oldest or least_used replace prompts."
        checks.fail("--capacity", f"be at least {needed}, the prompts of all buffers", f"is {config.capacity}", fix)


def _work(options: Options, longest: int = TYPICAL_INPUT) -> Any:
    """Return what is computed at once, for inputs of at most so many tokens."""
    from nvcim_jax import selection
    from nvcim_jax.cli import estimate

    return estimate.Work(
        prompts=selection.num_representatives(options.buffer_size),
        batch=options.buffer_size if options.batch is None else options.batch,
        virtual=options.num_virtual,
        text=16 * -(-((options.max_input or longest) + 8) // 16),
        new_tokens=options.max_new_tokens,
        remat=options.remat,
        dtype=options.dtype,
        on_cpu=estimate.default_backend_is_cpu(),
    )


def _inputs(source: Any) -> list[str]:
    """Return all inputs of all streams."""
    return [
        record.input
        for stream in source.streams
        for records in (*(block.records for block in stream.blocks), *stream.test.values())
        for record in records
    ]


def _check_memory(options: Options, source: Any, lm: Any, text: Any) -> None:
    """Refuse a run that cannot stay inside the budget."""
    from nvcim_jax import models
    from nvcim_jax.cli import estimate

    if options.memory_budget_mb is None:
        return
    longest = max(len(text.encode_input(words)) for words in _inputs(source))
    packed = any(isinstance(leaf, models.Packed) for leaf in lm.params["layers"].values())
    found = estimate.estimate(lm.config, _work(options, longest), packed=packed)
    needed = max(found.tuning_peak, found.answering_peak) / 2**20
    if needed > options.memory_budget_mb:
        fix = "Use --remat, a smaller --batch, or a smaller model." if not options.remat else "Use a smaller model."
        checks.fail(
            "--memory-budget-mb",
            f"be at least about {needed:.0f}, what {options.model} needs",
            f"is {options.memory_budget_mb:g}",
            fix,
        )


def _estimate(options: Options, preset: Any) -> int:
    """Print memory and room without computing anything."""
    from nvcim_jax import models
    from nvcim_jax.cli import estimate
    from nvcim_jax.cli.tables import print_table

    wanted = {options.model: models.load_config(_folder(options))}
    raw = Path(_folder(options)) / "config.json"
    packed = {options.model} if raw.is_file() and files.read_json("--model", raw).get("quantization_config") else set()
    if options.model == "bundled":
        wanted |= estimate.PUBLISHED
        packed |= {name for name in wanted if estimate.PACKED in name}
    work = _work(options)
    memory, stores = estimate.rows(wanted, preset, work, frozenset(packed))
    print_table(
        memory,
        title=f"{work.prompts} prompts tuned at once, {work.batch} texts each of {work.virtual} + {work.text} tokens, "
        f"{work.dtype}; {work.queries} query answered",
    )
    print_table(stores, title="The memory of the prompts")
    return 0


def _announce(options: Options, source: Any, model: Any, preset: Any) -> None:
    """Say what is about to happen."""
    from nvcim_jax import pipeline

    lm, text = model
    room = pipeline.capacity(lm.config, preset.config, preset.arrays)
    print(f"Model {options.model}: {lm.config.num_params:,} parameters.")
    print(f"Data {source.about}; {options.streams} stream(s), kind {options.kind}, buffers of {options.buffer_size}.")
    if options.max_input is not None:
        inputs = _inputs(source)
        cut = sum(len(text.encode(words)) > options.max_input for words in inputs)
        print(f"{cut} of {len(inputs)} inputs are cut to their first {options.max_input} tokens, for every method.")
    arrays = room.value_arrays + room.key_arrays
    print(f"Memory {options.device}, sigma {options.sigma:g}: {room.prompts} prompts in {arrays} arrays.", flush=True)


def _measure(
    options: Options,
    source: Any,
    lm: Any,
    text: Any,
    device: Any,
    preset: Any,
    compared: tuple[dict[str, Any], tuple[str, ...]],
) -> list[Path]:
    """Run the study into the folder; streams of free text have nothing to choose from and are left out."""
    import jax

    from nvcim_jax import study
    from nvcim_jax.progress import progress_bar

    if not source.streams[0].labels:
        files.folder("--out", options.out)
        return []
    design = study.Design(*compared, num_instances=options.instances, every_block=options.every_block)
    total = len(study.plan(source.streams, [device], design))
    with progress_bar(total, None, "rows of the table", even=False, lines=True) as advance:
        study.run(
            options.out,
            jax.random.key(options.seed),
            source.streams,
            lm,
            text,
            [device],
            preset=preset,
            design=design,
            advance=advance,
        )
    return [options.out / name for name in ("records.jsonl", "records.csv", "study.json")]


def _official(options: Options, source: Any, lm: Any, text: Any, device: Any, preset: Any) -> list[Path]:
    """Write the predictions of LaMP with their official scores."""
    import jax

    from nvcim_jax.cli import official
    from nvcim_jax.cli.tables import print_table
    from nvcim_jax.progress import progress_bar

    if not source.task:
        return []
    steps = sum(len(stream.blocks) + options.predictions for stream in source.streams)
    rows, written = [], []
    with progress_bar(steps, None, "predictions", even=False, lines=True) as advance:
        for stream in source.streams:
            made = official.predict(
                jax.random.key(options.seed),
                stream,
                lm,
                text,
                device,
                preset=preset,
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


def _about(options: Options, source: Any, lm: Any, seconds: float) -> Path:
    """Write what was run."""
    import jax

    import nvcim_jax
    from nvcim_jax.cli.entry import command_line

    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    content = {
        "command": command_line("run", dataclasses.replace(options, file=None)),
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
