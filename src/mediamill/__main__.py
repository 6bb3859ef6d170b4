"""`python -m mediamill`."""

from mediamill.cli import main

main()
