"""`nvcim devices`: the memory cells that every command knows, with what each is and where its numbers come from."""

import dataclasses
import json
from typing import Any

from nvcim_jax import devices
from nvcim_jax.cli.tables import print_table

__all__ = ["Options", "main", "rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """List the memory cells that --device takes; a file that `nvcim device` wrote is another."""

    json: bool = False
    """Print JSON lines in place of a table."""


def rows() -> list[dict[str, Any]]:
    """Return one row for each device: numbers, clocks of its noise, and the source."""
    found = []
    for name in devices.names():
        device = devices.get(name)
        ratio = float(device.on_off_ratio)
        found.append(
            {
                "device": name,
                "sigma": float(device.sigma),
                "sigma is": "a share of g_max" if device.sigma_unit == "g_max" else "a multiple of what was measured",
                "levels": device.num_levels,
                "g_max (uS)": float(device.g_max_us),
                "on/off": None if ratio == float("inf") else ratio,
                "drifts": device.drift is not None,
                "read noise": device.read is not None,
                "source": device.citation,
            }
        )
    return found


def main(options: Options) -> int:
    """Run the command and return its exit code."""
    if options.json:
        print("\n".join(json.dumps(row) for row in rows()))
        return 0
    shown = [{**row, **{name: "yes" if row[name] else "" for name in ("drifts", "read noise")}} for row in rows()]
    print_table(shown, title="Memory cells; sigma by default, changed by --sigma")
    return 0
