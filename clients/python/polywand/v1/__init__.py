"""The generated code of the contract under the name that a client expects; it lives in polywand_contract.v1."""
