"""Lengths of training as Composer spells them (``2.97e9tok``, ``500ba``, ``10min``), kept exact, plus ``1%`` of a budget."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema

SECONDS = {'sec': 1, 'min': 60, 'h': 3600}
"""Seconds in each unit of time."""

UNITS = ('tok', 'ba', '%', *SECONDS)
"""Every unit a duration may have: tokens, batches, percent of the stage's budget, seconds, minutes, hours."""

_DIGITS = '[0-9]+(?:_[0-9]+)*'
_NUMBER = rf'{_DIGITS}(?:\.{_DIGITS})?(?:[eE][+-]?[0-9]+)?'
_PATTERN = re.compile(rf'({_NUMBER}) *({"|".join(UNITS)})')
_FOREIGN = re.compile(rf'{_NUMBER} *(dur|ep|sp|iter)')
_LARGEST = 1 << 63
_DECIMAL_PLACES = 30
_LONGEST_NUMBER = 60  # 2^63 has 19 digits before the point
_EXAMPLES = 'such as `2.97e9tok`, `500ba`, `1%` or `10min`'


@dataclass(frozen=True)
class Duration:
    """A length of training or of time.

    Args:
        value (int | Fraction): The exact number; an ``int`` whenever it is whole.
        unit (str): One of ``UNITS``.
    """

    value: int | Fraction
    unit: str

    @classmethod
    def parse(cls, text: str) -> 'Duration':
        """Reads a duration from its spelling.

        Args:
            text (str): A number and a unit, such as ``2.97e9tok``, ``2_000_000tok``, ``500ba``, ``1%``, ``25sec`` or ``3h``.

        Returns:
            Duration: The exact duration.

        Raises:
            ValueError: If the text is not a duration; the message says what to write instead.
        """
        match = _PATTERN.fullmatch(text.strip(' '))
        if match is None:
            if foreign := _FOREIGN.fullmatch(text.strip(' ')):
                raise ValueError(_explain_foreign(foreign[1], text))
            raise ValueError(f'must be a duration {_EXAMPLES}, got {text!r:.60}')
        value = _exact(match[1])
        if value is None or value * SECONDS.get(match[2], 1) >= _LARGEST:
            raise ValueError(
                f'must be a number of at most 63 bits and {_DECIMAL_PLACES} decimal places, got {text!r:.60}'
            )
        if match[2] in ('tok', 'ba') and value.denominator != 1:
            raise ValueError(
                f'must be a whole number of {"tokens" if match[2] == "tok" else "batches"}, got {text!r:.60}'
            )
        return cls(int(value) if value.denominator == 1 else value, match[2])

    def __str__(self) -> str:
        """The shortest spelling that reads back as the same duration."""
        if isinstance(self.value, int):
            return f'{_engineering(self.value)}{self.unit}'
        return f'{_decimal(self.value)}{self.unit}'

    @property
    def is_time(self) -> bool:
        """Whether this is wall-clock time, which no number of tokens equals."""
        return self.unit in SECONDS

    @property
    def seconds(self) -> float:
        """The length in seconds.

        Raises:
            ValueError: If the unit is not one of time.
        """
        if not self.is_time:
            raise ValueError(f'{self} is not a time')
        return float(self.value * SECONDS[self.unit])

    def tokens(self, tokens_per_batch: int, budget_tokens: int | None = None) -> int:
        """The length in tokens, to the nearest whole one.

        Args:
            tokens_per_batch (int): Tokens in a global batch.
            budget_tokens (int | None): The stage's budget in tokens, of which ``%`` is a share.

        Returns:
            int: Tokens.

        Raises:
            ValueError: If this is a time, or a share of a budget that is not given.
        """
        match self.unit:
            case 'tok':
                return int(self.value)
            case 'ba':
                return int(self.value) * tokens_per_batch
            case '%' if budget_tokens is not None:
                return round(Fraction(self.value) * budget_tokens / 100)
            case _:
                pass
        raise ValueError(f'{self} has no length in tokens here')

    def batches(self, tokens_per_batch: int, budget_tokens: int | None = None) -> int:
        """The length in global batches, to the nearest whole one and at least 1.

        Args:
            tokens_per_batch (int): Tokens in a global batch.
            budget_tokens (int | None): The stage's budget in tokens, of which ``%`` is a share.

        Returns:
            int: Global batches.

        Raises:
            ValueError: If this is a time, or a share of a budget that is not given.
        """
        return max(1, round(Fraction(self.tokens(tokens_per_batch, budget_tokens), tokens_per_batch)))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validates from a string (or the number 0) and writes itself as a string."""
        return core_schema.no_info_plain_validator_function(
            _validate,
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The JSON Schema editors check a duration with."""
        text = {'type': 'string', 'pattern': rf'^{_NUMBER} *({"|".join(UNITS)})$'}
        return {'anyOf': [text, {'const': 0}], 'examples': ['2.97e9tok', '500ba', '1%', '10min']}


def _validate(value: Any) -> Duration:
    if isinstance(value, Duration):
        return value
    if isinstance(value, str):
        try:
            return Duration.parse(value)
        except ValueError as error:
            raise PydanticCustomError('duration', '{reason}', {'reason': str(error)}) from None
    if value == 0 and type(value) in (int, float):
        return Duration(0, 'tok')
    raise PydanticCustomError(
        'duration', '{reason}', {'reason': f'must be a duration with its unit, {_EXAMPLES}, got {value!r:.60}'}
    )


def _explain_foreign(unit: str, text: str) -> str:
    if unit == 'dur':
        return f"must not use `dur`, got {text!r:.60}: it moves when the budget does. Write a share of the stage's own budget such as `10%`, or tokens"
    return f'must be in tokens (`tok`) or batches (`ba`), got {text!r:.60}: an epoch or a sample has no meaning across stages'


def _engineering(value: int) -> str:
    """A whole number; from a million up as ``296.86e9`` when that is shorter."""
    plain = str(value)
    exponent = (len(plain) - 1) // 3 * 3
    if exponent < 6:
        return plain
    short = f'{_decimal(Fraction(value, 10**exponent))}e{exponent}'
    return short if len(short) < len(plain) else plain


def _exact(number: str) -> Fraction | None:
    """The number; None for one whose mere digits would fill the memory, or finer than anything that is counted."""
    mantissa, _, exponent = number.lower().partition('e')
    if len(mantissa) > _LONGEST_NUMBER or len(exponent) > 4 or abs(int(exponent or 0)) > _LONGEST_NUMBER:
        return None
    value = Fraction(number)
    return value if 10**_DECIMAL_PLACES % value.denominator == 0 else None


def _decimal(value: Fraction) -> str:
    """A fraction that came from a decimal, written as that decimal."""
    places = next(places for places in range(_DECIMAL_PLACES + 1) if 10**places % value.denominator == 0)
    digits = str(int(value * 10**places)).rjust(places + 1, '0')
    return f'{digits[:-places]}.{digits[-places:]}' if places else digits
