"""When a version's tools are listed again; time is the test's."""

from __future__ import annotations

import pytest

from tests.requirements import requirement
from tests.unit.test_pool import FakeClock
from workers.lending import SessionKey
from workers.listening import pause_s
from workers.watching import LONGEST_S, STRANGE_LIMIT, STRANGE_S, ListingWatch

KEY = SessionKey(1)
OTHER = SessionKey(1, "acme")


class Story:
    """A watch in virtual time, whose listings end as they are told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.told = 0
        self.watch = ListingWatch(self._tell, clock=self.clock)

    def _tell(self) -> None:
        self.told += 1

    def due(self, *, stale: bool = False, failed: bool = False) -> bool:
        return self.watch.due(stale=stale, failed=failed)

    def list(
        self, introduction: str = "v1", *, changed: bool = False, key: SessionKey = KEY
    ) -> None:
        self.watch.begin()
        self.watch.succeeded(introduction, key, changed=changed)

    def listings_in(self, seconds: float, *, changed: bool = False) -> int:
        """Return how many listings are taken while there is news all the time."""
        count = 0
        for _ in range(int(seconds * 10)):
            self.clock.now_s += 0.1
            self.watch.heard()
            if self.due(stale=True):
                self.list(changed=changed)
                count += 1
        return count


@pytest.fixture
def story() -> Story:
    story = Story()
    story.list(changed=True)
    story.clock.now_s += 100
    return story


@requirement("listing:answers-news")
def test_a_worker_that_starts_lists_once_for_nobody_listened_before() -> None:
    story = Story()
    assert story.due()
    story.list()
    story.clock.now_s += 100
    assert not story.due()


@requirement("listing:answers-news")
def test_news_is_due_at_once_and_told_once(story: Story) -> None:
    for _ in range(1000):
        story.watch.heard()
    assert (story.due(), story.told) == (True, 1)
    story.list()
    story.clock.now_s += 100
    assert not story.due()


@requirement("listing:answers-news")
def test_news_that_comes_during_a_listing_is_answered_by_the_next_one(story: Story) -> None:
    story.watch.heard()
    story.watch.begin()
    story.watch.heard()
    story.watch.succeeded("v1", KEY, changed=True)
    assert story.watch.pending
    story.clock.now_s += 1
    assert story.due()


@requirement("listing:answers-news")
def test_a_listing_that_failed_is_owed_whatever_the_record_says(story: Story) -> None:
    story.watch.heard()
    story.watch.begin()
    story.clock.now_s += LONGEST_S
    assert story.due(stale=False)


@requirement("listing:answers-news")
def test_the_error_of_a_failed_listing_stays_on_record_until_one_succeeds(story: Story) -> None:
    story.watch.heard()
    story.watch.begin()
    told = story.told
    story.watch.heard()
    assert story.told == told


@requirement("listing:paced")
def test_while_everything_changes_all_the_time_it_is_listed_once_a_second(story: Story) -> None:
    assert 50 <= story.listings_in(60, changed=True) <= 67


@requirement("listing:paced")
def test_while_nothing_changes_listings_become_rare(story: Story) -> None:
    assert story.listings_in(60) <= 12
    assert story.watch.pause_s == LONGEST_S


@requirement("listing:paced")
def test_a_change_makes_listings_prompt_again(story: Story) -> None:
    story.listings_in(60)
    story.clock.now_s += LONGEST_S
    story.list(changed=True)
    story.watch.heard()
    story.clock.now_s += 1
    assert story.due()


@requirement("listing:paced")
def test_so_does_silence(story: Story) -> None:
    story.listings_in(60)
    story.clock.now_s += 61
    story.list()
    story.watch.heard()
    story.clock.now_s += 1
    assert story.due()


@requirement("listing:paced")
def test_listings_that_fail_become_rare_too(story: Story) -> None:
    begun = 0
    for _ in range(600):
        story.clock.now_s += 0.1
        if story.due(stale=True, failed=True):
            story.watch.begin()
            begun += 1
    assert begun <= 12


@requirement("listing:paced")
def test_a_request_by_hand_waits_for_no_pause(story: Story) -> None:
    story.listings_in(60)
    story.clock.now_s += LONGEST_S
    story.list()
    story.clock.now_s += 1
    assert story.due(stale=True)
    story.watch.begin()  # and it fails
    story.clock.now_s += 1
    assert not story.due(stale=True, failed=True)
    assert story.due(stale=True, failed=False)


@requirement("listing:introductions")
def test_a_server_that_introduces_itself_otherwise_is_news_once(story: Story) -> None:
    story.watch.met("v1", KEY)
    assert not story.due()
    story.watch.met("v2", KEY)
    assert story.due()
    story.list("v2")
    story.clock.now_s += 100
    story.watch.met("v2", KEY)
    story.watch.met("v1", KEY)  # the same tools were listed by either
    assert not story.due()


@requirement("listing:introductions")
def test_after_other_tools_were_listed_what_it_was_before_is_news_again(story: Story) -> None:
    story.watch.met("v2", KEY)
    story.list("v2", changed=True)
    story.clock.now_s += 100
    story.watch.met("v1", KEY)
    assert story.due()


@requirement("listing:introductions")
def test_what_was_started_before_is_outdated_until_it_is_listed(story: Story) -> None:
    assert not story.watch.outdated("v1")
    story.watch.met("v2", KEY)
    assert (story.watch.outdated("v1"), story.watch.outdated("v2")) == ("outdated", "")
    story.list("v2")
    assert not story.watch.outdated("v1")


@requirement("listing:introductions")
def test_one_that_comes_during_a_listing_is_listed_by_the_next_one(story: Story) -> None:
    story.watch.begin()
    story.watch.met("v2", KEY)
    story.watch.succeeded("v1", KEY, changed=False)
    assert (story.watch.pending, story.watch.outdated("v1")) == (True, "outdated")


@requirement("listing:introductions")
def test_what_it_says_to_another_holder_is_no_news(story: Story) -> None:
    story.watch.met("for acme", OTHER)
    assert not story.due()
    story.watch.met("v1 too", KEY._replace(generation=7))
    assert story.due()


@requirement("listing:introductions")
def test_a_server_that_says_something_else_each_time_is_not_believed_for_long(
    story: Story,
) -> None:
    for number in range(20):
        story.watch.met(f"it is {number} o'clock", KEY)
        story.clock.now_s += 20
        if story.due():
            story.list(f"it is {number} o'clock")
    assert not story.watch.pending
    assert len(story.watch._strange) == STRANGE_LIMIT
    story.clock.now_s += STRANGE_S
    story.watch.met("it is a new day", KEY)
    assert story.due()


@requirement("listing:renewed")
def test_a_subscription_that_was_lost_is_renewed_soon_and_one_that_was_refused_much_later() -> None:
    lost = [pause_s(n, refused=False, jitter=1.0) for n in range(1, 9)]
    refused = [pause_s(n, refused=True, jitter=1.0) for n in range(1, 9)]
    assert lost == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert refused == [10, 20, 40, 80, 160, 300, 300, 300]
    assert pause_s(10**6, refused=False, jitter=0.0) == 15.0
