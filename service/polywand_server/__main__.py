"""`python -m polywand_server` is `polywand-server`."""

from polywand_server.cli import main

main(prog_name="polywand-server")
