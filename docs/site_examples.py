"""Render `Example:` of docstrings as code, which the reader of docstrings knows as `Examples:` alone."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Rename the sections while the package is read."""

    def on_object(self, *, obj: Any, **parts: Any) -> None:
        """Rename the section of one object."""
        del parts
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
