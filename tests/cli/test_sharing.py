import pytest

from llmkit.cli import sharing
from llmkit.errors import UsageError
from llmkit.storage.units import Workers


def array(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


@pytest.mark.parametrize(
    ("variables", "number", "count"),
    [
        ({"ID": 3, "MIN": 0, "STEP": 1, "COUNT": 8}, 3, 8),
        ({"ID": 3, "MIN": 1, "STEP": 1, "COUNT": 8}, 2, 8),
        ({"ID": 6, "MIN": 0, "STEP": 2, "COUNT": 4}, 3, 4),
        ({"ID": 0, "MIN": 0, "COUNT": 1}, 0, 1),
    ],
)
def test_a_task_of_a_slurm_array_knows_its_share(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, int], number: int, count: int
) -> None:
    array(monkeypatch, **variables)
    assert sharing.worker_share(2, None, None, None) == Workers(number, count, 2)


def test_a_share_that_is_given_goes_before_that_of_the_array(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    array(monkeypatch, ID=3, MIN=0, STEP=1, COUNT=8)
    assert sharing.worker_share(1, 1, 2, None) == Workers(1, 2, 1)


@pytest.mark.parametrize(
    "variables",
    [
        {"ID": 9, "MIN": 0, "STEP": 1, "COUNT": 3},
        {"ID": 3, "MIN": 0, "STEP": 2, "COUNT": 4},
        {"ID": "x", "MIN": 0, "STEP": 1, "COUNT": 4},
    ],
)
def test_an_array_with_gaps_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, object]
) -> None:
    array(monkeypatch, **variables)
    with pytest.raises(UsageError, match="Slurm array"):
        sharing.worker_share(1, None, None, None)


def test_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="starts its processes itself"):
        sharing.worker_share(None, None, None, None)


def test_a_job_of_a_cluster_is_the_same_command_line_with_its_share() -> None:
    line = ["prepare", "--text", "a b.txt", "--ray", "http://head:8265", "--of=4", "--json"]
    words = ["prepare", "--text", "a b.txt", "--worker", "2", "--of", "4", "--json"]
    assert sharing.words_of_worker(line, 2, 4) == words
