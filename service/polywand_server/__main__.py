"""`python -m polywand_server` is `polywand-server`."""

from polywand_common.entry import server

server()
