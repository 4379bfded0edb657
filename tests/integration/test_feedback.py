"""What people chose: recorded once, kept, and turned into pairs that a fine-tune takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.drawings import drawn_pairs
from support.server import ServerProcess

from hotclip import AsyncClient, Choice, Client, Point, Vector
from hotclip.errors import (
    FailedPrecondition,
    InvalidArgument,
    ItemsFailed,
    NotFound,
    ResourceExhausted,
)

StartServer = Callable[..., ServerProcess]
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_choices_become_the_pairs_that_they_are(server: ServerProcess) -> None:
    drawn = drawn_pairs()[:8]
    with Client(server.address) as client:
        made = client.create_collection("chosen")
        points = [Point(f"p{at}", image) for at, (image, _) in enumerate(drawn)]
        points.append(Point("text", "a text that is stored"))
        vector = np.eye(1, made.dim, dtype=np.float32)[0]
        points.append(Point("given", Vector(vector, made.space_id)))
        client.upsert("chosen", points)
        choices = [
            Choice(text, f"p{at}", NOON + timedelta(minutes=at))
            for at, (_, text) in enumerate(drawn)
        ]
        choices += [
            Choice("the first once more", "p0", NOON, request_id="twice"),
            Choice(drawn[0][1], "p0", NOON),
            Choice("what is written", "text", NOON),
            Choice("no source", "given", NOON),
        ]
        done = client.record_feedback("chosen", choices)
        assert (done.recorded, done.known, done.errors) == (12, 0, ())
        # The same request id counts once, also within a call.
        again = [Choice("anything", "p1", request_id="twice")]
        again += [Choice("new", "p1", NOON - timedelta(days=1), request_id="new")] * 2
        done = client.record_feedback("chosen", again)
        assert (done.recorded, done.known) == (1, 2)

        listed = client.list_feedback("chosen", start=NOON)
        assert [(c.query, c.point_id) for c in listed[:2]] == [
            (drawn[7][1], "p7"),
            (drawn[6][1], "p6"),
        ]
        assert [c.time for c in listed] == sorted((c.time for c in choices), reverse=True)
        assert [c.query for c in client.list_feedback("chosen", end=NOON)] == ["new"]

        client.upsert("chosen", [Point("p2", drawn[0][0])])
        client.delete_points("chosen", ["p3"])
        # Another payload, or the same image once more, changes nothing.
        client.upsert("chosen", [Point("p4", drawn[4][0], {"price": 3})])
        client.delete_points("chosen", ["p5"])
        client.upsert("chosen", [Point("p5", drawn[5][0])])
        counted = client.feedback_dataset("chosen", start=NOON, validate_only=True)
        assert counted.dataset is None
        built = client.feedback_dataset("chosen", start=NOON, name="clicks", description="of March")
        assert built.choices == 12
        assert {u.reason: (u.choices, u.point_ids) for u in built.unused} == {
            "DUPLICATE": (1, ("p0",)),
            "POINT_CHANGED": (1, ("p2",)),
            "POINT_GONE": (1, ("p3",)),
            "NOT_AN_IMAGE": (1, ("text",)),
            "NO_SOURCE": (1, ("given",)),
        }
        assert (counted.choices, counted.used, counted.unused) == (12, 7, built.unused)
        assert built.dataset is not None
        assert (built.used, built.dataset.pairs, built.dataset.images) == (7, 7, 6)
        assert (built.dataset.name, built.dataset.description) == ("clicks", "of March")
        # The same choices are the same dataset.
        assert client.feedback_dataset("chosen", start=NOON, name="clicks").dataset == built.dataset
        with pytest.raises(FailedPrecondition, match="0 of 0") as nothing:
            client.feedback_dataset("chosen", start=NOON + timedelta(days=1))
        assert nothing.value.reason == "FEEDBACK_UNUSABLE"

        tuned = client.finetune(
            "clicks", val_split=0, max_steps=1, batch_size=4, activation="never"
        ).wait(60)
        client.delete_version(tuned.result_version)

        assert client.delete_feedback("chosen", end=NOON) == 1
        assert client.delete_feedback("chosen") == 12
        assert client.list_feedback("chosen") == []


async def test_a_bad_choice_fails_alone_and_says_why(server: ServerProcess) -> None:
    image, text = drawn_pairs()[0]
    async with AsyncClient(server.address) as client:
        await client.create_collection("faults")
        await client.upsert("faults", [("p", image)])
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        choices = [
            (text, "p"),
            (" ", "p"),
            ("x" * (9 << 10), "p"),
            (text, ""),
            (text, "nobody"),
            (text, "p", tomorrow),
            Choice(text, "p", request_id="r" * 129),
        ]
        done = await client.record_feedback("faults", choices, on_error="return")
        assert done.recorded == 1
        assert {e.index: (e.code.name, e.message) for e in done.errors} == {
            1: ("INVALID_ARGUMENT", "choices[1].query: is empty"),
            2: ("INVALID_ARGUMENT", "choices[2].query: longer than 8192 bytes"),
            3: ("INVALID_ARGUMENT", "choices[3].point_id: must be 1 to 512 bytes of UTF-8"),
            4: (
                "NOT_FOUND",
                "choices[4].point_id: no point 'nobody' in collection 'faults'",
            ),
            5: ("INVALID_ARGUMENT", "choices[5].time: is in the future"),
            6: ("INVALID_ARGUMENT", "choices[6].request_id: is longer than 128"),
        }
        with pytest.raises(ItemsFailed, match="1 were recorded"):
            await client.record_feedback("faults", choices[:2])
        assert len(await client.list_feedback("faults")) == 2
        with pytest.raises(InvalidArgument, match="end_time"):
            await client.delete_feedback("faults", start=tomorrow, end=tomorrow)
        with pytest.raises(InvalidArgument, match="max_choices"):
            await client.feedback_dataset("faults", max_choices=0)
        with pytest.raises(InvalidArgument, match="name"):
            await client.feedback_dataset("faults", name="not a name")
        with pytest.raises(NotFound):
            await client.record_feedback("no such collection", [(text, "p")])
        # Choices go with their collection.
        await client.delete_collection("faults")
        await client.create_collection("faults")
        assert await client.list_feedback("faults") == []


def test_choices_outlive_a_kill_are_limited_and_have_commands(make_server: StartServer) -> None:
    running = make_server("--max-feedback", "3")
    image, text = drawn_pairs()[0]
    with Client(running.address) as client:
        client.create_collection("kept")
        client.upsert("kept", [("p", image)])
        client.record_feedback("kept", [(text, "p"), ("another", "p")])
    running.kill()
    running = make_server("--max-feedback", "3", data_dir=running.data_dir)

    def shell(*arguments: str) -> str:
        command = [sys.executable, "-m", "hotclip", "feedback", *arguments]
        command += ["--server", running.address]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with Client(running.address) as client:
        assert {c.query for c in client.list_feedback("kept")} == {text, "another"}
        for told in ("recorded", "known"):
            assert shell("record", "kept", "a third", "p", "--request-id", "r") == f"{told}\n"
        with pytest.raises(ResourceExhausted) as full:
            client.record_feedback("kept", [("a fourth", "p")])
        assert full.value.reason == "FEEDBACK_FULL"
        assert [line.split()[-1] for line in shell("list", "kept").splitlines()] == [
            "POINT"
        ] + 3 * ["p"]
        made = json.loads(shell("dataset", "kept", "--name", "three", "--json"))
        assert (made["used"], made["dataset"]["pairs"], made["unused"]) == (3, 3, [])
        assert "three" in shell("dataset", "kept", "--name", "three")
        assert shell("delete", "kept", "--start", "2020-01-01") == "3\n"
        assert client.record_feedback("kept", [("room again", "p")]).recorded == 1
