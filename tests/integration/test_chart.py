"""The Helm chart: rendered as Helm does, its manifests held to Kubernetes' schemas, its dagster.yaml to Dagster's."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import helm_python as helm
import kubernetes_validate
import pytest
import yaml
from dagster._config import process_config
from dagster_k8s.job import construct_dagster_k8s_job

from autoopt_pipeline.dashboard.auth import open_access
from autoopt_pipeline.launchers.kubernetes import TenantRunLauncher
from autoopt_pipeline.modules.yaml_modules import declared_modules
from autoopt_pipeline.names import LM_POOL
from autoopt_pipeline.orchestration.launch import CODE_LOCATION
from autoopt_pipeline.settings import Settings
from tests.support.kube_api import as_sent, kubeconfig
from tests.support.project import PROJECT

CHART = PROJECT / "helm" / "autoopt-pipeline"

PRODUCTION: dict[str, Any] = {
    "settings": {"artifactsUrl": "s3://bucket/programs", "phoenixEndpoint": "http://phoenix:6006"},
    "global": {"postgresqlSecretName": "dagster-db"},
    "postgresql": {"postgresqlHost": "db"},
}
TRIAL: dict[str, Any] = {
    "networkPolicy": {"enabled": True},
    "secrets": {"configStore": {"value": "redis://redis:6379/0"}},
    "postgresql": {"enabled": True},
    "phoenix": {"enabled": True},
    "artifactsVolume": {"enabled": True},
}
POD: dict[str, Any] = {
    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "annotations": {"team": "routing"},
    "labels": {"cost-centre": "1"},
    "nodeSelector": {"disk": "ssd"},
    "affinity": {"nodeAffinity": {}},
    "tolerations": [{"key": "batch", "operator": "Exists"}],
    "priorityClassName": "batch",
    "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
}
MODULES = """\
modules:
  urgent:
    description: Decide whether a request is urgent.
    span: support.triage
    inputs: {text: triage.text}
    output: {urgent: triage.urgent}
    labels: {no: it can wait, yes: it cannot}
    confidence: triage.confidence
    annotation: urgent_annotation
"""
EVERYTHING: dict[str, Any] = {
    **PRODUCTION,
    "settings": {
        **PRODUCTION["settings"],
        "lm": "openai/gpt-4o-mini",
        "lmApiKeyEnv": "OPENAI_API_KEY",
        "dailyLmTokens": 50_000_000,
        "scheduleJitter": 0.25,
        "alertAfterFailures": 5,
    },
    "image": {"repository": "registry.example/autoopt", "tag": "2026-01"},
    "imagePullSecrets": [{"name": "registry"}],
    "modules": MODULES,
    "secrets": {
        "phoenix": {"value": "phoenix-s3cret"},
        "lm": {"env": {"OPENAI_API_KEY": "lm-s3cret"}},
        "artifacts": {"existingSecret": "bucket"},
        "alerts": {"env": {"AUTOOPT_ALERT_SLACK_URL": "https://hooks.example/slack-s3cret"}},
        "dashboard": {"env": {"AUTOOPT_DASHBOARD_TOKEN": "dashboard-s3cret-of-some-length"}},
    },
    "dagsterWebserver": {**POD, "replicaCount": 2, "pathPrefix": "/dagster"},
    "dagsterDaemon": {**POD, "runRetries": {"enabled": True}},
    "codeServer": POD,
    "metrics": {**POD, "enabled": True, "serviceMonitor": {"enabled": True}, "rules": {"enabled": True}},
    "dashboard": {
        **POD,
        "enabled": True,
        "access": {"users": [{"name": "marta", "role": "operator", "token_sha256": 64 * "0"}]},
        "ingress": {"enabled": True, "host": "autoopt.example"},
    },
    "runLauncher": {
        **POD,
        "sizeClasses": {"large": {"requests": {"memory": "8Gi"}, "limits": {"memory": "16Gi"}}},
        "tenantSizeClasses": {"org:acme": "large"},
    },
    "ingress": {
        "enabled": True,
        "host": "dagster.example",
        "tls": [{"secretName": "tls", "hosts": ["dagster.example"]}],
    },
    "networkPolicy": {"enabled": True, "webserverFrom": [{"namespaceSelector": {}}]},
    "computeLogManager": {"module": "dagster_aws.s3", "class": "S3ComputeLogManager", "config": {"bucket": "logs"}},
    "additionalInstanceConfig": {"python_logs": {"python_log_level": "INFO"}},
    "extraManifests": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "own"}, "data": {"of": "{{ .Release.Name }}"}}
    ],
}
VALUES = {"production": PRODUCTION, "trial": TRIAL, "everything": EVERYTHING}

KUBERNETES_VERSIONS = ["1.25", "1.31", "1.37"]


def render(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="rel", namespace="ns")
    return [
        manifest
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


@pytest.fixture(scope="module")
def manifests() -> dict[str, list[dict[str, Any]]]:
    """What the chart renders to, by the name of the values."""
    return {name: render(values) for name, values in VALUES.items()}


def of_kind(manifests: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    """Manifests by name without the release's."""
    return {m["metadata"]["name"].removeprefix("rel-autoopt-pipeline-"): m for m in manifests if m["kind"] in kinds}


def pods(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Specs of pods by workload."""
    workloads = of_kind(manifests, "Deployment", "StatefulSet")
    return {name: workload["spec"]["template"]["spec"] for name, workload in workloads.items()}


def instance_config(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return yaml.safe_load(of_kind(manifests, "ConfigMap")["instance"]["data"]["dagster.yaml"])


def camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


_SET_BY_THE_CHART = ("home", "modules_file", "config_store_url", "dashboard_access")


def settings_schema() -> dict[str, Any]:
    """Schema of `settings`: all fields of the process that are no secrets, and that the chart does not set itself."""
    fields = Settings.model_json_schema(by_alias=False)["properties"]
    properties = {}
    for name, field in fields.items():
        given = next((kind for kind in field.get("anyOf", ()) if kind["type"] != "null"), field)
        if given.get("writeOnly") or name in _SET_BY_THE_CHART:
            continue
        kept = {key: value for key, value in given.items() if key not in ("default", "title", "description")}
        properties[camel(name)] = {"description": field["description"], **kept}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def open_instance(manifests: list[dict[str, Any]], folder: Path) -> dg.DagsterInstance:
    """The instance that Dagster makes of the chart's `dagster.yaml`, but for how it reaches other servers."""
    config = instance_config(manifests)
    config["run_launcher"]["config"] |= {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig(folder, "http://127.0.0.1:9")),
    }
    # Of a package that is not installed here.
    del config["compute_logs"]
    # Storage is made when the instance is: a database is not what this is about.
    config["storage"] = {"sqlite": {"base_dir": str(folder)}}
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    return dg.DagsterInstance.from_config(str(folder))


def job_of(launcher: TenantRunLauncher, run: dg.DagsterRun) -> dict[str, Any]:
    """The Job of a run, as Kubernetes gets it."""
    context = launcher.get_container_context_for_run(run)
    return as_sent(
        construct_dagster_k8s_job(
            context.get_k8s_job_config(job_image=None, run_launcher=launcher),
            args=["dagster", "api", "execute_run", "{}"],
            job_name=f"dagster-run-{run.run_id}",
            user_defined_k8s_config=context.run_k8s_config,
        )
    )


@pytest.mark.parametrize("name", VALUES)
def test_lint_finds_nothing(name: str) -> None:
    for version in ("v1.20.0", "v1.35.0"):
        report = helm.lint(CHART, VALUES[name], strict=True, kube_version=version)
        assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_kubernetes_knows_every_field(manifests: dict[str, list[dict[str, Any]]], name: str, version: str) -> None:
    for manifest in manifests[name]:
        if manifest["kind"] not in {"ServiceMonitor", "PrometheusRule"}:  # not Kubernetes' own
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", VALUES)
def test_names_are_unique_and_every_reference_leads_somewhere(
    manifests: dict[str, list[dict[str, Any]]], name: str
) -> None:
    made = [(m["kind"], m["metadata"]["name"]) for m in manifests[name]]
    assert len(made) == len(set(made))
    text = json.dumps([*pods(manifests[name]).values(), instance_config(manifests[name])])
    given = {"cogniverse-config", "dagster-db", "bucket"}
    names = {name for _, name in made}
    for key in ("configMapRef", "secretKeyRef", "secretRef"):
        for reference in find(json.loads(text), key):
            assert reference["name"] in names | given
    assert set(find(json.loads(text), "secretName")) <= names
    launcher = instance_config(manifests[name])["run_launcher"]["config"]
    assert {*launcher["env_config_maps"], *launcher["env_secrets"]} <= names | given
    assert launcher["service_account_name"] in names


def find(tree: Any, key: str) -> list[Any]:
    """All values of a key, at any depth."""
    if isinstance(tree, dict):
        return [v for k, value in tree.items() for v in ([value] if k == key else find(value, key))]
    return [v for item in tree for v in find(item, key)] if isinstance(tree, list) else []


@pytest.mark.parametrize("name", VALUES)
def test_services_and_policies_select_pods_that_exist(manifests: dict[str, list[dict[str, Any]]], name: str) -> None:
    workloads = of_kind(manifests[name], "Deployment", "StatefulSet").values()
    labels = [workload["spec"]["template"]["metadata"]["labels"].items() for workload in workloads]
    for service in of_kind(manifests[name], "Service").values():
        assert sum(service["spec"]["selector"].items() <= own for own in labels) == 1
    for policy in of_kind(manifests[name], "NetworkPolicy").values():
        wanted = policy["spec"]["podSelector"]["matchLabels"]
        runs = wanted["app.kubernetes.io/component"] == "run_worker"
        assert runs or any(wanted.items() <= own for own in labels)
        for peer in find(policy["spec"]["ingress"], "podSelector"):
            assert any(peer["matchLabels"].items() <= own for own in labels)


@pytest.mark.parametrize("name", VALUES)
def test_every_container_is_confined(manifests: dict[str, list[dict[str, Any]]], name: str) -> None:
    for pod in pods(manifests[name]).values():
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@pytest.mark.parametrize("name", VALUES)
def test_the_pool_of_language_models_is_set_before_the_daemon_starts(
    manifests: dict[str, list[dict[str, Any]]], name: str
) -> None:
    config = instance_config(manifests[name])
    commands = [container["command"] for container in pods(manifests[name])["daemon"]["initContainers"]]
    limit = str(config["concurrency"]["pools"]["default_limit"])
    assert ["dagster", "instance", "concurrency", "set", LM_POOL, limit] in commands


def test_only_daemon_and_webserver_may_ask_kubernetes_and_only_the_daemon_launches(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    everything = manifests["everything"]
    asking = {name for name, pod in pods(everything).items() if pod["automountServiceAccountToken"]}
    assert asking == {"daemon", "webserver"}
    roles = of_kind(everything, "Role")
    launching = {name for name, role in roles.items() for rule in role["rules"] if "create" in rule["verbs"]}
    assert launching == {"daemon"}
    verbs = {verb for role in roles.values() for rule in role["rules"] for verb in rule["verbs"]}
    assert verbs == {"create", "delete", "get", "list"}
    for name, binding in of_kind(everything, "RoleBinding").items():
        assert binding["subjects"][0]["name"] == pods(everything)[name]["serviceAccountName"]


def test_secrets_reach_only_those_who_use_them(manifests: dict[str, list[dict[str, Any]]]) -> None:
    everything = manifests["everything"]
    expected = {
        "rel-autoopt-pipeline-lm": {"code-server"},
        "rel-autoopt-pipeline-alerts": {"code-server"},
        "rel-autoopt-pipeline-phoenix": {"code-server", "dashboard"},
        "bucket": {"code-server", "dashboard"},
        "rel-autoopt-pipeline-dashboard": {"dashboard"},
        "rel-autoopt-pipeline-dashboard-access": {"dashboard"},
    }
    for secret, users in expected.items():
        assert users == {name for name, pod in pods(everything).items() if f'"{secret}"' in json.dumps(pod)}
    others = json.dumps([m for m in everything if m["kind"] != "Secret"])
    assert "s3cret" not in others
    assert "s3cret" in json.dumps(list(of_kind(everything, "Secret").values()))


def test_settings_are_read_as_they_were_given(
    manifests: dict[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config_maps = of_kind(manifests["everything"], "ConfigMap")
    for name, value in config_maps["settings"]["data"].items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.daily_lm_tokens == 50_000_000
    assert settings.schedule_jitter == 0.25
    assert settings.alert_after_failures == 5
    assert settings.dagster_ui_url == "https://dagster.example/dagster"
    assert settings.dagster_api_url == "http://rel-autoopt-pipeline-webserver.ns.svc:80/dagster"
    access = of_kind(manifests["everything"], "Secret")["dashboard-access"]["stringData"]["access.yaml"]
    (tmp_path / "access.yaml").write_text(access)
    assert "marta" in open_access(Settings(dashboard_access=tmp_path / "access.yaml"), host="::", who="").users
    assert str(settings.modules_file) == "/etc/autoopt/modules.yaml"
    (tmp_path / "modules.yaml").write_text(config_maps["modules"]["data"]["modules.yaml"])
    [module] = declared_modules(tmp_path / "modules.yaml")
    assert module.name == "urgent"


def test_every_setting_can_be_set_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["settings"]
    assert known == settings_schema()
    samples = {"string": "AN_API_KEY", "integer": 1, "number": 1}
    every = {
        name: "0.15/0.6" if name.endswith("Price") else samples[field["type"]]
        for name, field in known["properties"].items()
    }
    rendered = of_kind(render({**PRODUCTION, "settings": every}), "ConfigMap")["settings"]["data"]
    assert len(rendered) == len(every)
    assert set(rendered) <= {f"AUTOOPT_{name.upper()}" for name in Settings.model_fields}


def test_the_alert_rules_are_installed_as_they_are(manifests: dict[str, list[dict[str, Any]]]) -> None:
    rules = of_kind(manifests["everything"], "PrometheusRule")
    assert rules["metrics"]["spec"] == yaml.safe_load((CHART / "prometheus-rules.yaml").read_text())
    assert of_kind(manifests["trial"], "PrometheusRule") == {}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"setings": {}}, "setings"),
        ({"settings": {"jiter": 0.1}}, "jiter"),
        ({"settings": {"scheduleJitter": 2}}, "scheduleJitter"),
        ({"settings": {"phoenixApiKey": "s3cret"}}, "phoenixApiKey"),
        ({"settings": {"lmApiKeyEnv": "sk-1234"}}, "lmApiKeyEnv"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"dagsterDaemon": {"replicaCount": 2}}, "replicaCount"),
        ({"runLauncher": {"sizeClasses": {"large": {"memory": "1Gi"}}}}, "large"),
        ({"runLauncher": {"tenantSizeClasses": {"acme": "huge"}}}, "tenantSizeClasses.acme: huge"),
        ({"postgresql": {"postgresqlHost": ""}}, "postgresql.postgresqlHost"),
        ({"global": {"postgresqlSecretName": ""}}, "global.postgresqlSecretName"),
        ({"settings": {"artifactsUrl": ""}}, "settings.artifactsUrl"),
        ({"settings": {"dashboardAccess": "/a"}}, "dashboardAccess"),
        ({"dashboard": {"enabled": True}}, "dashboard.access"),
        ({"dashboard": {"enabled": True, "access": {"user": []}}}, "user"),
        ({"settings": {"phoenixEndpoint": ""}}, "settings.phoenixEndpoint"),
        ({"secrets": {"configStore": {"existingSecret": ""}}}, "secrets.configStore"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    values = {**PRODUCTION, **{key: {**PRODUCTION.get(key, {}), **value} for key, value in wrong.items()}}
    with pytest.raises(helm.HelmError, match=named):
        render(values)


@pytest.mark.parametrize("name", VALUES)
def test_a_run_is_a_job_that_kubernetes_takes(
    manifests: dict[str, list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    run = dg.DagsterRun(job_name="__ASSET_JOB", tags={"dagster/partition": "org:acme"})
    with open_instance(manifests[name], tmp_path) as instance:
        assert isinstance(instance.run_launcher, TenantRunLauncher)
        job = job_of(instance.run_launcher, run)
    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["serviceAccountName"] == "rel-autoopt-pipeline-unprivileged"
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"/tmp", "/opt/dagster/dagster_home"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    from_secrets = {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}
    assert from_secrets["AUTOOPT_CONFIG_STORE_URL"]["key"] == "store-url"
    assert from_secrets["DAGSTER_PG_PASSWORD"]["key"] == "postgresql-password"
    assert container["resources"]["limits"]["memory"] == ("16Gi" if name == "everything" else "4Gi")
    assert "s3cret" not in json.dumps(job)


@pytest.mark.parametrize("name", VALUES)
def test_the_database_is_taken_from_values_and_its_password_from_the_environment(
    manifests: dict[str, list[dict[str, Any]]], name: str
) -> None:
    storage = instance_config(manifests[name])["storage"]["custom"]["config"]["postgres_db"]
    assert storage["hostname"] == ("rel-autoopt-pipeline-postgresql" if name == "trial" else "db")
    assert storage["password"] == {"env": "DAGSTER_PG_PASSWORD"}


def test_the_code_location_has_the_name_that_commands_expect(manifests: dict[str, list[dict[str, Any]]]) -> None:
    config_map = of_kind(manifests["production"], "ConfigMap")["instance"]
    [server] = yaml.safe_load(config_map["data"]["workspace.yaml"])["load_from"]
    assert server["grpc_server"]["location_name"] == CODE_LOCATION
    [container] = pods(manifests["production"])["code-server"]["containers"]
    assert container["command"][-2:] == ["--location-name", CODE_LOCATION]
    assert server["grpc_server"]["host"] == "rel-autoopt-pipeline-code-server"


def test_the_chart_and_the_local_instance_differ_only_where_they_have_to(
    manifests: dict[str, list[dict[str, Any]]],
) -> None:
    local = yaml.safe_load((PROJECT / "dagster.yaml").read_text())
    chart = instance_config(manifests["production"])
    of_a_place = {"storage", "local_artifact_storage", "compute_logs", "run_launcher"}
    assert set(local) - of_a_place <= set(chart)
    assert set(chart) - set(local) - of_a_place == {"run_retries"}
    # A cluster has room for more runs, needs longer to start one, and has more to look at.
    assert local["concurrency"].pop("runs") | {"max_concurrent_runs": 10} == chart["concurrency"].pop("runs")
    local["run_monitoring"] |= {
        "start_timeout_seconds": 600,
        "poll_interval_seconds": 60,
        "max_resume_run_attempts": 0,
    }
    for part in set(local) - of_a_place:
        assert chart[part] == local[part], part


def test_a_pod_starts_anew_when_what_it_reads_has_changed() -> None:
    def checksums(values: dict[str, Any]) -> dict[str, str]:
        return of_kind(render(values), "Deployment")["code-server"]["spec"]["template"]["metadata"]["annotations"]

    before = checksums(PRODUCTION)
    assert checksums(PRODUCTION) == before
    assert checksums({**PRODUCTION, "settings": {**PRODUCTION["settings"], "scheduleJitter": 0.2}}) != before
    assert checksums({**PRODUCTION, "dagsterDaemon": {"lmPool": {"defaultLimit": 9}}}) != before


def test_the_versions_of_chart_and_package_are_one() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    phoenix = yaml.safe_load((CHART / "values.yaml").read_text())["phoenix"]["image"]["tag"]
    assert (
        f"arize-phoenix=={phoenix.removeprefix('version-')}\n" in (PROJECT / "requirements" / "phoenix.txt").read_text()
    )


def test_the_image_holds_no_test_packages_and_the_versions_that_are_tested() -> None:
    def locked(name: str) -> dict[str, str]:
        lines = (PROJECT / "requirements" / name).read_text().splitlines()
        return dict(line.partition(" ;")[0].split("==") for line in lines)

    image = locked("pipeline.txt")
    assert image.items() <= locked("dev.txt").items()
    assert image.keys().isdisjoint({"pytest", "hypothesis", "moto", "ruff", "selenium"})


def test_the_values_of_the_document_are_taken() -> None:
    document = (PROJECT / "docs" / "kubernetes.md").read_text()
    production, trial, *changes = map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", document, re.DOTALL))
    assert len(changes) == 5
    for values in (trial, *({**production, **change} for change in changes)):
        assert render({**values, "settings": {**production["settings"], **values["settings"]}})


def test_the_values_for_the_official_chart_say_the_same(manifests: dict[str, list[dict[str, Any]]]) -> None:
    official = yaml.safe_load((PROJECT / "helm" / "values-official-chart.yaml").read_text())
    own = instance_config(manifests["production"])
    launcher = official["runLauncher"]["config"]["customRunLauncher"]
    assert {**launcher, "config": None} == {**own["run_launcher"], "config": None}
    assert process_config(TenantRunLauncher.config_type(), launcher["config"]).success
    runs = official["concurrency"]["runs"]
    assert runs["tagConcurrencyLimits"] == own["concurrency"]["runs"]["tag_concurrency_limits"]
    assert official["concurrency"]["pools"]["defaultLimit"] == own["concurrency"]["pools"]["default_limit"]
    assert official["dagsterDaemon"]["runMonitoring"] == {
        camel(name): value for name, value in own["run_monitoring"].items()
    }
    [server] = official["dagsterWebserver"]["workspace"]["servers"]
    assert server["name"] == CODE_LOCATION


def test_ports_name_their_protocol() -> None:
    """Server-side apply takes a port's protocol for a part of its key, and older clusters have no default there."""
    for values in (PRODUCTION, TRIAL):
        for manifest in render(values):
            spec = manifest.get("spec", {})
            ports = spec.get("ports", []) if manifest["kind"] == "Service" else []
            for container in spec.get("template", {}).get("spec", {}).get("containers", []):
                ports += container.get("ports", [])
            assert all(port.get("protocol") == "TCP" for port in ports), manifest["metadata"]["name"]


@pytest.mark.parametrize("values", [PRODUCTION, TRIAL])
def test_no_service_brings_variables_that_look_like_settings(values: dict[str, Any]) -> None:
    """In a release called autoopt they would be AUTOOPT_WEBSERVER_PORT and the like."""
    rendered = render(values)
    assert all(spec["enableServiceLinks"] is False for spec in pods(rendered).values())
    run = instance_config(rendered)["run_launcher"]["config"]["run_k8s_config"]["pod_spec_config"]
    assert run["enable_service_links"] is False
