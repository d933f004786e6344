"""Import transformers without its advice to install torch, which this library does not need."""

import logging
from types import ModuleType

__all__ = ["import_transformers"]


def _not_advice(record: logging.LogRecord) -> bool:
    return "PyTorch was not found" not in record.getMessage()


def import_transformers() -> ModuleType:
    """Import transformers; the filter on its logger is gone when it returns."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_not_advice)
    try:
        import transformers
    finally:
        logger.removeFilter(_not_advice)
    return transformers
