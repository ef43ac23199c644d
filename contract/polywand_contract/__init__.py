"""The contract in Python, for the service and its clients alike.

`v1` is generated from proto/polywand/v1; `raster` says which pixels a polygon and run lengths hold.
"""
