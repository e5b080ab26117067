"""How a request to the API server can fail, as far as the operator cares; no library is known.

ApiError
 ├─ NotFound     there is no such object
 ├─ Conflict     someone else was faster, or owns a field, or the name is taken
 ├─ Invalid      the server refuses the content; asking again cannot help
 ├─ Forbidden    rights are missing; asking again helps once an administrator has acted
 ├─ Gone         a list or watch cannot be continued; start it anew
 └─ Unavailable  server or network is away, slow or busy; ask again later
"""

from __future__ import annotations


class ApiError(Exception):
    """A request failed; `code` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class NotFound(ApiError):
    """There is no such object."""


class Conflict(ApiError):
    """The object changed meanwhile, a field has another owner, or the name is taken."""


class Invalid(ApiError):
    """The content is refused."""


class Forbidden(ApiError):
    """The operator lacks a right."""


class Gone(ApiError):
    """The list cannot be continued."""


class Unavailable(ApiError):
    """No usable answer; `delay_s` is what the server asked to wait."""

    def __init__(self, message: str, *, code: int = 0, delay_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.delay_s = delay_s


def from_status(code: int, message: str, *, delay_s: float | None = None) -> ApiError:
    """The error of an HTTP status of 400 or more."""
    kinds: dict[int, type[ApiError]] = {
        400: Invalid,
        401: Forbidden,
        403: Forbidden,
        404: NotFound,
        409: Conflict,
        410: Gone,
        413: Invalid,
        415: Invalid,
        422: Invalid,
    }
    if code in kinds:
        return kinds[code](message, code=code)
    return Unavailable(message, code=code, delay_s=delay_s)
