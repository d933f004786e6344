"""What no chip computes, and wrong arguments of `on_chip`, are refused by the name of the leaf."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quax
from support.networks import CALIBRATED, CONFIG, IDEAL, PLAIN, all_matrices, draw

from nvcim_jax import crossbar
from nvcim_jax.crossbar import Config, Kernel

REFUSED: dict[str, tuple[Callable[[jax.Array], Any], str]] = {
    "added to": (lambda w: w + 1.0, "used in the operation `add`. It can be multiplied with; choose which"),
    "looked up": (lambda w: w[jnp.array([0, 2])], "`gather`. It is looked up row by row, as a table of embeddings is"),
    "one row": (lambda w: w[2], "cut apart. It is looked up row by row"),
    "the other axis": (lambda w: draw(4, 7) @ w.T, "contracted along axis 1, while it was programmed with its inputs"),
    "reshaped": (lambda w: w.reshape(-1), "used in the operation `reshape`"),
    "with another": (lambda w: w.T @ w, "multiplied with the weight 'table' (OnChip)"),
}


@pytest.mark.parametrize(("use", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_product_is_refused_by_the_name_of_the_leaf(
    use: Callable[[jax.Array], Any], message: str, key: jax.Array
) -> None:
    chips = crossbar.on_chip(key, {"table": draw(20, 7)}, IDEAL, config=CONFIG)
    with pytest.raises(ValueError, match=r"Argument `params` must use the weight 'table' \(") as error:
        quax.quaxify(lambda params: use(params["table"]))(chips)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("module", "x", "message"),
    [
        (nn.Conv(4, (3, 3), feature_group_count=2), draw(1, 5, 5, 2), "convolved in groups. Leave grouped"),
        (nn.ConvTranspose(4, (3, 3), (2, 2)), draw(1, 5, 5, 2), "used in a transposed convolution. Leave"),
        (nn.Embed(5, 3), jnp.arange(2), "It is looked up row by row, as a table of embeddings is: leave it out by"),
    ],
    ids=["groups", "transposed", "embedding"],
)
def test_layers_that_no_chip_computes_are_refused(
    module: nn.Module, x: jax.Array, message: str, key: jax.Array
) -> None:
    chips = crossbar.on_chip(key, module.init(key, x), IDEAL, config=CONFIG)
    with pytest.raises(ValueError, match="the weight 'params/") as error:
        quax.quaxify(module.apply)(chips, x)
    assert message in str(error.value)


def test_a_tied_head_is_refused_where_the_table_is_looked_up_and_the_fix_works(key: jax.Array) -> None:
    def model(params: Any, ids: jax.Array) -> jax.Array:
        return params["embedding"][ids] @ params["hidden"] @ params["embedding"].T

    params, ids = {"embedding": draw(9, 6), "hidden": draw(6, 6)}, jnp.array([1, 5])
    with pytest.raises(ValueError, match=r"the weight 'embedding'.* leave it out by `select=`"):
        quax.quaxify(model)(crossbar.on_chip(key, params, IDEAL, config=CONFIG), ids)
    fixed = crossbar.on_chip(key, params, IDEAL, config=CONFIG, select=lambda path, _: path != "embedding")
    np.testing.assert_allclose(quax.quaxify(model)(fixed, ids), model(params, ids), rtol=1e-4, atol=1e-5)


def test_the_fix_for_the_other_axis_works(key: jax.Array) -> None:
    w, x = draw(20, 7), draw(4, 7)
    use = quax.quaxify(lambda w: x @ w.T)
    for options in ({"rows": 1}, {"select": lambda path, leaf: Kernel((1,))}):
        np.testing.assert_allclose(
            use(crossbar.on_chip(key, w, IDEAL, config=CONFIG, **options)), x @ w.T, rtol=1e-4, atol=1e-5
        )


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "rows": (
        PLAIN,
        {"rows": 2},
        "Argument `rows` must be 0 \\(Flax\\) or 1 \\(Equinox\\), the axis of the inputs, but is 2",
    ),
    "nothing": (
        PLAIN,
        {"select": lambda path, leaf: False},
        "choose a leaf, but chooses none. The leaves are: bias, first",
    ),
    "an empty tree": ({}, {}, "chooses none. The leaves are: none"),
    "one axis": (
        PLAIN,
        {"select": lambda path, leaf: True},
        "`params\\['bias'\\]` must have two axes .* shape \\(7,\\)",
    ),
    "a word": (
        PLAIN,
        {"select": lambda path, leaf: "matrix"},
        "return True, False or a crossbar.Kernel, but returns 'matrix'",
    ),
    "no rows": (PLAIN, {"select": lambda path, leaf: Kernel(())}, "name some but not all of the 1 axes"),
    "all rows": (PLAIN, {"select": lambda path, leaf: leaf.ndim > 1 and Kernel((0, 1))}, "not all of the 2 axes"),
    "rows twice": (PLAIN, {"select": lambda path, leaf: leaf.ndim > 1 and Kernel((0, 0))}, "each once"),
    "rows of no stack": (
        {"w": draw(2, 3, 4)},
        {"select": lambda path, leaf: Kernel((2,), stacked=True)},
        "the 2 axes after the stack's, .* rows=\\(2,\\)",
    ),
    "integers": (
        {"codes": jnp.ones((3, 3), jnp.int8)},
        {"select": all_matrices},
        "of a floating dtype .* int8. Leave it out: select",
    ),
    "not finite": ({"w": jnp.full((3, 3), jnp.nan)}, {}, "`params\\['w'\\]` must"),
    "one checksum": ({"plumless": draw(2, 2), "buckeroo": draw(2, 2)}, {}, "'buckeroo' and 'plumless'. Rename one"),
    "one path": (
        {"a/b": draw(2, 2), "a": {"b": draw(2, 2)}},
        {},
        r"a path of its own .* has 'a/b' at \['a'\]\['b'\] and at \['a/b'\]. Rename one",
    ),
}


@pytest.mark.parametrize(("params", "options", "message"), BAD.values(), ids=BAD)
def test_wrong_arguments_are_refused_by_name(
    params: Any, options: dict[str, Any], message: str, key: jax.Array
) -> None:
    with pytest.raises(ValueError, match=message):
        crossbar.on_chip(key, params, IDEAL, config=CONFIG, **options)


def test_what_is_on_a_chip_goes_on_none_again_and_trees_without_chips_are_refused(key: jax.Array) -> None:
    chips = crossbar.on_chip(key, PLAIN, IDEAL, config=CONFIG)
    with pytest.raises(
        ValueError, match=r"`params\['first'\]` must be an array to go on a chip, but is a OnChip. Leave"
    ):
        crossbar.on_chip(key, chips, IDEAL, config=CONFIG)
    for use in (lambda: crossbar.reread(key, PLAIN), lambda: crossbar.calibrate_network(key, lambda p: 0, PLAIN)):
        with pytest.raises(ValueError, match=r"hold weights on chips, but holds none. Make them with crossbar.on_chip"):
            use()
    calibrated = crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED)
    with pytest.raises(ValueError, match="multiply with every weight that is on a chip, but leaves out 'second'"):
        crossbar.calibrate_network(key, quax.quaxify(lambda params: draw(4, 20) @ params["first"]), calibrated)
    some = crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED, select=lambda path, _: path == "first")
    with pytest.raises(ValueError, match="Argument `ranges` must hold 'second', but holds first"):
        crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED, ranges=some)


OTHER_RANGES: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"mapping": "offset_digital"}, "mapping='differential', but has mapping='offset_digital'"),
    "array": ({"rows": 8}, "rows=16, but has rows=8"),
    "code": ({"adc_code": "uniform"}, "adc_code='symmetric', but has adc_code='uniform'"),
    "lines": ({"adc_before_subtraction": True}, "adc_before_subtraction=False, but has adc_before_subtraction=True"),
    "outputs": ({"adc_range": "absmax"}, "adc_range='calibrated', but has adc_range='absmax'"),
    "inputs": ({"dac_range": "absmax"}, "dac_range='calibrated', but has dac_range='absmax'"),
}


@pytest.mark.parametrize(("changes", "message"), OTHER_RANGES.values(), ids=OTHER_RANGES)
def test_ranges_of_another_layout_or_converter_are_refused(
    changes: dict[str, Any], message: str, key: jax.Array
) -> None:
    other = crossbar.on_chip(key, PLAIN, IDEAL, config=Config(**{**vars(CALIBRATED), **changes}))
    with pytest.raises(ValueError, match="Argument `ranges` must have") as error:
        crossbar.on_chip(key, PLAIN, IDEAL, config=CALIBRATED, ranges=other)
    assert f"{message}. Calibrate with the same Config." in str(error.value)


def test_ranges_of_another_shape_are_refused_and_fixed_ones_stay(key: jax.Array) -> None:
    w, x = {"w": draw(20, 7)}, draw(4, 20)
    config = Config(**{**vars(CALIBRATED), "adc_range": "fixed"})

    def chips(adc_max: float, ranges: Any = None) -> Any:
        write = functools.partial(crossbar.program, adc_max=adc_max)
        return crossbar.on_chip(key, w, IDEAL, config=config, write=write, ranges=ranges)

    found = crossbar.calibrate_network(key, quax.quaxify(lambda params: x @ params["w"]), chips(5.0))
    taken = chips(3.0, found)["w"].chip
    np.testing.assert_array_equal(taken.dac_max, found["w"].chip.dac_max)
    np.testing.assert_array_equal(taken.adc_range[..., 1], 3.0)
    other = crossbar.on_chip(key, {"w": draw(7, 20)}, IDEAL, config=CALIBRATED)
    with pytest.raises(ValueError, match=r"hold 'w' of \(20, 7\) with .* axis 0, but holds one of \(7, 20\)"):
        crossbar.on_chip(key, w, IDEAL, config=CALIBRATED, ranges=other)
