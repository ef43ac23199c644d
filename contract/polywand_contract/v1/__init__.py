"""Generated from proto/polywand/v1 by `make proto`; do not edit."""
