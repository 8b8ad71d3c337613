"""``python -m fastdiff``, which torchrun calls: the command line."""

from fastdiff.cli import main

main()
