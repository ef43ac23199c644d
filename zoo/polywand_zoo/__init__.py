"""The zoo: networks, conversion and export of models for Polywand's model repository. The service never imports it."""
