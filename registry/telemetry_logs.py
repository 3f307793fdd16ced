"""What a line of a process's log is: text for people, or JSON, with the ids of its call.

The standard library's loggers write it, whoever they belong to. What is told of a call has the ids
of its trace, the call and its run, wherever in the code it is told (`registry.telemetry.current`),
until the call is over.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal

from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import Processor

from registry.telemetry import CALL_ID, RUN_ID, current

_IDS: Final = {CALL_ID: "call", RUN_ID: "run"}
_Line = MutableMapping[str, Any]


def formatter(form: Literal["pretty", "json"], clean: Callable[[str], str]) -> logging.Formatter:
    """Return what makes lines of records; ``clean`` is asked about every text in them.

    It is asked before a text is written as JSON, which would hide from it what has to be escaped.
    """

    def cleaned(_logger: Any, _method: str, line: _Line) -> _Line:
        return {name: clean(it) if isinstance(it, str) else it for name, it in line.items()}

    before: list[Processor] = [
        TimeStamper(fmt="iso", utc=True),
        add_log_level,
        add_logger_name,
        _with_ids,
    ]
    # Tracebacks without the values of variables, which would tell what no log may.
    render: Processor = (
        JSONRenderer()
        if form == "json"
        else ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=plain_traceback, pad_event_to=0
        )
    )
    return ProcessorFormatter(
        processors=[ProcessorFormatter.remove_processors_meta, format_exc_info, cleaned, render],
        foreign_pre_chain=before,
    )


def _with_ids(_logger: Any, _method: str, line: _Line) -> _Line:
    trace = current()
    if trace is not None and not trace.closed:  # what outlives a call may have its context
        line["trace"] = trace.trace_id
        for attribute, name in _IDS.items():
            if attribute in trace.attributes:
                line[name] = trace.attributes[attribute]
    return line
