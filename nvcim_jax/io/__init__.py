"""Disk: folders of records that a run goes on from, fingerprints, merging, tables, saved memories, adapters."""

from nvcim_jax.io.devices import DEVICE_SUFFIX, load_device, save_device
from nvcim_jax.io.fingerprint import difference, fingerprint
from nvcim_jax.io.merging import Merged, merge, merge_points
from nvcim_jax.io.peft import load_peft, save_peft
from nvcim_jax.io.records import locked, read
from nvcim_jax.io.state import load_state, save_state
from nvcim_jax.io.store import folder, holds, point_name, points
from nvcim_jax.io.tables import (
    RECORDS,
    export,
    left_out,
    read_points,
    read_records,
    records_about,
    summarise_records,
    summary,
    write_records,
)

__all__ = [
    "DEVICE_SUFFIX",
    "RECORDS",
    "Merged",
    "difference",
    "export",
    "fingerprint",
    "folder",
    "holds",
    "left_out",
    "load_device",
    "load_peft",
    "load_state",
    "locked",
    "merge",
    "merge_points",
    "point_name",
    "points",
    "read",
    "read_points",
    "read_records",
    "records_about",
    "save_device",
    "save_peft",
    "save_state",
    "summarise_records",
    "summary",
    "write_records",
]
