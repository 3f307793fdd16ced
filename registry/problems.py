"""What is wrong with a document, field by field, in the words of those who write such documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Final, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from registry.errors import Code, FleetError

MOST_PROBLEMS: Final = 50
CORRECT: Final = "correct the fields listed in details and send it again"
_IN_WORDS: Final = {
    "missing": "is required",
    "model_type": "has to be an object",
    "dict_type": "has to be an object",
    "tuple_type": "has to be a list",
    "string_type": "has to be a string",
    "string_unicode": "is no valid Unicode",
    "url_type": "has to be a string",
    "finite_number": "has to be a finite number",
}


Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model],
    document: Any,
    what: str,
    *,
    code: Code = Code.INVALID_DEFINITION,
    hint: str = CORRECT,
    context: Any = None,
) -> Model:
    """Return a document as a model; raise ``code`` naming each field of it that is wrong.

    ``what`` is the document's name in the message, ``context`` what the model's checks ask for.
    """
    try:
        return model.model_validate(document, context=context)
    except ValidationError as error:
        raise invalid(what, problems_of(error, model), code=code, hint=hint) from error


def invalid(
    what: str,
    problems: Sequence[dict[str, str]],
    *,
    code: Code = Code.INVALID_DEFINITION,
    hint: str = CORRECT,
) -> FleetError:
    """Return the error for a document with problems, each a path and what is wrong there."""
    first = problems[0]
    return FleetError(
        code,
        f"the {what} is not valid: {first['path'] or 'it'}: {first['problem']}",
        hint=hint,
        details={"problems": list(problems)},
    )


def misplaced(field: str, problem: str) -> PydanticCustomError:
    """Return what a check of a whole model raises about one of its fields (its path from there)."""
    return PydanticCustomError("misplaced", "{problem}", {"field": field, "problem": problem})


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[dict[str, str]]:
    """Return path and problem of each field that is wrong, at most the first 50.

    A path is the keys and indexes from the document's root, joined by ``/``.
    """
    found = error.errors(include_url=False, include_input=False)
    return [_problem(item, model) for item in found[:MOST_PROBLEMS]]


def _problem(item: ErrorDetails, model: type[BaseModel]) -> dict[str, str]:
    path = [str(part) for part in item["loc"] if part != "[key]"]
    context = item.get("ctx", {})
    match item["type"]:
        case "extra_forbidden":
            problem = _unknown(path, model)
        case "misplaced":
            path += context["field"].split("/")
            problem = context["problem"]
        case "value_error":
            problem = str(context["error"])
        case "url_parsing":
            problem = f"is no valid URL: {context['error']}"
        case kind:
            problem = _IN_WORDS.get(kind) or item["msg"].replace("Input should be", "has to be")
    return {"path": "/".join(path), "problem": problem}


def _unknown(path: Sequence[str], model: type[BaseModel]) -> str:
    """Return what to say about a field that is not there: which one was probably meant."""
    *parents, name = path
    wanted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    siblings = [field for field, _ in _fields(_at(model, parents))]
    near = get_close_matches(wanted, siblings, n=1)
    if not near:
        near = [deep for deep in _paths(model) if deep.rpartition("/")[2] == wanted][:1]
    return f"unknown field; did you mean `{near[0]}`?" if near else "unknown field"


def _at(model: type[BaseModel] | None, path: Sequence[str]) -> type[BaseModel] | None:
    """Return the model that a path leads to; the keys of an object of models are any."""
    for part in path:
        if model is not None and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    return model


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, annotation in _fields(model):
        yield prefix + name
        if (inner := _model_in(annotation)) is not None:
            names = "NAME/" if annotation is not inner else ""
            yield from _paths(inner, f"{prefix}{name}/{names}")


def _fields(model: type[BaseModel] | None) -> list[tuple[str, Any]]:
    return [(name, it.annotation) for name, it in model.model_fields.items()] if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((it for arg in get_args(annotation) if (it := _model_in(arg))), None)
