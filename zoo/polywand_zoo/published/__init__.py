"""Published interactors: from their authors' checkpoints to models in Polywand's repository."""
