"""Kubernetes resource quantities as exact numbers; it must not know what they measure."""

from decimal import ROUND_CEILING, Decimal, InvalidOperation

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
    "Ti": Decimal(2) ** 40,
    "Pi": Decimal(2) ** 50,
    "Ei": Decimal(2) ** 60,
}


def parse_quantity(text: str | int | float) -> Decimal:
    """The number that a quantity such as `500m`, `4Gi` or `1e3` stands for.

    Raises ValueError on anything else.
    """
    word = str(text)
    for suffix in (word[-2:], word[-1:]):
        if suffix in _SUFFIXES and len(word) > len(suffix):
            return _number(word[: -len(suffix)]) * _SUFFIXES[suffix]
    return _number(word)


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no quantity") from None


def divide(quantity: Decimal, divisor: Decimal) -> int:
    """How many divisors fit in, rounded up, as `resourceFieldRef` counts."""
    return int((quantity / (divisor or 1)).to_integral_value(rounding=ROUND_CEILING))
