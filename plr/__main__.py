"""`python -m plr`."""

from plr.cli import main

main()
