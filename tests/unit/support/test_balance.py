"""The order of tests on several workers."""

from __future__ import annotations

from support.balance import long_ones_first


def ordered(tests: list[str], workers: int) -> list[str]:
    return long_ones_first(
        tests,
        workers,
        slow=lambda test: test.endswith("slow"),
        file=lambda test: test.partition(":")[0],
    )


def test_every_worker_begins_with_its_part_of_the_long_ones() -> None:
    quick = [f"a:{n}" for n in range(20)]
    slow = ["b:1 slow", "b:2 slow", "c:1 slow", "d:1 slow"]
    found = ordered([*quick[:10], *slow, *quick[10:]], 2)
    assert found[:2] == ["b:1 slow", "b:2 slow"]  # of one file, so together
    assert found[12:14] == ["c:1 slow", "d:1 slow"]
    assert [test for test in found if test in quick] == quick


def test_no_test_is_lost_however_few_there_are() -> None:
    for count in range(6):
        tests = [f"{n}: slow" for n in range(count)] + ["x:1"]
        for workers in (1, 2, 5):
            assert sorted(ordered(tests, workers)) == sorted(tests)
