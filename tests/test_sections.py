"""Values that sections of a configuration read in several spellings: an epsilon as 8/255."""

import pytest
from pydantic import TypeAdapter, ValidationError

from biotorch._sections import Epsilon, Section


@pytest.mark.parametrize(
    ("given", "found"),
    [(0, 0.0), (1, 1.0), (0.25, 0.25), ("8/255", 8 / 255), (" 0.5 / 2 ", 0.25), ("0/255", 0.0), ("3/2", 1.5)],
)
def test_an_epsilon_is_read(given, found):
    class Some(Section):
        alone: Epsilon
        several: list[Epsilon]
        perhaps: Epsilon | None = None

    values = Some.model_validate({"alone": given, "several": [given, 1], "perhaps": given})
    assert (values.alone, values.several, values.perhaps) == (found, [found, 1.0], found)
    assert isinstance(values.alone, float)
    assert Some.model_validate(values.model_dump(mode="json")) == values


@pytest.mark.parametrize(
    "given",
    [True, False, None, "", "1", "0.1", "8/", "/255", "8/255/2", "-8/255", "8/-255", "8/0", "0/0", "1e-3/2", "a/b",
     "nan/1", "inf/1", "8÷255", "\uff18/255", "8_0/255", f"{'9' * 400}/1", f"{'9' * 400}/{'9' * 400}", -1, -0.5,
     float("nan"), float("inf"), [], [1], {}, "8/255\n8/255"],
)  # fmt: skip
def test_what_is_no_epsilon_is_refused_alone_and_in_every_place_of_a_section(given):
    class Some(Section):
        alone: Epsilon = 0.0
        several: list[Epsilon] = []  # noqa: RUF012 - pydantic copies it
        other: Epsilon | int = 0

    with pytest.raises(ValidationError):
        TypeAdapter(Epsilon).validate_python(given)
    for values in ({"alone": given}, {"several": [given]}):
        with pytest.raises(ValidationError):
            Some.model_validate(values)


def test_numbers_beside_an_epsilon_stay_literal():
    class Some(Section):
        radius: Epsilon
        rate: float = 0.0
        switch: bool = False

    with pytest.raises(ValidationError, match="rate: a number is needed, not the text '8/255'"):
        Some.model_validate({"radius": "8/255", "rate": "8/255"})
    with pytest.raises(ValidationError, match="switch: true or false, not 1"):
        Some.model_validate({"radius": 1, "switch": 1})
