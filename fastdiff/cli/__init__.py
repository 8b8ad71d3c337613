"""The command line: ``fastdiff sample``, ``train``, ``evaluate``, ``convert`` and ``doctor``."""

from __future__ import annotations

import os
import sys

import click

from fastdiff.cli.convert import convert
from fastdiff.cli.doctor import doctor
from fastdiff.cli.evaluate import evaluate
from fastdiff.cli.sample import sample
from fastdiff.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fastdiff")
def fastdiff() -> None:
    """Sample and train DDPM-family diffusion models, fast.

    \b
    fastdiff sample                     a grid of digits from the bundled model
    fastdiff train data/ --out run/     train a model on your images
    fastdiff evaluate run/model --data ...  bits/dim, FID, KID, IS, a report
    fastdiff convert SRC DST --to ...   another library's format
    fastdiff doctor                     what is installed, what is missing
    """


fastdiff.add_command(sample)
fastdiff.add_command(train)
fastdiff.add_command(evaluate)
fastdiff.add_command(convert)
fastdiff.add_command(doctor)


def main() -> None:
    """Run the command line: one sentence and exit status 2 for bad input, 130 for Ctrl-C."""
    try:
        fastdiff.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("fastdiff: interrupted", err=True)
        sys.exit(130)
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        if os.environ.get("FASTDIFF_TRACEBACK"):
            raise
        click.echo(f"fastdiff: {_sentence(error)}", err=True)
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
