"""Templates to text. Whatever comes from users is escaped, here and nowhere else."""

from __future__ import annotations

from functools import cache

from jinja2 import BaseLoader, ChoiceLoader, Environment, PackageLoader, StrictUndefined

from hotclip_server.report.run_report import RunReport


def environment(*more: BaseLoader) -> Environment:
    """Jinja with the templates of this package, after those of `more`."""
    found = Environment(
        loader=ChoiceLoader([*more, PackageLoader("hotclip_server.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["clock"] = lambda time: f"{time:%Y-%m-%d %H:%M:%S} UTC"
    return found


def render(report: RunReport) -> str:
    """The page of a job as HTML: one file, without script, that loads nothing."""
    return _environment().get_template("run.html").render(r=report)


@cache
def _environment() -> Environment:
    return environment()
