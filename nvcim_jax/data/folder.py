"""Where the data files lie."""

import os
from pathlib import Path

from nvcim_jax.signature import checked

__all__ = ["data_folder"]


@checked
def data_folder(name: str = "") -> Path | None:
    """Return the folder named by NVCIM_DATA, else `../shared/data` beside the repository, else None.

    Args:
        name: A sub-folder that must be there, such as "clinc150"; the answer is then that sub-folder.

    Example:
        >>> data_folder("no-such-data") is None
        True
    """
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for folder in (os.environ.get("NVCIM_DATA"), beside):
        if folder and (Path(folder) / name).is_dir():
            return Path(folder) / name
    return None
