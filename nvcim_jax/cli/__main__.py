"""`python -m nvcim_jax.cli` is `nvcim`."""

import sys

from nvcim_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
