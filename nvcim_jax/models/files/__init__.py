"""Files that language models are kept in."""

__all__: list[str] = []
