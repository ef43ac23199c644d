"""A fuzzer of the gRPC contract and of image files: seeded, structure-aware, against the real service.

A seed and a number make a case: what one hostile client does on one call. `make_case` makes it, `play` plays it, and
`breaches` says what of the answers is against the contract. `Campaign` runs many cases beside a well-behaved client and
compares the service before and after.
"""
