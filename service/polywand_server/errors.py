"""What can go wrong with a request, as the domain says it; `rpc.status` turns these into canonical gRPC codes."""


class PolywandError(Exception):
    """Base of everything that is answered to a client. The text is written for the person who reads it at night."""


class InvalidInputError(PolywandError):
    """The request is wrong and will stay wrong.

    field: the path of the field in the request, as in the contract ("prompt.points[3].x").
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class TooLargeError(InvalidInputError):
    """The request is over a limit of this server, which the description names."""


class NotFoundError(InvalidInputError):
    """The request names a model or a version that does not exist."""


class WrongStateError(InvalidInputError):
    """The request does not fit now: a prompt before an image, a detector asked to interact."""


class UnavailableError(PolywandError):
    """Triton or the model is away; the same request may succeed later."""


class DeadlineError(PolywandError):
    """Triton did not answer in time."""


class ModelFailedError(PolywandError):
    """The model itself refused or failed."""
