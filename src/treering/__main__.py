"""``python -m treering``, and with it ``torchrun -m treering train …`` for many processes."""

from treering.cli import main

main()
