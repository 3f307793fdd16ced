"""OpenAPI documents: which are served, and with which tools; nothing in them is ever fetched."""

from __future__ import annotations

import copy
import json
import os
from io import FileIO
from typing import Any

import pytest

from compose.openapi_import import definition_from_openapi
from registry import openapi
from registry.definitions import Delivery, content_digest, parse_definition
from registry.errors import Code, FleetError
from registry.openapi import choose
from registry.tools import delivery_of, tool_version
from tests.requirements import requirement
from tests.shop import DOCUMENT, document, shop_definition
from workers.exchange import Exchange
from workers.judge import Facts, judge
from workers.openapi_document import to_convert
from workers.openapi_wire import Brief, tell_failure

Change = dict[str, Any]
UNUSED = {"$ref": "#/components/schemas/Unused"}


def refused(definition: dict[str, Any]) -> dict[str, str]:
    """Return the one problem that a definition is refused for."""
    with pytest.raises(FleetError) as caught:
        parse_definition(definition)
    assert caught.value.code is Code.INVALID_DEFINITION
    (problem,) = caught.value.details["problems"]
    return problem  # type: ignore[no-any-return]


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """Return the definition of a shop whose document has something else at a place."""
    definition = shop_definition()
    place = definition["openapi"]["document"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return definition


# -- definitions


@requirement("openapi:definition")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"openapi": None}, "transport openapi needs the API's document"),
        ({"url": None}, "transport openapi needs a url"),
        ({"url": "http://127.0.0.1/v1?key=1"}, "takes no query or fragment"),
        ({"command": "true"}, "takes a url, not a command"),
        ({"credentials": {"inject": "env", "name": "T"}}, "inject: env does not fit"),
        ({"credentials": {"inject": "meta", "name": "t"}}, "meta does not fit"),
        ({"sandbox": {"network": False}}, "has to be true"),
        ({"transport": "http"}, "transport http takes no openapi"),
        ({"transport": "stdio", "url": None, "command": "true"}, "transport stdio takes no"),
    ],
)
def test_an_api_is_defined_by_its_document_and_its_url_and_nothing_else(
    change: Change, problem: str
) -> None:
    assert problem in refused({**shop_definition(), **change})["problem"]


@requirement("openapi:definition")
def test_a_document_is_needed() -> None:
    definition = shop_definition()
    del definition["openapi"]["document"]
    assert refused(definition) == {"path": "openapi/document", "problem": "it is missing"}


@requirement("openapi:refusals")
@pytest.mark.parametrize(
    ("definition", "path", "problem"),
    [
        (changed("openapi", to=None), "openapi", "no OpenAPI document"),
        (changed("openapi", to="3.2.0"), "openapi", "OpenAPI 3.2.0 is not served"),
        (changed("swagger", to="2.0"), "swagger", "Swagger 2.0 is not served"),
        (changed("paths", to={}), "paths", "no operations"),
        (changed("paths", to=[]), "paths", "not an object"),
        (changed("paths", "orders", to={}), "paths/orders", "begins with /"),
        (
            changed("paths", "/orders", "get", "operationId", to=7),
            "paths/~1orders/get/operationId",
            "not a name",
        ),
        (
            changed("paths", "/orders/{orderId}", "parameters", to=[]),
            "paths/~1orders~1{orderId}/get",
            "{orderId} is not among its parameters",
        ),
        (
            changed("paths", "/wait", "get", "parameters", 0, "in", to="body"),
            "paths/~1wait/get/parameters/0",
            "in one of",
        ),
        (
            changed("components", "schemas", "Order", "properties", "gift", to={"$ref": "x.json"}),
            "components/schemas/Order/properties/gift/$ref",
            "nothing is fetched",
        ),
        (
            changed("paths", "/orders", "parameters", 0, to={"$ref": "http://evil.example/p"}),
            "paths/~1orders/parameters/0/$ref",
            "nothing is fetched",
        ),
        (
            changed("components", "schemas", "Gift", to={"$ref": "#/components/schemas/Gone"}),
            "components/schemas/Gift/$ref",
            "does not exist",
        ),
        (
            changed("components", "schemas", "Gift", to={"$ref": "#/paths/~1wait/get"}),
            "components/schemas/Gift/$ref",
            "not among the document's components",
        ),
        (changed("info", "x", to="y" * 2_000_000), "", "larger than 2000000 bytes"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_place(
    definition: dict[str, Any], path: str, problem: str
) -> None:
    found = refused(definition)
    assert found["path"] == "/".join(["openapi/document", *([path] if path else [])])
    assert problem in found["problem"]


@requirement("openapi:refusals")
def test_a_document_without_end_is_refused() -> None:
    endless: dict[str, Any] = {}
    for _ in range(300):
        endless = {"not": endless}
    found = refused(changed("components", "schemas", "Gift", to=endless))
    assert found["problem"] == "it is nested too deeply"


@requirement("openapi:refusals")
def test_more_operations_than_can_be_listed_are_refused_until_fewer_are_included() -> None:
    one = DOCUMENT["paths"]["/numbers"]["get"]
    many = {f"/n/{n}": {"get": {**one, "operationId": f"n{n}"}} for n in range(1001)}
    definition = shop_definition(openapi={"document": document(paths=many)})
    assert "1001 operations, more than 1000" in refused(definition)["problem"]
    definition["openapi"]["exclude"] = ["n1000"]
    assert parse_definition(definition)


@requirement("openapi:refusals")
def test_references_in_data_mean_nothing() -> None:
    order = copy.deepcopy(DOCUMENT["components"]["schemas"]["Order"])
    order["example"] = {"$ref": "http://example.com/anything"}
    order["properties"]["$ref"] = {"type": "string"}
    assert parse_definition(changed("components", "schemas", "Order", to=order))


@requirement("openapi:refusals")
def test_a_pattern_may_name_the_nul_character() -> None:
    text = {"type": "string", "pattern": "^[^\\u0000]*$"}
    assert parse_definition(changed("components", "schemas", "Gift", to=text))
    with pytest.raises(FleetError, match="NUL"):
        parse_definition(changed("components", "schemas", "Gift", to={"pattern": "\0"}))


# -- names, and which operations are tools


@requirement("openapi:names")
def test_tools_are_named_by_their_operations_ids_else_by_method_and_path() -> None:
    names = {it.label: it.name for it in choose(DOCUMENT)}
    assert names["GET /orders"] == "orders_list"
    assert names["GET /orders/{orderId}"] == "get_orders_orderId"


@requirement("openapi:names")
def test_a_name_that_is_too_long_is_cut_and_stays_its_own() -> None:
    one = DOCUMENT["paths"]["/numbers"]["get"]
    paths = {f"/{n}": {"get": {**one, "operationId": "x" * 200 + n}} for n in "ab"}
    names = {it.name for it in choose(document(paths=paths))}
    assert [len(name) for name in names] == [128, 128]


@requirement("openapi:names")
def test_two_operations_that_would_be_one_tool_are_both_named() -> None:
    found = refused(changed("paths", "/wait", "get", "operationId", to="orders list"))
    assert found["path"] == "openapi/document/paths/~1wait/get"
    assert "GET /orders and GET /wait would both be tool 'orders_list'" in found["problem"]


@requirement("openapi:chosen")
@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (["orders/list"], [], {"orders_list"}),
        (["GET /orders*"], [], {"orders_list", "get_orders_orderId"}),
        (["orders/*"], ["DELETE *", "PUT *"], {"orders_list", "orders_create", "orders_change"}),
    ],
)
def test_operations_are_chosen_by_id_or_by_method_and_path(
    include: list[str], exclude: list[str], chosen: set[str]
) -> None:
    assert {it.name for it in choose(DOCUMENT, include, exclude)} == chosen


@requirement("openapi:chosen")
@pytest.mark.parametrize(
    ("how", "path"),
    [
        ({"include": ["wait", "wiat"]}, "openapi/include/1"),
        ({"exclude": ["DELETE /order/*"]}, "openapi/exclude/0"),
        ({"exclude": ["*"]}, "openapi/exclude"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(how: Change, path: str) -> None:
    assert refused(shop_definition(openapi=how))["path"] == path


# -- what is converted


def converted(*, own: frozenset[str] = frozenset(), **choice: Any) -> dict[str, Any]:
    operations = choose(DOCUMENT, **choice)
    return to_convert(DOCUMENT, operations, own_headers=own, with_results=False)


@requirement("openapi:chosen")
def test_only_what_the_chosen_operations_need_is_converted() -> None:
    narrow = converted(include=["orders/create"])
    assert list(narrow["paths"]) == ["/orders"]
    assert set(narrow["components"]) == {"schemas"}
    assert set(narrow["components"]["schemas"]) == {"Order", "Gift"}
    assert not converted(include=["wait"])["components"]


@requirement("openapi:chosen")
@pytest.mark.parametrize("name", ["parameters", "properties", "default", "example", "x-y", "$ref"])
def test_what_is_needed_is_found_under_any_name(name: str) -> None:
    definition = changed(
        "components", "schemas", "Gift", to={"properties": {name: {"properties": {name: UNUSED}}}}
    )
    whole = definition["openapi"]["document"]
    kept = definition_from_openapi(whole, name="shop", include=["orders/create"])
    assert "Unused" in kept["openapi"]["document"]["components"]["schemas"]


@requirement("openapi:chosen")
@pytest.mark.parametrize("target", ["Unused", "#/components/schemas/Unused"])
def test_what_a_discriminator_names_is_needed(target: str) -> None:
    gift = {"discriminator": {"propertyName": "kind", "mapping": {"a": target, "b": "gone.json"}}}
    whole = changed("components", "schemas", "Gift", to=gift)["openapi"]["document"]
    kept = definition_from_openapi(whole, name="shop", include=["orders/create"])
    assert "Unused" in kept["openapi"]["document"]["components"]["schemas"]


@requirement("openapi:requests")
def test_a_body_is_json_where_the_api_takes_json_whatever_is_named_first() -> None:
    body = converted(include=["orders/create"])["paths"]["/orders"]["post"]["requestBody"]
    assert list(body["content"]) == ["application/json"]


@requirement("openapi:credentials")
def test_headers_that_the_definition_sets_are_no_arguments() -> None:
    def headers(*own: str) -> set[str]:
        narrow = converted(include=["orders/list"], own=frozenset(own))
        parameters = narrow["paths"]["/orders"]["get"]["parameters"]
        return {it["name"] for it in parameters if it["in"] == "header"}

    assert headers() == {"X-Trace"}
    assert headers("x-trace") == set()


# -- what a worker and the program that serves an API tell each other


@requirement("openapi:definition")
def test_the_program_reads_what_to_serve_and_nothing_of_what_comes_after() -> None:
    openapi = parse_definition(shop_definition()).openapi
    assert openapi is not None
    headers = {"authorization": "Bearer hush"}
    brief = Brief(
        "shop", "http://localhost/v1", ("::1/128",), openapi, headers, frozenset(headers), 5, 1_000
    )
    reading, writing = os.pipe()
    with FileIO(reading) as stdin:
        with FileIO(writing, "w") as worker:
            worker.write(brief.encode() + b"{}\n")
        assert Brief.read(stdin) == brief
        assert stdin.read() == b"{}\n"
        with pytest.raises(EOFError):
            Brief.read(stdin)
    assert "hush" not in repr(brief)


@requirement("openapi:unreachable")
@pytest.mark.parametrize(("api", "code"), [(True, Code.UPSTREAM_UNREACHABLE), (False, None)])
def test_only_our_own_program_says_how_its_calls_are_to_be_judged(
    api: bool, code: Code | None
) -> None:
    told = tell_failure(FleetError(Code.UPSTREAM_UNREACHABLE, "no way"), dispatched=False)
    facts = Facts(
        server="shop", what="wait", seen=Exchange(sent=True), stdio=True, api=api, era="modern",
        protocol_version="2026-07-28", max_result_bytes=1_000, endless_line=False, unread=None,
        evidence={}, scrub=str,
    )  # fmt: skip
    error = judge(told, facts).tell(facts)
    assert (error.code, error.dispatched) == (code or Code.TOOL_REFUSED, not api)


# -- delivery


@requirement("openapi:delivery")
@pytest.mark.parametrize(
    ("hints", "rule", "delivery"),
    [
        ({"readOnlyHint": True}, {}, Delivery.READ),
        ({"readOnlyHint": False, "idempotentHint": True}, {}, Delivery.IDEMPOTENT),
        ({"readOnlyHint": False, "idempotentHint": False}, {}, Delivery.WRITE),
        ({"readOnlyHint": True}, {"delivery": "write"}, Delivery.WRITE),
    ],
)
def test_an_apis_methods_decide_the_delivery_class_unless_the_operator_does(
    hints: dict[str, bool], rule: dict[str, str], delivery: Delivery
) -> None:
    definition = parse_definition(shop_definition(tools={"wait": rule}))
    tool = tool_version({"name": "wait", "inputSchema": {}, "annotations": hints})
    assert delivery_of(definition, tool) is delivery


# -- content


@requirement("openapi:versions")
def test_another_document_is_other_content() -> None:
    one = parse_definition(shop_definition())
    same = parse_definition(json.loads(json.dumps(shop_definition(), sort_keys=True)))
    other = parse_definition(changed("info", "version", to="1.5.0"))
    assert content_digest(one) == content_digest(same) != content_digest(other)


# -- from a file


@requirement("openapi:import")
def test_a_document_becomes_a_definition_with_its_first_absolute_url_written_out() -> None:
    definition = definition_from_openapi(document(), name="shop", tools={"wait": {"hidden": True}})
    assert definition["url"] == "https://eu.shop.example/v1"
    assert definition["openapi"]["document"] == DOCUMENT
    assert parse_definition(definition).tools["wait"].hidden


@requirement("openapi:import")
def test_what_is_left_out_of_a_definition_is_not_kept_in_it() -> None:
    definition = definition_from_openapi(
        document(), name="shop", url="https://shop.example/", include=["orders/list"]
    )
    kept = definition["openapi"]["document"]
    assert list(kept["paths"]) == ["/orders"]
    assert set(kept["components"]["schemas"]) == {"Order", "Gift"}
    assert set(kept["components"]["parameters"]) == {"Trace"}
    assert "delete" not in json.dumps(kept)


@requirement("openapi:import")
def test_a_document_too_large_to_keep_is_kept_as_far_as_it_is_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openapi, "MAX_DOCUMENT_BYTES", 2_500)
    with pytest.raises(FleetError, match="larger than"):
        definition_from_openapi(document(), name="shop")
    assert definition_from_openapi(document(), name="shop", include=["orders/list"])


@requirement("openapi:import")
def test_what_yaml_makes_of_a_document_is_json_afterwards() -> None:
    read = document()
    read["info"]["x-since"] = {2024: True}
    read["paths"]["/wait"]["get"]["responses"] = {200: {"description": "it"}}
    kept = definition_from_openapi(read, name="shop")["openapi"]["document"]
    assert kept["paths"]["/wait"]["get"]["responses"] == {"200": {"description": "it"}}


@requirement("openapi:import")
@pytest.mark.parametrize(
    ("read", "path"),
    [
        (["no", "document"], "openapi/document"),
        (document(servers=[{"url": "/v1"}, {"url": "{scheme}://x"}]), "openapi/document/servers"),
        (document(servers=None), "openapi/document/servers"),
        (document(swagger="2.0"), "openapi/document/swagger"),
        (document(components=[]), "openapi/document/components"),
    ],
)
def test_a_document_that_makes_no_definition_is_refused_with_its_place(
    read: Any, path: str
) -> None:
    with pytest.raises(FleetError) as caught:
        definition_from_openapi(read, name="shop")
    assert caught.value.code is Code.INVALID_DEFINITION
    assert [it["path"] for it in caught.value.details["problems"]] == [path]
