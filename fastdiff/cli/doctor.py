"""``fastdiff doctor``."""

from __future__ import annotations

import sys

import click


@click.command()
def doctor() -> None:
    """Tell what is there, what is missing, and how to mend it."""
    from fastdiff.doctor import main

    sys.exit(main())
