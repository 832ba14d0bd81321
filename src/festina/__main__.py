"""`python -m festina`."""

from festina.cli import main

main()
