"""A grid as one declarative file (TOML) or as words on the command line."""

import collections
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvcim_jax import checks
from nvcim_jax.cli import matrix

__all__ = ["Grid", "also_set", "check_free", "pair", "read_grid", "value_of"]


@checks.frozen_config
class Grid:
    """What a sweep runs.

    Attributes:
        axes: Name and values of each axis, in order; the last changes fastest.
        fixed: Settings common to all points.
        instances: Chips at each point.
        seed: Seed of the chips' key.
    """

    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    fixed: tuple[tuple[str, Any], ...] = ()
    instances: int = 1000
    seed: int = 0

    def settings(self) -> list[dict[str, Any]]:
        """Return the settings of every point, axes and fixed ones."""
        from nvcim_jax import montecarlo

        return [{**dict(self.fixed), **point} for point in montecarlo.grid({n: list(v) for n, v in self.axes})]


def value_of(word: str) -> Any:
    """Return what a word of the command line stands for: an integer, a number, none, true, false, or a name.

    Example:
        >>> [value_of(word) for word in ("8", "0.1", "none", "true", "FeFET6")]
        [8, 0.1, None, True, 'FeFET6']
    """
    constants = {"none": None, "true": True, "false": False}
    if word.lower() in constants:
        return constants[word.lower()]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def pair(word: str, option: str) -> tuple[str, str]:
    """Return name and value of a word of an option.

    Example:
        >>> pair("sigma=0.1", "--set")
        ('sigma', '0.1')
    """
    name, equals, text = word.partition("=")
    if not (name and equals and text):
        checks.fail(option, "be name=value", f"is {word!r}", f"For example {option} sigma=0.1.")
    return name, text


def check_free(name: str, words: Sequence[str], fix: str) -> None:
    """Refuse words of --set that give a value, other than none, to what --of names.

    Example:
        >>> check_free("sigma", ["adc_bits=8"], "Use --low and --high.")
    """
    for word in words:
        if word.partition("=")[0] == name and word.lower() != f"{name}=none":
            checks.fail("--set", "leave out what --of names", f"is {word}", fix)


def also_set(words: Sequence[str], device: str | None, sigma: float | None) -> tuple[str, ...]:
    """Return the words of --set with those of --device and --sigma.

    Example:
        >>> also_set(["adc_bits=8"], "PCM", None)
        ('adc_bits=8', 'device=PCM')
    """
    given = {"device": device, "sigma": sigma}
    return (*words, *(f"{name}={value}" for name, value in given.items() if value is not None))


def read_grid(
    file: Path | None,
    axes: Sequence[str] = (),
    fixed: Sequence[str] = (),
    instances: int | None = None,
    seed: int | None = None,
) -> Grid:
    """Return a grid from a file, with what the command line adds or replaces.

    The file:

        instances = 1000
        seed = 0
        [axes]
        device = ["RRAM1", "FeFET6"]
        sigma = [0.05, 0.1, 0.2]
        [fixed]
        adc_bits = 8

    Args:
        file: TOML file, or None.
        axes: Words "name=value,value,...".
        fixed: Words "name=value".
        instances: Instead of the file's.
        seed: Instead of the file's.

    Raises:
        ValueError: If the file or a word cannot be read, or a name or value is wrong.

    Example:
        >>> read_grid(None, ["sigma=0.1,0.2"], ["adc_bits=8"], 100).settings()
        [{'adc_bits': 8, 'sigma': 0.1}, {'adc_bits': 8, 'sigma': 0.2}]
    """
    found = _from_file(file) if file is not None else {}
    all_axes = dict(found.get("axes", {}))
    pairs = [pair(word, "--axis") for word in axes]
    asked = dict(pairs)
    for name, count in collections.Counter(name for name, _ in pairs).items():
        if count > 1:
            fix = f"Give all values at once: --axis {name}={','.join(text for other, text in pairs if other == name)}."
            checks.fail("--axis", "name each axis once", f"names {name} {count} times", fix)
    all_axes |= {name: [value_of(part) for part in text.split(",")] for name, text in asked.items()}
    all_fixed = dict(found.get("fixed", {}))
    for word in fixed:
        name, text = pair(word, "--set")
        if name in asked:
            checks.fail("--axis", "name what has no other value", f"{name} is both an axis and set to {text}")
        all_fixed[name] = value_of(text)
        all_axes.pop(name, None)
    all_fixed = {name: value for name, value in all_fixed.items() if name not in all_axes}
    for name, values in all_axes.items():
        if not isinstance(values, list) or not values:
            checks.fail(f"axes.{name}", "be a list of values", f"is {values!r}")
    made = Grid(
        axes=tuple((name, tuple(_normal(name, v) for v in values)) for name, values in all_axes.items()),
        fixed=tuple((name, _normal(name, value)) for name, value in all_fixed.items()),
        instances=instances if instances is not None else found.get("instances", 1000),
        seed=seed if seed is not None else found.get("seed", 0),
    )
    checks.integer("instances", made.instances)
    checks.integer("seed", made.seed, low=0, high=2**32 - 1)
    matrix.check_all(made.settings())
    return made


def _normal(name: str, value: Any) -> Any:
    """Write a value one way only, so that 1 and 1.0 are one point; the method "none" is a name."""
    if name == "mitigation" and value is None:
        return "none"
    is_number = name in matrix.NUMBERS and isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number else value


def _from_file(file: Path) -> dict[str, Any]:
    if not file.is_file():
        checks.fail("file", "be a TOML file", f"there is none: {file}")
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        checks.fail("file", "be a TOML file", f"{file} is not: {error}")
    known = ("axes", "fixed", "instances", "seed")
    for name in found:
        if name not in known:
            checks.fail(name, f"be one of {', '.join(known)}", f"stands in {file}", checks.suggestion(name, known))
    for name in ("axes", "fixed"):
        if not isinstance(found.get(name, {}), dict):
            checks.fail(name, "be a table", f"is {found[name]!r}", f"Write [{name}] and a line for each setting.")
    return found
