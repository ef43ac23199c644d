"""The contract's generated code, which is in polywand_contract.v1, under the SDK's name."""
