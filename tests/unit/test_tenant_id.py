import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidTenantId
from autoopt_pipeline.tenant_id import safe_name, validate_tenant_id

part = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
tenant_ids = st.one_of(part, st.tuples(part, part).map(":".join))


@pytest.mark.parametrize("good", ["acme", "acme:production", "Acme_2", "acme.com", "a", "1", "a" * 63])
def test_accepts_simple_and_org_ids(good: str) -> None:
    assert validate_tenant_id(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        " ",
        "a\n",
        "a,b",
        "..",
        "a..b",
        "a/b",
        "/",
        "a:b:c",
        ":a",
        "a:",
        "-a",
        "a.",
        "x" * 200,
        "a\0",
        "é",
        "a b",
        "%41",
    ],
)
def test_refuses_everything_else_in_one_line(bad: str) -> None:
    with pytest.raises(InvalidTenantId) as error:
        validate_tenant_id(bad)
    assert "\n" not in str(error.value)
    assert "->" in str(error.value)


@given(tenant_ids)
def test_safe_names_are_kubernetes_labels_and_paths(tenant_id: str) -> None:
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", safe_name(tenant_id))


@given(st.lists(tenant_ids, min_size=2, max_size=50, unique=True))
def test_no_two_tenants_share_a_safe_name(ids: list[str]) -> None:
    assert len({safe_name(tenant_id) for tenant_id in ids}) == len(ids)


def test_lower_case_words_stay_as_they_are() -> None:
    assert safe_name("acme-2") == "acme-2"


def test_ids_that_look_like_a_safe_name_do_not_collide_with_it() -> None:
    assert safe_name(safe_name("acme:production")) != safe_name("acme:production")
    assert safe_name("ACME") != safe_name("acme")
