"""The tools of the everything-server that ask their caller: a form, a completion, or roots.

Each of them works in every revision (see `everything_requests`). Those of the first section are
what clients before 2026-07-28 are tested with, those of the second what clients since then are.
"""

from __future__ import annotations

import json
from typing import Any

import anyio
import mcp_types as types
from everything_requests import Received, completion, form
from everything_tools import LONG_S, TEXT, WORK_S, Said, takes, tool

NAME = form("What is your name?", name=TEXT)
ROOTS = types.ListRootsRequest()


def told(answer: dict[str, Any]) -> str:
    """Say what was answered to a form."""
    content = json.dumps(answer.get("content") or {})
    return f"action={answer['action']}, content={content}"


def field_of(answer: dict[str, Any], name: str) -> Any:
    """Return what a form's field was answered with; None if it was not."""
    return (answer.get("content") or {}).get(name)


def titled(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    """Return choices that have titles."""
    return [{"const": value, "title": title} for value, title in pairs]


# Asked while the call is open


@tool("Asks for a completion.", takes(prompt=TEXT))
async def test_sampling(call: Received) -> Said:
    answers = await call.ask({"completion": completion(call.arguments["prompt"])})
    return f"LLM response: {answers['completion']['content'].get('text')}"


@tool("Asks for a user's name and address.", takes(message=TEXT))
async def test_elicitation(call: Received) -> Said:
    asked = form(
        call.arguments["message"],
        username=TEXT | {"description": "The user's name"},
        email=TEXT | {"description": "The user's address"},
    )
    return f"User response: {told((await call.ask({'user': asked}))['user'])}"


@tool("Asks with a form that has defaults.")
async def test_elicitation_sep1034_defaults(call: Received) -> Said:
    asked = types.ElicitRequestFormParams(
        message="Please look these over",
        requested_schema={
            "type": "object",
            "properties": {
                "name": TEXT | {"default": "John Doe"},
                "age": {"type": "integer", "default": 30},
                "score": {"type": "number", "default": 95.5},
                "status": TEXT | {"enum": ["active", "inactive", "pending"], "default": "active"},
                "verified": {"type": "boolean", "default": True},
            },
            "required": [],
        },
    )
    answers = await call.ask({"profile": types.ElicitRequest(params=asked)})
    return f"Elicitation completed: {told(answers['profile'])}"


@tool("Asks with a form that has every kind of choice.")
async def test_elicitation_sep1330_enums(call: Received) -> Said:
    plain = ["option1", "option2", "option3"]
    one = titled(("value1", "First Option"), ("value2", "Second Option"))
    many = titled(("value1", "First Choice"), ("value2", "Second Choice"))
    names = ["Option One", "Option Two", "Option Three"]
    asked = form(
        "Please choose",
        untitledSingle=TEXT | {"enum": plain},
        titledSingle=TEXT | {"oneOf": one},
        legacyEnum=TEXT | {"enum": ["opt1", "opt2", "opt3"], "enumNames": names},
        untitledMulti={"type": "array", "items": TEXT | {"enum": plain}},
        titledMulti={"type": "array", "items": {"anyOf": many}},
    )
    return f"Elicitation completed: {told((await call.ask({'choices': asked}))['choices'])}"


# Asked by ending the call


@tool("Asks for a name and greets.")
async def test_input_required_result_elicitation(call: Received) -> Said:
    answers = await call.ask({"user_name": NAME})
    return f"Hello, {field_of(answers['user_name'], 'name')}!"


@tool("Asks for a name, in a stream.")
async def test_streaming_elicitation(call: Received) -> Said:
    await call.progress(0, 1)
    answers = await call.ask({"user_name": NAME})
    return f"Hello, {field_of(answers['user_name'], 'name')}!"


@tool("Asks a model.")
async def test_input_required_result_sampling(call: Received) -> Said:
    question = completion("What is the capital of France?")
    answers = await call.ask({"capital_question": question})
    return f"The model said: {answers['capital_question']['content'].get('text')}"


@tool("Asks for roots.")
async def test_input_required_result_list_roots(call: Received) -> Said:
    answers = await call.ask({"client_roots": ROOTS})
    return f"Roots: {[root['uri'] for root in answers['client_roots']['roots']]}"


@tool("Asks for a confirmation, and knows its own state again.")
async def test_input_required_result_request_state(call: Received) -> Said:
    asked = form("Please confirm", ok={"type": "boolean"})
    answers = await call.ask({"confirm": asked}, with_state=True)
    kept = call.modern and not call.params.request_state
    return f"{'state lost' if kept else 'state-ok'}: {told(answers['confirm'])}"


@tool("Asks for a confirmation, and refuses a state that is not its own.")
async def test_input_required_result_tampered_state(call: Received) -> Said:
    asked = form("Please confirm", ok={"type": "boolean"})
    return told((await call.ask({"confirm": asked}, with_state=True))["confirm"])


@tool("Asks for a name, a greeting and roots at once.")
async def test_input_required_result_multiple_inputs(call: Received) -> Said:
    greeting = completion("Generate a greeting", 50)
    asked = {"user_name": NAME, "greeting": greeting, "client_roots": ROOTS}
    answers = await call.ask(asked, with_state=True)
    name = field_of(answers["user_name"], "name")
    said = answers["greeting"]["content"].get("text")
    return f"{said}, {name}, of {len(answers['client_roots']['roots'])} roots"


@tool("Asks for a name, and then for a colour.")
async def test_input_required_result_multi_round(call: Received) -> Said:
    first = {"step1": form("Step 1: What is your name?", name=TEXT)}
    name = field_of((await call.ask(first, with_state=True))["step1"], "name")
    second = {"step2": form("Step 2: What is your favorite color?", color=TEXT)}
    color = field_of((await call.ask(second, with_state=True))["step2"], "color")
    return f"{name} likes {color}"


@tool("Asks what its client can answer.")
async def test_input_required_result_capabilities(call: Received) -> Said:
    asked = {"name": NAME, "greeting": completion("Generate a greeting", 50), "roots": ROOTS}
    able = {key: question for key, question in asked.items() if call.able(question.method)}
    answers = await call.ask(able)
    return f"Heard {sorted(answers)}"


# Asked by slow calls


@tool("Looks a file up, and deletes it if that is confirmed.", takes(filename=TEXT))
async def confirm_delete(call: Received) -> Said:
    if not call.answers_came:
        await anyio.sleep(WORK_S)
    name = call.arguments["filename"]
    answers = await call.ask({"confirm": form(f"Delete {name}?", confirm={"type": "boolean"})})
    agreed = field_of(answers["confirm"], "confirm") is True
    return f"{'Deleted' if agreed else 'Kept'} {name}"


@tool("Works, and then asks two things at once.")
async def multi_input(call: Received) -> Said:
    if not call.answers_came:
        await anyio.sleep(WORK_S)
    answers = await call.ask(
        {
            "first": form("What is the first name?", name=TEXT),
            "second": form("What is the second name?", name=TEXT),
        }
    )
    names = [field_of(answer, "name") for answer in answers.values()]
    return f"Heard {' and '.join(map(str, names))}"


@tool("Asks for a name, and then works.")
async def test_tool_with_task(call: Received) -> Said:
    answers = await call.ask({"user_name": NAME})
    await anyio.sleep(LONG_S)
    return f"Worked for {field_of(answers['user_name'], 'name')}"
