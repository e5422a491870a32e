"""`autoopt doctor` on things that are really broken, and on sound ones."""

import json
import os
import re
import shutil
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import fsspec
import pytest
import redis
from dagster._core.scheduler.instigation import InstigatorStatus
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.stack import Stack, start_daemon
from autoopt_pipeline.doctor import instance, process, servers, stores, verdicts, versions
from autoopt_pipeline.doctor.clock import compare_clocks
from autoopt_pipeline.doctor.findings import Check, Finding, Status, examine, fail, ok
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import AGENTS, autoopt
from tests.support.llm_server import Answered, LLMServer, llm_server
from tests.support.project import PROJECT
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as save_version
from tests.support.tiny_encoder import tiny_encoder

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def found(look: Callable[[], Iterable[Finding]], seconds: float = 60) -> list[Finding]:
    """What a check finds, run as doctor runs it."""
    return [finding for _, finding in examine([Check("x", look, "see the way there", seconds)])]


def only(findings: list[Finding], status: Status) -> Finding:
    """The one finding of that status."""
    (one,) = [finding for finding in findings if finding.status is status]
    return one


@pytest.fixture
def parts(home: Path) -> Connections:
    return Connections(Settings(home=home / ".autoopt"))


def test_a_sound_home_fails_for_want_of_a_daemon_alone(home: Path, phoenix: Phoenix) -> None:
    autoopt("tenants", "add", "acme", *AGENTS)
    before = sorted(path for path in home.rglob("*") if path.is_file())
    here = {"AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint}
    told = json.loads(autoopt("doctor", "--json", status=2, env=here))
    assert [each["what"] for each in told["findings"] if each["status"] == "fail"] == [
        "no heartbeat of daemon ASSET, BACKFILL, FRESHNESS_DAEMON, MONITORING, QUEUED_RUN_COORDINATOR, SCHEDULER, "
        "SENSOR (never)"
    ]
    assert [each["check"] for each in told["findings"] if each["status"] == "warn"] == [
        "lm",
        *("dagster" for _ in instance.sensor_names()),
    ]
    assert all(each["remedy"] for each in told["findings"] if each["status"] != "ok")
    assert (told["failed"], told["warnings"]) == (1, 1 + len(instance.sensor_names()))
    documented = re.findall(r"^\| `([a-z ]+)` \|", (PROJECT / "docs" / "doctor.md").read_text(), re.MULTILINE)
    assert list(dict.fromkeys(each["check"] for each in told["findings"])) == documented
    printed = autoopt("doctor", status=2, env=here)
    assert "fail  dagster        no heartbeat" in printed
    assert printed.endswith(f"1 failed, {1 + len(instance.sensor_names())} warnings\n")
    after = sorted(path for path in home.rglob("*") if path.is_file() and ".autoopt/dagster" not in str(path))
    assert [path for path in before if ".autoopt/dagster" not in str(path)] == after


def test_settings_that_cannot_be_read_are_told_and_what_they_lead_to_is_not_looked_at(home: Path) -> None:
    told = json.loads(autoopt("doctor", "--json", status=2, env={"AUTOOPT_SETTLING_SECONDS": "soon"}))
    last = told["findings"][-1]
    assert (last["check"], last["status"]) == ("settings", "fail")
    assert "AUTOOPT_SETTLING_SECONDS" in last["what"]
    assert "the other checks need correct settings" in last["remedy"]


def test_a_misspelt_variable_is_named_with_the_nearest_setting() -> None:
    environment = {"AUTOOPT_SETLING_SECONDS": "5", "AUTOOPT_ODD": "", "AUTOOPT_ACME_API_KEY": "k", "AUTOOPT_LM": "x"}
    odd, misspelt, read = process.variables(environment)
    assert (misspelt.status, misspelt.remedy) == (Status.WARN, "did you mean AUTOOPT_SETTLING_SECONDS?")
    assert odd.what == "nothing reads AUTOOPT_ODD"
    assert read.status is Status.OK


def test_a_redaction_that_cannot_be_loaded_fails(home: Path) -> None:
    given = Settings(home=home, redaction="nowhere:redact")
    assert (
        "redaction 'nowhere:redact' cannot be loaded" in only(found(lambda: process.settings(given)), Status.FAIL).what
    )


def test_a_sentence_encoder_is_loaded_or_fails(home: Path) -> None:
    *_, read = found(lambda: process.settings(Settings(home=home, encoder=tiny_encoder(home / "encoder"))))
    assert read.status is Status.OK
    assert "sentence encoder" in read.what
    failed = only(found(lambda: process.settings(Settings(home=home, encoder=home / "nothing"))), Status.FAIL)
    assert f"sentence encoder {home / 'nothing'}: " in failed.what


def test_a_file_of_modules_that_is_missing_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOOPT_MODULES_FILE", "missing.yaml")
    modules.cache_clear()
    try:
        failed = only(found(lambda: process.installed_modules(Settings())), Status.FAIL)
    finally:
        modules.cache_clear()
    assert "missing.yaml: No such file" in failed.what


def test_packages_outside_their_ranges_fail() -> None:
    old, missing, right = process.packages(["dagster>=99", "no-such-package-x>=1", "pydantic>=2; extra == 'pipeline'"])
    assert "is not in >=99" in old.what
    assert missing.what == "no-such-package-x is not installed"
    assert "1 packages in the supported ranges" in right.what
    assert {finding.status for finding in process.packages()} == {Status.OK}


def test_a_configuration_that_is_not_valid_fails_and_the_others_are_counted(parts: Connections) -> None:
    write_config(parts.configs, RoutingConfigUnified(tenant_id="acme"))
    for number in range(7):
        parts.configs.write(f"odd{number}", {"tenant_id": f"odd{number}", "modules": 7})
    findings = found(lambda: stores.config_store(parts))
    assert findings[0] == ok("8 tenants; it can be written")
    assert findings[1].what.startswith("tenant odd0, configuration version 1: modules: ")
    assert findings[-1].what == "2 more configurations are not valid"


def test_a_module_that_is_gone_fails_once_with_who_has_it_on(parts: Connections) -> None:
    for number, mode in enumerate(["auto", "observe", "off"]):
        document = {"tenant_id": f"t{number}", "modules": {"gone": {"mode": mode}, "routing": {}}}
        parts.configs.write(f"t{number}", document)
    failed = only(found(lambda: stores.config_store(parts)), Status.FAIL)
    assert failed.what == "module 'gone' is not installed here, and t0 and 1 more have it on"
    assert "'autoopt config unset TENANT modules.gone'" in failed.remedy


def test_every_version_that_serves_is_read_and_damaged_ones_fail(parts: Connections) -> None:
    for tenant in ("sound", "cut", "lost", "odd", "new"):
        write_config(parts.configs, RoutingConfigUnified(tenant_id=tenant))
    folder = Path(parts.settings.resolved_artifacts_url)
    version = {}
    for tenant in ("sound", "cut", "lost", "odd"):
        artifacts = parts.artifacts(tenant, "routing")
        before = save_version(artifacts, made_program(tenant, demos=["one"]), 1, active=True)
        version[tenant] = save_version(artifacts, made_program(tenant, demos=["two"]), 2)
        artifacts.transition(before, expected=before, actor="t", reason="", canary={version[tenant]: 0.1})
    assert [finding.status for finding in found(lambda: versions.active_versions(parts))] == [Status.OK]
    (folder / "cut" / "routing" / "versions" / version["cut"] / "program.json").write_text("{")
    shutil.rmtree(folder / "lost" / "routing" / "versions" / version["lost"])
    (folder / "odd" / "routing" / "active.json").write_text("[")
    *failed, looked = found(lambda: versions.active_versions(parts))
    assert [(each.status, each.what) for each in failed] == [
        (Status.FAIL, f"cut/routing: version {version['cut']} is damaged"),
        (Status.FAIL, f"lost/routing: version {version['lost']} does not exist"),
        (Status.FAIL, "odd/routing: active.json is damaged"),
    ]
    assert looked == ok("checked 6 versions that serve 4 tenants; 1 tenants have no program yet")
    (hurried,) = found(lambda: versions.active_versions(parts, seconds=0))
    assert hurried.what.endswith("; no time was left for 4 tenants")


def test_more_damaged_versions_than_are_shown_are_counted(parts: Connections) -> None:
    for number in range(7):
        tenant = f"t{number}"
        write_config(parts.configs, RoutingConfigUnified(tenant_id=tenant))
        save_version(parts.artifacts(tenant, "routing"), made_program(tenant, demos=["one"]), active=True)
        (Path(parts.settings.resolved_artifacts_url) / tenant / "routing" / "active.json").write_text("")
    *_, more, looked = found(lambda: versions.active_versions(parts))
    assert (more.status, more.what) == (Status.FAIL, "2 more versions cannot serve")
    assert looked.status is Status.OK


def test_a_check_that_outlives_its_command_leaves_the_home_of_the_next_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = open_instance(home)
    late.__enter__()
    monkeypatch.delenv("DAGSTER_HOME")
    late.__exit__(None, None, None)
    assert "DAGSTER_HOME" not in os.environ


def test_what_the_last_verdicts_lack_is_told_by_tenant(parts: Connections, home: Path) -> None:
    for tenant in ("acme", "beta", "off", "removed"):
        write_config(parts.configs, RoutingConfigUnified(tenant_id=tenant, enable_auto_optimization=tenant != "off"))
    parts.configs.write("removed", None)
    with open_instance(home) as opened:
        for tenant, verdict, reason in (
            ("acme", "promoted", "proven better"),
            ("acme", "awaiting_reviews", "47 of 60 disagreements wait for a review"),
            ("beta", "rejected", "not better"),
            ("off", "not_enough_data", "12 of 20"),
            ("removed", "not_enough_data", "12 of 20"),
        ):
            said = {"window_end": dg.MetadataValue.timestamp(0.0), "verdict": verdict, "reason": reason}
            opened.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant, metadata=said))
    lacks, looked = found(lambda: verdicts.last_verdicts(parts, home))
    assert lacks.status is Status.WARN
    assert lacks.what == "acme/routing: awaiting_reviews, 47 of 60 disagreements wait for a review"
    assert lacks.remedy == "'autoopt review' asks for them"
    assert looked == ok("checked the last verdicts of 2 of the 6 enabled modules: 1 awaiting reviews, 1 rejected")
    (hurried,) = found(lambda: verdicts.last_verdicts(parts, home, seconds=0))
    assert hurried.what.endswith("; no time was left for 2 older ones")
    assert only(found(lambda: verdicts.last_verdicts(parts, None)), Status.WARN).remedy == "set DAGSTER_HOME"


def test_a_file_where_a_folder_should_be_fails(home: Path) -> None:
    (home / "file").write_text("")
    parts = Connections(
        Settings(home=home, config_store_url=f"sqlite:///{home}/file/config.db", artifacts_url=f"{home}/file")
    )
    assert "config.db" in only(found(lambda: stores.config_store(parts)), Status.FAIL).what
    failed = found(lambda: stores.artifact_store(parts))
    assert {finding.status for finding in failed} == {Status.FAIL}
    assert "AUTOOPT_ARTIFACTS_URL" in failed[0].remedy


def test_a_server_that_is_stopped_fails(home: Path) -> None:
    parts = Connections(
        Settings(home=home, config_store_url="redis://u:hunter2@127.0.0.1:1/0", phoenix_endpoint="http://127.0.0.1:9")
    )
    store = only(found(lambda: stores.config_store(parts)), Status.FAIL)
    assert "hunter2" not in store.what
    assert "127.0.0.1:1" in store.what
    assert "does not answer" in only(found(lambda: servers.phoenix(parts)), Status.FAIL).what


def test_a_store_that_keeps_us_waiting_does_not_hold_up_the_others(parts: Connections) -> None:
    write_config(parts.configs, RoutingConfigUnified(tenant_id="acme"))
    with sqlite3.connect(parts.settings.home / "config.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        waiting = Check("store", lambda: stores.config_store(parts), "see who holds it", 0.2)
        told = list(examine([waiting, Check("next", lambda: [ok("looked at")])]))
        other.execute("ROLLBACK")
    assert told == [("store", fail("no answer within 0.2 s", "see who holds it")), ("next", ok("looked at"))]


def test_a_server_that_never_answers_fails_within_the_time_it_has(home: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as silent:
        endpoint = f"http://{LOOPBACK}:{silent.getsockname()[1]}"
        parts = Connections(Settings(home=home, phoenix_endpoint=endpoint))
        assert found(lambda: servers.phoenix(parts), 0.2) == [fail("no answer within 0.2 s", "see the way there")]


def test_what_a_check_found_before_it_broke_is_told_too() -> None:
    def look() -> Iterator[Finding]:
        yield ok("first")
        raise RuntimeError("broken\nin two lines")

    first, second = found(look)
    assert first == ok("first")
    assert second.what == "unexpected RuntimeError: broken"


@pytest.fixture(scope="module")
def careless_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis with a password that evicts tenants and keeps nothing on disk. `reader` may not write there."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    folder, port = tmp_path_factory.mktemp("careless"), free_port()
    options = ["--requirepass", "right", "--maxmemory-policy", "allkeys-lru", "--save", "", "--port", str(port)]
    with Processes(folder) as group:
        group.start("redis", [server, *options, "--bind", LOOPBACK], env={}, cwd=folder)
        client = redis.Redis(port=port, password="right", retry=Retry(ConstantBackoff(0.1), 100))
        client.execute_command(
            "ACL", "SETUSER", "reader", "on", ">r", "~*", "+@read", "+@connection", "+multi", "+exec"
        )
        yield f"{LOOPBACK}:{port}/0"


def store_at(home: Path, url: str) -> Connections:
    return Connections(Settings(home=home, config_store_url=url))


def test_a_redis_that_may_lose_tenants_is_warned_of(home: Path, careless_redis: str) -> None:
    parts = store_at(home, f"redis://:right@{careless_redis}")
    write_config(parts.configs, RoutingConfigUnified(tenant_id="acme"))
    first, evicting, forgetting = found(lambda: stores.config_store(parts))
    assert first == ok("1 tenants; it can be written")
    assert "maxmemory-policy is allkeys-lru" in evicting.what
    assert "a restart loses all tenants" in forgetting.what
    assert {evicting.status, forgetting.status} == {Status.WARN}
    assert list(parts.configs.current()) == ["acme"]
    assert len(parts.configs.history("acme")) == 1


def test_a_wrong_password_fails_and_is_not_repeated(home: Path, careless_redis: str) -> None:
    parts = store_at(home, f"redis://:hunter2@{careless_redis}")
    wrong = only(found(lambda: stores.config_store(parts)), Status.FAIL)
    assert "password" in wrong.what
    assert "hunter2" not in wrong.what + wrong.remedy


def test_a_user_who_may_only_read_fails(home: Path, careless_redis: str) -> None:
    parts = store_at(home, f"redis://reader:r@{careless_redis}")
    assert "no permissions" in only(found(lambda: stores.config_store(parts)), Status.FAIL).what.lower()


def test_a_safe_redis_is_ok_and_what_it_does_not_tell_is_warned_of(home: Path, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    client.config_set("appendonly", "yes")
    assert [finding.status for finding in found(lambda: stores.config_store(store_at(home, redis_url)))] == [Status.OK]
    client.execute_command("ACL", "SETUSER", "app", "on", ">a", "~*", "+@all", "-info")
    parts = store_at(home, redis_url.replace("redis://", "redis://app:a@"))
    assert "eviction and persistence are unknown" in only(found(lambda: stores.config_store(parts)), Status.WARN).what
    client.config_set("appendonly", "no")


class Overwriting(MemoryFileSystem):
    """A store whose server knows no conditional writes."""

    protocol = "overwriting"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        super().pipe_file(path, value)


def test_a_store_where_two_writers_can_create_one_file_fails(home: Path) -> None:
    fsspec.register_implementation("overwriting", Overwriting, clobber=True)
    parts = Connections(Settings(home=home, artifacts_url="overwriting://x"))
    assert "a promotion could be lost" in only(found(lambda: stores.artifact_store(parts)), Status.FAIL).what


@given(st.integers(-1000, 1000), st.integers(0, 100))
def test_clocks_agree_when_they_differ_by_no_more_than_is_allowed(seconds: int, allowed: int) -> None:
    theirs = NOW + timedelta(seconds=seconds)
    finding = compare_clocks("the store", theirs, NOW, timedelta(seconds=allowed))
    assert (finding.status is Status.OK) is (abs(seconds) <= allowed + 2)
    if finding.status is Status.WARN:
        assert ("ahead of" in finding.what) is (seconds > 0)


def test_phoenix_is_known_by_its_version(home: Path, phoenix: Phoenix) -> None:
    findings = found(lambda: servers.phoenix(Connections(Settings(home=home, phoenix_endpoint=phoenix.endpoint))))
    assert [finding.status for finding in findings] == [Status.OK, Status.OK]
    assert findings[0].what.startswith("Phoenix 20.")


@pytest.fixture
def llm() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


def models(home: Path, llm: LLMServer, lm: str = "openai/some-model") -> Connections:
    return Connections(Settings(home=home, lm=lm, lm_api_base=llm.url, lm_api_key_env="DOCTOR_API_KEY"))


def test_a_model_is_called_only_when_that_is_wanted(
    home: Path, llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCTOR_API_KEY", "sk-doctor")
    parts = models(home, llm)
    (told,) = found(lambda: servers.language_models(parts, call=False))
    assert (told.status, llm.calls) == (Status.OK, 0)
    assert "DOCTOR_API_KEY is set here" in told.what
    (told,) = found(lambda: servers.language_models(parts, call=True))
    assert (told.status, llm.calls) == (Status.OK, 2)
    assert "it answered within" in told.what
    assert "answers are asked for in DSPy's chat format" in told.what
    llm.enforces_schema = True
    (told,) = found(lambda: servers.language_models(parts, call=True))
    assert "a JSON schema is enforced" in told.what


@pytest.mark.parametrize(
    ("answered", "said"),
    [(Answered("", "length"), "its answer is empty"), (Answered("I would say th", "length"), "was cut off")],
)
def test_a_model_that_answers_nothing_or_not_to_the_end_fails(
    home: Path, llm: LLMServer, monkeypatch: pytest.MonkeyPatch, answered: Answered, said: str
) -> None:
    monkeypatch.setenv("DOCTOR_API_KEY", "sk-doctor")
    llm.answer = lambda sent: answered
    failed = only(found(lambda: servers.language_models(models(home, llm), call=True)), Status.FAIL)
    assert said in failed.what
    assert "lm.max_tokens is 512: raise it" in failed.remedy


def test_a_schema_that_was_chosen_and_is_not_enforced_fails(
    home: Path, llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = models(home, llm)
    lm = {"model": "openai/x", "api_base": llm.url, "answer_format": "json_schema"}
    write_config(parts.configs, RoutingConfigUnified.model_validate({"tenant_id": "a", "lm": lm}))
    failed = only(found(lambda: servers.language_models(parts, call=True)), Status.FAIL)
    assert "enforces no JSON schema" in failed.what


def test_a_model_without_its_key_or_that_refuses_it_fails_without_repeating_it(
    home: Path, llm: LLMServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = only(found(lambda: servers.language_models(models(home, llm), call=False)), Status.FAIL)
    assert "environment variable DOCTOR_API_KEY is not set" in missing.what
    monkeypatch.setenv("DOCTOR_API_KEY", "sk-doctor")
    llm.always = 401
    refused = only(found(lambda: servers.language_models(models(home, llm), call=True)), Status.FAIL)
    assert "does not answer" in refused.what
    assert "sk-doctor" not in refused.what


def test_each_model_of_the_tenants_is_looked_at_once(home: Path, llm: LLMServer) -> None:
    parts = models(home, llm, lm="stand-in")
    for tenant, lm in (("a", {"model": "openai/x", "api_key_env": "ABSENT_API_KEY"}), ("b", None), ("c", None)):
        write_config(parts.configs, RoutingConfigUnified.model_validate({"tenant_id": tenant, "lm": lm}))
    findings = found(lambda: servers.language_models(parts, call=False))
    assert "for 2 tenants: the offline stand-in" in only(findings, Status.WARN).what
    assert "ABSENT_API_KEY is not set" in only(findings, Status.FAIL).what


def test_a_judge_needs_its_key_too(home: Path, llm: LLMServer) -> None:
    parts = models(home, llm, lm="stand-in")
    judge = {"lm": {"model": "openai/judge", "api_key_env": "ABSENT_API_KEY"}}
    write_config(parts.configs, RoutingConfigUnified.model_validate({"tenant_id": "a", "judge": judge}))
    failed = only(found(lambda: servers.language_models(parts, call=False)), Status.FAIL)
    assert "openai/judge" in failed.what
    assert "ABSENT_API_KEY is not set" in failed.what


def test_a_tenant_of_production_without_a_model_fails(home: Path) -> None:
    parts = Connections(Settings(home=home, artifacts_url=str(home)))
    assert (
        "no language model is configured"
        in only(found(lambda: servers.language_models(parts, call=False)), Status.FAIL).what
    )


def test_an_instance_that_lets_a_tenant_run_twice_is_warned_of(home: Path) -> None:
    text = (home / "dagster.yaml").read_text()
    start, end = text.index("    tag_concurrency_limits:"), text.index("# Fails runs")
    (home / "dagster.yaml").write_text(text[:start] + text[end:])
    findings = found(lambda: instance.dagster_instance(home))
    assert any("two runs of one tenant" in each.what for each in findings if each.status is Status.WARN)


def test_an_instance_that_cannot_be_opened_fails_and_none_is_warned_of(home: Path) -> None:
    (home / "dagster.yaml").write_text("storage: {nonsense: 1}")
    assert "Dagster instance in" in only(found(lambda: instance.dagster_instance(home)), Status.FAIL).what
    assert only(found(lambda: instance.dagster_instance(None)), Status.WARN).what == "there is no Dagster instance here"


def test_daemons_and_sensors_are_known_by_what_they_did_last(home: Path, phoenix: Phoenix) -> None:
    store = f"sqlite:///{home}/.autoopt/config.db"
    write_config(open_config_store(store), RoutingConfigUnified(tenant_id="acme"))
    stack = Stack(home, phoenix.endpoint, {"AUTOOPT_SENSOR_INTERVAL_SECONDS": "1"})

    def look() -> dict[str, Finding]:
        told = found(lambda: instance.dagster_instance(home))
        worst_last = sorted(told, key=lambda finding: finding.status is Status.FAIL)
        return {name: each for each in worst_last for name in ("daemon", *instance.sensor_names()) if name in each.what}

    def until(holds: Callable[[dict[str, Finding]], bool]) -> dict[str, Finding]:
        for _ in range(120):
            told = look()
            if len(told) == 1 + len(instance.sensor_names()) and holds(told):
                return told
            threading.Event().wait(0.5)
        raise AssertionError(told)

    look()  # makes the instance's tables, before the daemon would at the same moment
    with Processes(home / "logs") as group:
        start_daemon(group, stack)
        sound = until(lambda told: all(finding.status is Status.OK for finding in told.values()))
        assert "from __repository__@autoopt_pipeline" in sound["auto_optimization_sensor"].what
        open_config_store(store).write("acme", {"tenant_id": "acme", "modules": {"gone": {}}})
        without = until(lambda told: told["auto_optimization_sensor"].status is Status.FAIL)
        assert without["auto_optimization_sensor"] == fail(
            "auto_optimization_sensor cannot decide for a module of 1 tenant: module 'gone' is not installed here",
            "install it and reload the code location, or take it out with 'autoopt config unset TENANT modules.gone'",
        )
        open_config_store(store).write("acme", {"tenant_id": "acme"})
        until(lambda told: told["auto_optimization_sensor"].status is Status.OK)
        (home / ".autoopt" / "config.db").unlink()
        (home / ".autoopt" / "config.db").mkdir()
        broken = until(lambda told: told["auto_optimization_sensor"].status is Status.FAIL)
        assert "unable to open database file" in broken["auto_optimization_sensor"].what
    with open_instance(home) as opened:
        (state,) = [s for s in opened.all_instigator_state() if s.instigator_name == "auto_optimization_sensor"]
        opened.update_instigator_state(state.with_status(InstigatorStatus.STOPPED))
    assert "is stopped" in look()["auto_optimization_sensor"].what


def test_a_home_that_is_mistyped_is_looked_at_and_not_made(home: Path) -> None:
    parts = Connections(Settings(home=home / "typo"))
    assert only(found(lambda: stores.config_store(parts)), Status.OK).what == "0 tenants; it can be written"
    assert "is made when something is first stored" in only(found(lambda: stores.artifact_store(parts)), Status.OK).what
    assert not (home / "typo").exists()
