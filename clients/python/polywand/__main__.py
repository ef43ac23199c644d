"""`python -m polywand` is `polywand`."""

from polywand_common.entry import polywand

polywand()
