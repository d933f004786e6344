"""The check of arguments against annotations: what passes, what is named, and that transformations see through it."""

import timeit
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from nvcim_jax.signature import checked
from nvcim_jax.types import Key


class Pair(NamedTuple):
    first: int
    second: int


MATRIX, KEY = np.zeros((2, 3), np.float32), jax.random.key(0)
ADMITTED: dict[str, tuple[Any, tuple[Any, ...], tuple[Any, ...]]] = {
    "key": (Key, (KEY, jax.random.PRNGKey(0)), (0, None, jnp.zeros(2), KEY[None])),
    "matrix": (Float[Array, "rows cols"], (MATRIX, jnp.zeros((1, 1))), (1.0, "a", [[1.0]], np.zeros(3), MATRIX > 0)),
    "any axes": (Float[Array, "..."], (MATRIX, jnp.float32(1)), (1.0, "a", {}, 1j * MATRIX)),
    "number": (Float[ArrayLike, ""], (1.0, 2, np.float32(1), jnp.float32(1)), ("a", None, MATRIX, 1j)),
    "truth": (Bool[Array, "rows"], (np.zeros(2, bool),), (True, "a", np.zeros((1, 2), bool))),
    "an integer": (Int[Array, ""] | int, (3, jnp.int32(3)), ("3", None, [3])),
    "ours": (Pair, (Pair(1, 2),), ((1, 2), {}, "a")),
    "none": (Pair | None, (None, Pair(1, 2)), (1, "a")),
    "function": (Callable[..., Any], (len, Pair), ("len", 1)),
    "path": (str | Path, ("a", Path("a")), (1, None, b"a")),
    "texts": (Sequence[str], (["a"], ("a", "b"), []), ("a", [1], np.zeros(2), None)),
    "numbers": (Sequence[float] | np.ndarray, ([1.0, 2], np.zeros(2)), ("a", ["a"], 1.0)),
    "mapping": (Mapping[str, int], ({},), ([], "a", None)),
    "anything": (Any, (1, "a", None), ()),
}


@pytest.mark.parametrize("name", ADMITTED)
def test_what_an_annotation_admits_passes_and_anything_else_is_named(name: str) -> None:
    annotation, good, bad = ADMITTED[name]

    def fn(x: Any) -> Any:
        return x

    fn.__annotations__["x"] = annotation
    call = checked(fn)
    for value in good:
        assert call(value) is value
        assert call(x=value) is value
    for value in bad:
        with pytest.raises(ValueError, match=r"^Argument `x` must [^\n]*, but [^\n]*$"):
            call(value)


def test_keys_whose_numbers_depend_on_the_batch_come_as_threefry_keys() -> None:
    def fn(x: Any, more: Any = None, *rest: Any) -> Any:
        return x, more, rest

    fn.__annotations__.update(x=Key, more=Key | None)
    call = checked(fn)
    for impl in ("rbg", "unsafe_rbg"):
        key = jax.random.key(3, impl=impl)
        found = (*call(key)[:1], *call(KEY, key)[1:2], call(x=key)[0], call(KEY, more=key)[1])
        assert all(str(jax.random.key_impl(one)) == "threefry2x32" for one in found)
        assert call(KEY, None, 1, 2) == (KEY, None, (1, 2))


def test_jit_vmap_grad_and_shapes_see_through() -> None:
    @checked
    def square(x: Num[Array, ""], *, times: int = 1) -> Num[Array, ""]:
        """Return times x^2."""
        return times * x**2

    xs = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.vmap(square)(xs), xs**2)
    assert float(jax.jit(square, static_argnames="times")(jnp.float32(3), times=2)) == 18
    assert float(jax.grad(square)(jnp.float32(3))) == 6
    assert jax.eval_shape(square, jax.ShapeDtypeStruct((), jnp.float32)).shape == ()
    assert square.__doc__ == "Return times x^2."
    with pytest.raises(ValueError, match=r"`x` must have shape \(\), but has shape \(3,\). Use jax.vmap"):
        square(xs)


def test_a_call_costs_a_few_microseconds() -> None:
    def plain(key: Any, x: Any, y: Any) -> Any:
        return key

    plain.__annotations__.update(key=Key, x=Float[Array, "rows cols"], y=Pair)
    call, args = checked(plain), (KEY, MATRIX, Pair(1, 2))
    call(*args)
    # A round is shorter than the turn that a busy machine gives a process.
    seconds = min(timeit.repeat(lambda: call(*args), number=20, repeat=200)) / 20
    assert seconds < 100e-6
