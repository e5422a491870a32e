"""The page Review, with traces and reviews in a real Phoenix."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from starlette.testclient import TestClient

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.auth import Access, Role, User
from autoopt_pipeline.dashboard.pages import reviews
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import DrawnTrace
from autoopt_pipeline.registry.rollout_records import indexed_rollouts, record_analysis
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.reviews.answers import CANDIDATE as CANDIDATE_KEY
from autoopt_pipeline.reviews.answers import NOTE
from autoopt_pipeline.reviews.queue import ReviewQueue, open_queue
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.span_contract import ROUTING, NewAnnotation
from autoopt_pipeline.tenants.config import RolloutPolicy
from autoopt_pipeline.tenants.store import read_config, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.dashboard_client import csrf, text_of, visiting
from tests.support.phoenix_traffic import AGENTS, requests
from tests.support.review_queues import (
    CANDIDATE,
    INCUMBENT,
    ask_for_rollout,
    await_reviews,
    disagreement,
    logged,
    reviews_of,
)
from tests.support.stored_programs import bring, made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure

NAMES = ("marta", "rita", "rolf", "vera", "olga")
TOKENS = {hashlib.sha256(name.encode()).hexdigest(): name for name in NAMES}
ROLES = {"marta": Role.OPERATOR, "vera": Role.VIEWER}
PEOPLE = {name: User(name, ROLES.get(name, Role.REVIEWER)) for name in NAMES} | {
    "olga": User("olga", Role.REVIEWER, ("elsewhere",))
}
UNREVIEWED = TrafficProfile(reviewed=0, complains=0, malformed=0)
ACCESS = Access(None, PEOPLE, {digest: PEOPLE[name] for digest, name in TOKENS.items()})


@pytest.fixture
def here(store: TenantConfigStore, tenant: str) -> str:
    configure(store, tenant)
    return f"/review/{tenant}/routing"


@pytest.fixture
def browser(home: Path, here: str) -> Iterator[TestClient]:
    """Of the only user, at a dashboard without rules."""
    with visiting(home) as visitor:
        yield visitor


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def asked(page: httpx.Response) -> str:
    """The trace that a page asks about; empty if it asks nothing."""
    found = re.search(r'name="trace" value="([0-9a-f]{16})"', page.text)
    return found[1] if found else ""


def choices(page: httpx.Response) -> list[str]:
    """The answers on the buttons of the programs, in the order of the page."""
    return re.findall(r'class="answer" name="answer" value="([^"]*)"', page.text)


def give(
    browser: TestClient, page: httpx.Response, answer: str, *, headers: Mapping[str, str] | None = None, **fields: str
) -> httpx.Response:
    """Answer the question of a page, and return what the browser gets."""
    form = {"trace": asked(page), "answer": answer, **fields}
    if not headers:
        form["csrf"] = csrf(page)
    return browser.post(page.url.path, data=form, headers=headers)


def test_a_queue_is_reviewed_to_its_end(
    home: Path, phoenix: Phoenix, tenant: str, here: str, browser: TestClient
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 3)
    listed = text_of(browser.get("/review"))
    assert f"{tenant} routing 0 of 3 reviewed 2 more may decide, in about 20 s" in listed
    page = browser.get(here)
    assert "1 of 3, 2 more may decide, in about 20 s" in text_of(page)
    assert "question number" in text_of(page)
    assert sorted(choices(page)) == sorted(AGENTS)
    first = asked(page)
    assert (done := give(browser, page, AGENTS[0])).status_code == 303
    assert done.headers["location"] == here
    page = browser.get(here)
    assert "2 of 3, 1 more may decide, in about 10 s" in text_of(page)
    assert give(browser, page, "ambiguous").status_code == 303
    page = browser.get(here)
    assert "3 of 3, enough for a decision" in text_of(page)
    assert give(browser, page, "unsure", note="it names nothing").status_code == 303
    page = browser.get(here)
    assert "All 3 are reviewed The next run decides" in text_of(page)
    assert f'href="/tenants/{tenant}/modules/routing/run"' in page.text
    assert "Nothing waits for reviews" in text_of(browser.get("/review"))
    stored = reviews_of(phoenix, tenant, drawn)
    assert [len(stored[trace.span_id]) for trace in drawn] == [1, 1, 1]
    assert sorted(review.label or "" for (review,) in stored.values()) == sorted([AGENTS[0], "ambiguous", "unsure"])
    (of_first,) = stored[first]
    assert (of_first.label, of_first.kind, of_first.metadata[CANDIDATE_KEY]) == (AGENTS[0], "HUMAN", CANDIDATE)
    assert [review.metadata[NOTE] for (review,) in stored.values() if NOTE in review.metadata] == ["it names nothing"]


def test_the_list_asks_phoenix_only_about_modules_that_await_reviews(
    home: Path,
    phoenix: Phoenix,
    store: TenantConfigStore,
    tenant: str,
    browser: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await_reviews(home, phoenix, tenant, 2)
    configure(store, f"{tenant}-other")
    opened = []

    def opening(connections: Connections, *place: str) -> ReviewQueue | None:
        opened.append(place)
        return open_queue(connections, *place)

    monkeypatch.setattr(reviews, "open_queue", opening)
    assert f"{tenant} routing 0 of 2 reviewed" in text_of(browser.get("/review"))
    assert opened == [(tenant, "routing")]


def test_the_list_begins_with_what_the_fewest_reviews_decide(
    home: Path, phoenix: Phoenix, store: TenantConfigStore, tenant: str, browser: TestClient
) -> None:
    configure(store, f"{tenant}-long")
    await_reviews(home, phoenix, tenant, 3, needed=3)
    await_reviews(home, phoenix, f"{tenant}-long", 5, needed=1)
    listed = text_of(browser.get("/review"))
    assert listed.index("1 more may decide, in about 10 s") < listed.index("3 more may decide, in about 30 s")


def test_another_label_can_be_chosen(
    home: Path, phoenix: Phoenix, store: TenantConfigStore, tenant: str, browser: TestClient, here: str
) -> None:
    config, version = read_config(store, tenant)
    agents = [*config.agents, config.agents[0].model_copy(update={"name": "help_agent", "description": "helps <all>"})]
    write_config(store, config.model_copy(update={"agents": agents}), expected_version=version)
    drawn = await_reviews(home, phoenix, tenant, 1)
    page = browser.get(here)
    assert "help_agent helps &lt;all&gt;" in text_of(page)
    assert give(browser, page, "help_agent").status_code == 303
    assert reviews_of(phoenix, tenant, drawn)[drawn[0].span_id][0].label == "help_agent"


def test_undo_goes_back_and_the_new_answer_replaces_the_old(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 3)
    assert 'id="undo"' not in browser.get(here).text
    spans = []
    for _ in range(2):
        page = browser.get(here)
        spans.append(asked(page))
        give(browser, page, AGENTS[0])
    third = browser.get(here)
    assert f'href="{here}?trace={spans[1]}"' in third.text
    second = browser.get(f"{here}?trace={spans[1]}")
    assert (asked(second), "A new answer replaces yours" in text_of(second)) == (spans[1], True)
    assert "2 of 3" in text_of(second)
    assert f'href="{here}?trace={spans[0]}"' in second.text
    assert 'id="undo"' not in browser.get(f"{here}?trace={spans[0]}").text
    give(browser, second, AGENTS[1])
    assert asked(browser.get(here)) == asked(third)
    stored = reviews_of(phoenix, tenant, drawn)
    assert [[review.label for review in stored[span]] for span in spans] == [[AGENTS[0]], [AGENTS[1]]]


def test_only_what_one_has_answered_here_can_be_taken_back(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 2)
    first = asked(browser.get(here))
    (other,) = {trace.span_id for trace in drawn} - {first}
    assert asked(browser.get(f"{here}?trace={other}")) == first


def test_no_page_tells_which_program_gave_which_answer(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 24)
    orders = []
    for _ in drawn:
        page = browser.get(here)
        for word in (CANDIDATE, INCUMBENT, "incumbent", "candidate", "baseline"):
            assert word not in page.text
        orders.append(choices(page))
        give(browser, page, AGENTS[0])
    first = [order[0] for order in orders]
    # Each program is first in about half of them; by chance, 4 to 20 of 24 in all but a few in ten thousand.
    assert 4 <= first.count(AGENTS[0]) <= 20


def test_two_reviewers_never_get_the_same_question_at_the_same_time(
    home: Path, phoenix: Phoenix, tenant: str, here: str
) -> None:
    await_reviews(home, phoenix, tenant, 5)
    with visiting(home, ACCESS) as browser:
        rolf, rita = browser.get(here, headers=as_("rolf")), browser.get(here, headers=as_("rita"))
        for _ in range(2):
            assert "" != asked(rolf) != asked(rita) != ""
            assert asked(browser.get(here, headers=as_("rolf"))) == asked(rolf)  # it stays with who has it
            give(browser, rolf, AGENTS[0], headers=as_("rolf"))
            rolf = browser.get(here, headers=as_("rolf"))
            give(browser, rita, AGENTS[0], headers=as_("rita"))
            rita = browser.get(here, headers=as_("rita"))
        assert (asked(rolf) != "", asked(rita)) == (True, "")
        assert "Others look at the last questions 1 of 5 wait" in text_of(rita)
        give(browser, rolf, AGENTS[0], headers=as_("rolf"))
        done = text_of(browser.get(here, headers=as_("rita")))
        assert "All 5 are reviewed" in done
        assert "Run now" not in done


def test_people_who_share_a_name_get_questions_of_their_own(
    home: Path, phoenix: Phoenix, tenant: str, here: str, browser: TestClient
) -> None:
    await_reviews(home, phoenix, tenant, 2)
    mine = asked(browser.get(here))
    browser.cookies.clear()
    theirs = asked(browser.get(here))
    assert "" != mine != theirs != ""


def test_an_answered_question_is_released(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    await_reviews(home, phoenix, tenant, 1)
    claims = ObjectStore(str(home / ".autoopt" / "artifacts")), f"{tenant}/routing/review_claims"
    page = browser.get(here)
    assert len(claims[0].names(claims[1])) == 1
    give(browser, page, AGENTS[0])
    assert claims[0].names(claims[1]) == []


def test_viewers_see_the_list_and_only_reviewers_and_operators_answer(
    home: Path, phoenix: Phoenix, tenant: str, here: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 3)
    with visiting(home, ACCESS) as browser:
        listed = browser.get("/review", headers=as_("vera"))
        assert (f"{tenant} routing 0 of 3" in text_of(listed), here in listed.text) == (True, False)
        form = {"trace": drawn[0].span_id, "answer": AGENTS[0]}
        assert browser.get(here, headers=as_("vera")).status_code == 403
        assert browser.post(here, data=form, headers=as_("vera")).status_code == 403
        assert reviews_of(phoenix, tenant, drawn) == {}
        for name in ("rita", "marta"):
            assert here in browser.get("/review", headers=as_(name)).text
            page = browser.get(here, headers=as_(name))
            assert give(browser, page, AGENTS[0], headers=as_(name)).status_code == 303
        assert browser.get(f"/tenants/{tenant}/modules/routing/run", headers=as_("rita")).status_code == 403
    assert len(reviews_of(phoenix, tenant, drawn)) == 2


def test_a_tenant_that_one_may_not_see_has_no_reviews(home: Path, phoenix: Phoenix, tenant: str, here: str) -> None:
    drawn = await_reviews(home, phoenix, tenant, 1)
    with visiting(home, ACCESS) as browser:
        assert tenant not in browser.get("/review", headers=as_("olga")).text
        form = {"trace": drawn[0].span_id, "answer": AGENTS[0]}
        assert browser.get(here, headers=as_("olga")).status_code == 404
        assert browser.post(here, data=form, headers=as_("olga")).status_code == 404
        assert browser.get(f"/review/{tenant}/nonsense", headers=as_("rita")).status_code == 404
    assert reviews_of(phoenix, tenant, drawn) == {}


def test_a_form_of_another_site_answers_nothing(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 1)
    proof = csrf(browser.get(here))
    form = {"trace": drawn[0].span_id, "answer": AGENTS[0]}
    assert browser.post(here, data=form).status_code == 403
    assert browser.post(here, data=form | {"csrf": "guessed"}).status_code == 403
    foreign = browser.post(here, data=form | {"csrf": proof}, headers={"sec-fetch-site": "cross-site"})
    assert foreign.status_code == 403
    assert reviews_of(phoenix, tenant, drawn) == {}


@pytest.mark.parametrize(
    ("given", "told"),
    [("", "Choose an answer"), ("nobody", "&#39;nobody&#39; is no answer of this module"), ("wrong", "is no answer")],
)
def test_what_is_no_answer_is_refused_beside_the_question(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str, given: str, told: str
) -> None:
    drawn = await_reviews(home, phoenix, tenant, 1)
    page = browser.get(here)
    refused = give(browser, page, given)
    assert (refused.status_code, told in refused.text) == (409, True)
    assert asked(refused) == asked(page)
    assert "question number" in text_of(refused)
    assert reviews_of(phoenix, tenant, drawn) == {}


def test_a_question_that_nobody_asks_any_more_is_told(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str
) -> None:
    await_reviews(home, phoenix, tenant, 1)
    page = browser.get(here)
    form = {"csrf": csrf(page), "trace": "0" * 16, "answer": AGENTS[0]}
    assert browser.post(here, data=form).headers["location"] == here
    assert "Nobody asks that question any more" in text_of(browser.get(here))


def test_a_module_without_a_candidate_has_nothing_to_review(browser: TestClient, here: str) -> None:
    assert "Nothing waits for reviews here" in text_of(browser.get(here))
    assert "Nothing waits for reviews" in text_of(browser.get("/review"))


def test_the_overview_and_the_modules_page_lead_to_the_reviews(
    home: Path, phoenix: Phoenix, tenant: str, here: str
) -> None:
    await_reviews(home, phoenix, tenant, 5, needed=4)
    module = f"/tenants/{tenant}/modules/routing"
    with visiting(home, ACCESS) as browser:
        for page, told in (("/", "4 reviews"), (f"/tenants/{tenant}", "4 reviews"), (module, "5 reviews")):
            seen = browser.get(page, headers=as_("rita"))
            assert f"{told} decide this promotion" in text_of(seen)
            assert "needs reviews" in text_of(seen)
            assert f'href="{here}"' in seen.text
            seen = browser.get(page, headers=as_("vera"))
            assert (f"{told} decide this promotion" in text_of(seen), here in seen.text) == (True, False)


@pytest.fixture
def rollout(home: Path, here: str, tenant: str) -> VersionStore:
    """A rollout of routing that asks for no reviews yet."""
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), tenant, "routing")
    stored_program(artifacts, made_program(tenant, demos=["one"]), 1, active=True)
    bring(artifacts, stored_program(artifacts, made_program(tenant, demos=["two"]), 2), RolloutPolicy())
    return artifacts


def compare(artifacts: VersionStore, drawn: Sequence[DrawnTrace]) -> None:
    """Let the rollout ask about these traces, and the monitor count them."""
    ask_for_rollout(artifacts, drawn)
    files = artifacts._files
    (entry,) = [each for each in indexed_rollouts(files) if each.tenant_id == artifacts.tenant_id]
    record_analysis(files, entry, datetime.now(UTC), to_review=len(drawn))


def test_a_rollout_asks_where_its_two_versions_differ(
    phoenix: Phoenix, tenant: str, browser: TestClient, here: str, rollout: VersionStore
) -> None:
    send_traffic(phoenix, tenant, requests(3, UNREVIEWED))
    drawn = [disagreement(decision) for decision in logged(phoenix, tenant)]
    compare(rollout, drawn)
    for page in ("/", f"/tenants/{tenant}", f"/tenants/{tenant}/modules/routing"):
        seen = browser.get(page)
        assert "3 reviews help to see which of the two versions is better" in text_of(seen)
        assert f'href="{here}"' in seen.text
        assert "decide this promotion" not in seen.text
    assert f"{tenant} routing 0 of 3 reviewed" in text_of(browser.get("/review"))
    newer = [manifest.version for manifest in rollout.versions()][1]
    for _ in drawn:
        page = browser.get(here)
        assert newer not in page.text
        assert give(browser, page, AGENTS[0]).status_code == 303
    done = text_of(browser.get(here))
    assert "All 3 are reviewed The rollout's next analysis counts them" in done.replace("&#39;", "'")
    assert "Run now" not in done
    reviews = reviews_of(phoenix, tenant, drawn)
    assert {review.metadata[CANDIDATE_KEY] for (review,) in reviews.values()} == {newer}


def test_a_candidate_and_a_rollout_share_a_queue_in_which_the_candidate_comes_first(
    home: Path, phoenix: Phoenix, tenant: str, browser: TestClient, here: str, rollout: VersionStore
) -> None:
    *tested, shared = await_reviews(home, phoenix, tenant, 3)
    send_traffic(phoenix, tenant, requests(1, UNREVIEWED, seed=2))
    known = {trace.span_id for trace in (*tested, shared)}
    (only,) = [disagreement(decision) for decision in logged(phoenix, tenant) if decision.span_id not in known]
    compare(rollout, [only, shared])
    praise = [NewAnnotation(trace.span_id, ROUTING.annotation, "HUMAN", "correct", {}) for trace in (tested[0], only)]
    phoenix.annotate(praise)
    queue = open_queue(Connections(load_settings()), tenant, "routing")
    assert queue
    assert [trace.span_id for trace in queue.traces] == [trace.span_id for trace in (*tested, shared, only)]
    # What a user says unasked counts for the candidate, and not for the rollout.
    assert queue.waiting == [*tested[1:], shared, only]
    assert queue.waiting_of_rollout == 1
    assert queue.versions[shared.span_id] == CANDIDATE
    assert f"{tenant} routing 1 of 4 reviewed" in text_of(browser.get("/review"))
    rollout.transition(queue.versions[only.span_id], expected=queue.versions[only.span_id], actor="t", reason="enough")
    alone = open_queue(Connections(load_settings()), tenant, "routing")
    assert alone and alone.traces == queue.traces[:-1]
