"""Host side: records, user streams, the built-in users, and the official files of LaMP."""

from nvcim_jax.data.builtin import builtin_records, builtin_users
from nvcim_jax.data.folder import data_folder
from nvcim_jax.data.lamp import LAMP_TASKS, read_lamp, write_predictions
from nvcim_jax.data.profile import MARKERS, SOURCES, profile_pairs
from nvcim_jax.data.records import Record, read_jsonl, write_jsonl
from nvcim_jax.data.streams import CLINC5_DOMAINS, KINDS, Block, Stream, StreamConfig, clinc5, stream
from nvcim_jax.data.users import most_opposed, permuted_users

__all__ = [
    "CLINC5_DOMAINS",
    "KINDS",
    "LAMP_TASKS",
    "MARKERS",
    "SOURCES",
    "Block",
    "Record",
    "Stream",
    "StreamConfig",
    "builtin_records",
    "builtin_users",
    "clinc5",
    "data_folder",
    "most_opposed",
    "permuted_users",
    "profile_pairs",
    "read_jsonl",
    "read_lamp",
    "stream",
    "write_jsonl",
    "write_predictions",
]
