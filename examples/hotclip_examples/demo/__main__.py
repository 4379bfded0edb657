"""`python -m hotclip_examples.demo`: serve, search, learn, swap, search again.

Writes report.html, job.html (the server's own page of the fine-tune) and result.json. Ends with
code 1 if an answer failed, was mixed, or the search did not get better as told.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import hotclip
from hotclip_examples.demo import story
from hotclip_examples.demo.load import versions_seen
from hotclip_examples.demo.report import Quality, QueryPictures, Report, render_report
from hotclip_examples.demo.server import running_server
from hotclip_examples.demo.story import PICTURE_SIZE, Outcome, Recipe, say
from hotclip_examples.emoji import emoji_task, render

SHOWN_QUERIES = 10
LEAST_CHECKED = 200
LEAST_GAIN = 3.0
LEAST_SHARE_OF_ENGLISH = 0.5
MONITOR_SUFFIX = "reciprocal_rank"


def main() -> int:
    """Runs the demonstration; see the module."""
    options = _options()
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    data = output / "data"
    shutil.rmtree(data, ignore_errors=True)
    recipe = Recipe(concepts=options.concepts, epochs=options.epochs)
    began = time.monotonic()
    with (
        running_server(
            data, output / "server.log", model=options.model, device=options.device
        ) as address,
        hotclip.Client(address) as client,
    ):
        info = client.server_info()
        say(f"server {address}: {options.model} on {info.device}")
        outcome = story.tell(client, data / "versions", output / "pictures", recipe)
        client.get_job(story.JOB).report(output / "job.html")
    result = _result(outcome)
    result["seconds"] = round(time.monotonic() - began, 1)
    (output / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    (output / "report.html").write_text(render_report(_report(outcome, result)), "utf-8")
    _print_table(outcome, result)
    say(f"\nreport: {output / 'report.html'}\nresult: {output / 'result.json'}")
    problems = _problems(outcome, check_quality=options.concepts == Recipe().concepts)
    for problem in problems:
        say(f"NOT AS PROMISED: {problem}")
    return 1 if problems else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hotclip_examples.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--concepts", type=int, default=Recipe.concepts, help="of 1,906")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--model", default="builtin:mini")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def _result(outcome: Outcome) -> dict[str, object]:
    seen = versions_seen(outcome.answers)
    return {
        "mrr_before": round(outcome.before.quality.mrr, 4),
        "mrr_after": round(outcome.after.quality.mrr, 4),
        "mrr_english": round(outcome.english.quality.mrr, 4),
        "mrr_english_after": round(outcome.english_after.quality.mrr, 4),
        "hit10_before": round(outcome.before.quality.hit10, 4),
        "hit10_after": round(outcome.after.quality.hit10, 4),
        "requests": len(outcome.answers) + len(outcome.failures),
        "failed": len(outcome.failures),
        "mixed": len(outcome.mixed),
        "overlapping_flip": outcome.overlapping,
        "longest_gap_ms": round(outcome.longest_gap_ms, 1),
        "longest_gap_control_ms": round(outcome.control_gap_ms, 1),
        "flip_ms": round((outcome.flip_ended - outcome.flip_began) * 1e3, 1),
        "versions": seen,
        "version_before": outcome.before.version,
        "version_after": outcome.after.version,
        "golden_tolerance": round(outcome.tolerance, 6),
        "golden_separation": round(outcome.separation, 6),
        "train_s": round(outcome.train_ended - outcome.train_began, 1),
        "failures": list(outcome.failures[:20]),
    }


def _problems(outcome: Outcome, *, check_quality: bool) -> list[str]:
    """What was promised and did not hold."""
    seen = versions_seen(outcome.answers)
    both = {outcome.before.version, outcome.after.version}
    before, after = outcome.before.quality.mrr, outcome.after.quality.mrr
    english = outcome.english.quality.mrr
    checks = [
        (not outcome.failures, f"{len(outcome.failures)} requests failed"),
        (not outcome.mixed, f"{len(outcome.mixed)} answers are not of the version they name"),
        (set(seen) == both, f"answers came from {sorted(seen)}, expected {sorted(both)}"),
        (len(outcome.answers) >= LEAST_CHECKED, f"only {len(outcome.answers)} answers"),
        (outcome.overlapping > 0, "no request overlapped the flip"),
        (
            outcome.separation > 2 * outcome.tolerance,
            "the two versions are too alike for the check to tell them apart",
        ),
    ]
    if check_quality:
        checks += [
            (after >= LEAST_GAIN * before, f"mRR rose from {before:.3f} to {after:.3f} only"),
            (
                after >= LEAST_SHARE_OF_ENGLISH * english,
                f"mRR {after:.3f} is below half of the English {english:.3f}",
            ),
        ]
    return [problem for holds, problem in checks if not holds]


def _print_table(outcome: Outcome, result: dict[str, object]) -> None:
    rows: list[tuple[str, Quality]] = [
        ("English, before", outcome.english.quality),
        ("German, before", outcome.before.quality),
        ("German, after", outcome.after.quality),
        ("English, after", outcome.english_after.quality),
    ]
    say(f"\n{'held-out queries':<18}{'mRR':>8}{'hit@1':>8}{'hit@10':>8}")
    for name, quality in rows:
        say(f"{name:<18}{quality.mrr:>8.3f}{quality.hit1:>8.3f}{quality.hit10:>8.3f}")
    say(
        f"\n{result['requests']} requests while it learned and swapped: {result['failed']} failed, "
        f"{result['mixed']} mixed; longest gap around the flip {result['longest_gap_ms']} ms "
        f"(undisturbed: {result['longest_gap_control_ms']} ms)"
    )


def _report(outcome: Outcome, result: dict[str, object]) -> Report:
    english = {p.concept: p.text for p in emoji_task("en", concepts=len(outcome.task.index)).index}
    queries = [
        QueryPictures(
            text=query.text,
            english=english[query.concept],
            right=query.concept,
            rank_before=outcome.before.ranks[query.concept],
            rank_after=outcome.after.ranks[query.concept],
            before=outcome.before.best[query.concept],
            after=outcome.after.best[query.concept],
        )
        for query in outcome.task.queries[:: max(1, len(outcome.task.queries) // SHOWN_QUERIES)]
    ][:SHOWN_QUERIES]
    codes = {code for query in queries for code in (*query.before, *query.after, query.right)}
    steps = [m for m in outcome.measurements if m.stage == "STEP" and "loss" in m.metrics]
    return Report(
        english=outcome.english.quality,
        before=outcome.before.quality,
        after=outcome.after.quality,
        english_after=outcome.english_after.quality,
        facts={
            "requests while it learned and swapped": f"{result['requests']}",
            "failed": f"{result['failed']}",
            "mixed answers": f"{result['mixed']}",
            "under way during the flip": f"{result['overlapping_flip']}",
            "longest gap around the flip": f"{result['longest_gap_ms']} ms",
            "longest gap undisturbed": f"{result['longest_gap_control_ms']} ms",
            "training beside serving": f"{result['train_s']} s",
            "version before": outcome.before.version,
            "version after": outcome.after.version,
        },
        queries=queries,
        pictures={code: render(code, "openmoji", PICTURE_SIZE) for code in codes},
        loss=[(float(m.step), m.metrics["loss"]) for m in steps],
        held_out=_held_out(outcome),
        traffic=_traffic(outcome),
        moments=[
            (outcome.train_began - outcome.began, "fine-tune"),
            (outcome.flip_began - outcome.began, "flip"),
        ],
    )


def _held_out(outcome: Outcome) -> list[tuple[float, float]]:
    """Mean over both directions of the mRR on the held-out part of the training data."""
    points = []
    for measured in outcome.measurements:
        ranks = [v for name, v in measured.metrics.items() if name.endswith(MONITOR_SUFFIX)]
        if measured.stage in ("BEFORE", "EPOCH") and ranks:
            points.append((float(measured.step), sum(ranks) / len(ranks)))
    return points


def _traffic(outcome: Outcome) -> dict[str, Sequence[tuple[float, float]]]:
    """Answers in each second, by version."""
    counts = Counter((a.version, int(a.ended - outcome.began)) for a in outcome.answers)
    seconds = range(max((second for _, second in counts), default=0))
    return {
        version: [(second + 0.5, float(counts[version, second])) for second in seconds]
        for version in versions_seen(outcome.answers)
    }


if __name__ == "__main__":
    sys.exit(main())
