"""``python -m fastdiff``, which ``torchrun -m fastdiff`` runs in every process."""

from fastdiff.cli import main

main()
