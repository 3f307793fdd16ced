"""Approvers are told, by a signed webhook, that calls wait: at least once, or it is said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from compose.embedded import free_port
from registry import calls, notices
from registry.database import Database
from registry.settings import Settings
from tests.approving import decide, gated, waiting_call
from tests.ledger import Ledger, together
from tests.receiving import SECRET, Manner, Receiver, receiving
from tests.requirements import requirement
from tests.serving import serving
from workers import notify
from workers.notify import Notifier

pytestmark = pytest.mark.anyio


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await gated(database)


def steward(ledger: Ledger, url: str, **rest: Any) -> Notifier:
    settings = Settings(
        approval_webhook_url=url,
        approval_webhook_secret=SecretStr(SECRET),
        outbound_networks=("127.0.0.0/8",),
        public_url="https://tools.example.com/",
        **rest,
    )
    return Notifier(settings, ledger.database)


async def tell(ledger: Ledger, url: str) -> None:
    """Tell what is due, as a steward that has just started does."""
    notifier = steward(ledger, url)
    await notifier.tell()
    await notifier.close()


async def due(ledger: Ledger) -> None:
    """Let the pauses between attempts be over."""
    await ledger.sql("UPDATE approval_notices SET due_at = clock_timestamp()")


async def state(ledger: Ledger) -> dict[str, int]:
    return {name: count for name, count in (await notices.counts(ledger.database)).items() if count}


@requirement("approval:notice")
async def test_a_call_that_waits_is_told_of_once_signed_and_without_its_arguments(
    ledger: Ledger, receiver: Receiver
) -> None:
    call_id = await waiting_call(ledger, arguments={"iban": "DE89370400440532013000"})
    for _ in range(2):
        await tell(ledger, receiver.url)
        await due(ledger)
    (told,) = receiver.got
    assert told.is_signed()
    assert not told.is_signed("whsec_b3RoZXI=")
    data = told.said["data"]
    assert told.said["type"] == "approval.waiting"
    assert (data["call_id"], data["tenant"], data["tool"], data["requested_by"]) == (
        call_id, "acme", "demo_gate_pay", "agent",
    )  # fmt: skip
    assert data["link"] == f"https://tools.example.com/v1/approvals/{call_id}"
    assert data["expires_at"] > told.said["timestamp"]
    assert b"DE89" not in told.body
    assert await state(ledger) == {"delivered": 1}


@requirement("approval:notice")
async def test_a_call_that_needs_no_approval_is_not_told_of(
    database: Database, receiver: Receiver
) -> None:
    ledger = await Ledger.open(database)
    await ledger.submit()
    await tell(ledger, receiver.url)
    assert receiver.got == []
    assert await state(ledger) == {}


@requirement("approval:notice")
@pytest.mark.parametrize("manner", ["fails", "slow", "redirects", "breaks off", "down"])
async def test_a_receiver_that_fails_is_told_again_until_it_has_heard(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, manner: Manner | str
) -> None:
    monkeypatch.setattr(notify, "PATIENCE_S", 0.2)
    await waiting_call(ledger)
    url = f"http://127.0.0.1:{free_port()}/" if manner == "down" else receiver.url
    if manner != "down":
        receiver.manner = manner  # type: ignore[assignment]
    await tell(ledger, url)
    assert await state(ledger) == {"failing": 1}
    (problem,) = await ledger.sql("SELECT problem FROM approval_notices")
    assert problem[0]
    assert "token" not in problem[0], "the address may hold a secret"
    receiver.manner = "ok"
    await tell(ledger, receiver.url)
    assert await state(ledger) == {"failing": 1}, "it is given a pause"
    await due(ledger)
    await tell(ledger, receiver.url)
    assert await state(ledger) == {"delivered": 1}
    assert {it.path for it in receiver.got} == {"/hook?token=in-the-url"}
    assert len({it.headers["webhook-id"] for it in receiver.got}) == 1
    assert all(it.is_signed() for it in receiver.got)


@requirement("approval:notice")
async def test_a_receiver_that_never_hears_is_given_up_and_that_is_said(
    database: Database, redis_url: str, receiver: Receiver
) -> None:
    ledger = await gated(database)
    call_id = await waiting_call(ledger)
    receiver.manner = "fails"
    for _ in range(notices.MOST_ATTEMPTS + 2):
        await tell(ledger, receiver.url)
        await due(ledger)
    assert len(receiver.got) == notices.MOST_ATTEMPTS
    assert await ledger.trail(call_id) == ["awaiting_approval", "notice_given_up"]
    async with serving(database, redis_url) as api:
        figures = (await api.http.get("/metrics")).text
        assert 'toolfleet_approval_notices{state="given_up"} 1.0' in figures
        findings = (await api.http.get("/v1/checkup")).json()["findings"]
        assert [it["state"] for it in findings if it["check"] == "approvals"] == ["warning"]


@requirement("approval:notice")
def test_the_pauses_grow_to_an_hour_and_end_after_hours() -> None:
    pauses = [notices.pause_after(attempt) for attempt in range(1, notices.MOST_ATTEMPTS + 1)]
    known = [pause for pause in pauses if pause is not None]
    assert pauses[-1] is None
    assert known == sorted(known)
    assert (known[0], known[-1]) == (timedelta(seconds=1), timedelta(hours=1))
    assert timedelta(hours=6) < sum(known, timedelta(0)) < timedelta(hours=12)


@requirement("approval:notice")
async def test_several_stewards_tell_of_each_call_once(ledger: Ledger, receiver: Receiver) -> None:
    for _ in range(30):
        await waiting_call(ledger)
    stewards = [steward(ledger, receiver.url) for _ in range(4)]
    for _ in range(2):
        await together(*(one.tell() for one in stewards))
    await together(*(one.close() for one in stewards))
    told = [it.said["data"]["call_id"] for it in receiver.got]
    assert len(told) == len(set(told)) == 30


@requirement("approval:notice")
async def test_a_call_that_waits_no_more_is_not_told_of_and_leaves_no_notice(
    ledger: Ledger, receiver: Receiver
) -> None:
    decided, stopped = await waiting_call(ledger), await waiting_call(ledger)
    await decide(ledger, decided)
    await calls.stop(ledger.database, [stopped], actor="agent")
    await tell(ledger, receiver.url)
    assert receiver.got == []
    await notices.sweep(ledger.database)
    assert await ledger.sql("SELECT 1 FROM approval_notices") == []


@requirement("approval:notice")
async def test_a_slow_receiver_is_left_in_time(
    ledger: Ledger, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PATIENCE_S", 0.2)
    receiver.manner = "slow"
    for _ in range(10):
        await waiting_call(ledger)
    notifier = steward(ledger, receiver.url)
    await notifier.tell()  # side by side: the test would time out otherwise
    await notifier.close()
    assert await state(ledger) == {"failing": 10}


@requirement("approval:notice")
@pytest.mark.parametrize("secret", ["", "whsec_no base64!"])
async def test_a_webhook_without_a_secret_that_can_sign_is_refused(
    database: Database, secret: str
) -> None:
    settings = Settings(
        approval_webhook_url="https://example.com", approval_webhook_secret=SecretStr(secret)
    )
    with pytest.raises(ValueError, match="TOOLFLEET_APPROVAL_WEBHOOK_SECRET"):
        Notifier(settings, database)


@requirement("approval:notice")
def test_a_signature_is_what_the_specification_says() -> None:
    key = notify.webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = notify.signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@requirement("approval:notice")
async def test_without_a_webhook_calls_wait_and_nothing_is_told(ledger: Ledger) -> None:
    await waiting_call(ledger)
    notifier = Notifier(Settings(), ledger.database)
    await notifier.tell()
    assert await state(ledger) == {"new": 1}
