"""Commands that are killed at one of their operations on files, and given again."""

import random

import pytest
import runs
from dying import COMMANDS, Trials

#: Deaths of each command in the fast suite.
SAMPLE = 1


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(runs.models.registry.OWN, "small", runs.small)


@pytest.mark.parametrize("everywhere", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_ends_as_if_it_had_not_been_killed(command, everywhere, tmp_path):
    trials = Trials(command, tmp_path)
    deaths = range(1, trials.operations + 1)
    if not everywhere:
        deaths = random.Random(command).sample(deaths, SAMPLE)
    wrong = {number: found for number in deaths if (found := trials.differences(number))}
    print(f"{command}: {len(deaths)} deaths at {trials.operations} operations, {len(wrong)} wrong outcomes")
    assert not wrong
