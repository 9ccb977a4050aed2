"""`python -m service` is `tenet`."""

from service.cli import main

main()
