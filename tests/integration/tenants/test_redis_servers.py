"""Redis as companies run it: with users, with TLS, as a cluster, behind Sentinel. All of them are real servers."""

import shlex
import shutil
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.doctor import stores
from autoopt_pipeline.doctor.findings import Check, Status, examine
from autoopt_pipeline.errors import AutooptError, ConfigStoreRefused, ConfigStoreUnavailable
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import open_config_store
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from tests.support.project import PROJECT

PASSWORD = "w0rd/of#n0b@dy?"

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@contextmanager
def server(folder: Path, *options: str) -> Generator[int]:
    """The port of a Redis server with these options; it has begun to answer."""
    port = free_port()
    folder = folder / str(port)
    folder.mkdir(parents=True)
    command = ["redis-server", *options, "--bind", LOOPBACK, "--dir", str(folder)]
    with Processes(folder) as group:
        group.start(
            "redis", [*command, *(() if "--tls-port" in options else ("--port", str(port)))], env={}, cwd=folder
        )
        yield port


def client(port: int, password: str | None = None) -> redis.Redis:
    found = redis.Redis(port=port, password=password, retry=Retry(ConstantBackoff(0.1), 100))
    found.ping()
    return found


def rights_in_the_documents() -> list[str]:
    text = (PROJECT / "docs" / "install.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("ACL SETUSER")]
    return shlex.split(line.replace(">PASSWORD", shlex.quote(f">{PASSWORD}")))


@pytest.fixture(scope="module")
def with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[redis.Redis, str]]:
    """A server that lets nobody in without a password, and the address of a user with the documented rights."""
    with server(tmp_path_factory.mktemp("users"), "--requirepass", PASSWORD, "--appendonly", "yes") as port:
        admin = client(port, PASSWORD)
        admin.execute_command(*rights_in_the_documents())
        admin.config_set("maxmemory-policy", "noeviction")
        yield admin, f"redis://autoopt:{quote(PASSWORD, safe='')}@{LOOPBACK}:{port}/1"


def findings(url: str) -> list[tuple[Status, str]]:
    parts = Connections(Settings(config_store_url=url))
    return [
        (found.status, found.what) for _, found in examine([Check("config store", lambda: stores.config_store(parts))])
    ]


def failures(store: TenantConfigStore) -> list[tuple[Status, str]]:
    found = []
    changes = partial(store.changes, None, 1)
    for use in (partial(store.write, "acme", {}), partial(store.history, "acme"), changes, store.check_writable):
        try:
            use()
        except ConfigStoreUnavailable as e:
            found.append((Status.FAIL, str(e)))
    return found


def refusal(url: str) -> AutooptError:
    with pytest.raises(AutooptError) as error:
        open_config_store(url).write("acme", {"tenant_id": "acme"})
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert "w0rd" not in str(error.value)
    return error.value


def test_a_user_with_the_documented_rights_can_do_all_that_is_done(with_users: tuple[redis.Redis, str]) -> None:
    _, url = with_users
    store = open_config_store(url)
    assert store.write("acme", {"tenant_id": "acme"}) == 1
    with pytest.raises(AutooptError, match="version"):
        store.write("acme", {}, expected_version=7)
    assert store.current()["acme"].version == 1
    assert store.write("acme", None, expected_version=1) == 2
    assert [entry.version for entry in store.history("acme")] == [1, 2]
    assert [change.what for change in store.changes(None, 9)] == ["tenant_removed", "tenant_added"]
    assert findings(url) == [(Status.OK, "0 tenants; it can be written")]
    assert client(int(url.rpartition(":")[2].partition("/")[0]), PASSWORD).keys("*_doctor*") == []


def test_every_documented_right_is_needed(with_users: tuple[redis.Redis, str]) -> None:
    """But UNWATCH, without which a connection is closed instead."""
    admin, url = with_users
    rights = [word[1:] for word in rights_in_the_documents() if word.startswith("+")]
    assert len(rights) == 17
    for right in rights:
        admin.execute_command("ACL", "SETUSER", "autoopt", f"-{right}")
        try:
            told = [*findings(url), *failures(open_config_store(url))]
            bad = [what for status, what in told if status is not Status.OK]
            assert bad or right == "unwatch", right
            if right not in {"unwatch", "multi"}:
                assert any("no permissions to run the" in what for what in bad), bad
        finally:
            admin.execute_command("ACL", "SETUSER", "autoopt", f"+{right}")


def test_a_wrong_password_and_none_are_told_as_that_and_not_as_a_server_that_is_down(
    with_users: tuple[redis.Redis, str],
) -> None:
    _, url = with_users
    where = url.rpartition("@")[2]
    for login in ("autoopt:wr0ng@", ":wr0ng@", "nobody:wr0ng@", ""):
        error = refusal(f"redis://{login}{where}")
        assert isinstance(error, ConfigStoreRefused)
        assert not error.transient
        assert str(error) == (
            f"configuration store redis://{where}: the user or the password is wrong -> correct the user and the "
            "password in AUTOOPT_CONFIG_STORE_URL (redis://user:password@host:port/db)"
        )


@pytest.mark.parametrize(
    "login",
    [f"autoopt:{PASSWORD}", ":12#w0rd", "user:12#w0rd", ":w0rd/12", ":w0rd@12", ":w0rd?x=12", ":[w0rd", ":w0rd%zz"],
)
def test_a_password_that_is_not_quoted_is_told_and_no_part_of_it_is_shown(login: str) -> None:
    error = refusal(f"redis://{login}@{LOOPBACK}:1/0")
    assert isinstance(error, ConfigStoreRefused)
    assert error.what == "configuration store redis://...: the password in the address has to be quoted"
    assert "%2F" in error.remedy


@pytest.mark.parametrize(
    "url",
    [
        f"redis://{LOOPBACK}:1/first",
        f"redis://{LOOPBACK}:port/0",
        f"redis://{LOOPBACK}:1/0?ssl_ca_certs=/ca.pem",  # without TLS
        f"redis://{LOOPBACK}:1/0?nonsense=1",
    ],
)
def test_what_is_no_redis_url_is_told_before_anything_is_asked(url: str) -> None:
    assert "the address is not a Redis URL" in refusal(url).what


def test_a_node_of_a_cluster_is_refused_in_one_line_whichever_keys_it_has(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--save", "", "--cluster-port")
    bus = str(free_port()), str(free_port())  # the usual one, 10000 above the other, may be beyond all ports
    with server(tmp_path, *options, bus[0]) as first, server(tmp_path, *options, bus[1]) as second:
        joined = client(first)
        joined.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        joined.execute_command("CLUSTER", "MEET", LOOPBACK, second, bus[1])
        other = client(second)
        for _ in range(100):
            if "cluster_state:ok" in str(other.execute_command("CLUSTER", "INFO")):
                break
            other.execute_command("WAIT", 0, 100)
        for url in (
            f"redis://{LOOPBACK}:{first}/0",
            f"redis://{LOOPBACK}:{second}/0",
            f"redis://{LOOPBACK}:{second}/1",
        ):
            error = refusal(url)
            assert isinstance(error, ConfigStoreRefused)
            assert error.what.endswith("is a node of a Redis Cluster, which would spread the data over several nodes")
            assert "one Redis server" in error.remedy
            assert (Status.FAIL, error.what) in findings(url)
        assert joined.keys("*") == []  # nothing was half written


def test_a_sentinel_and_a_replica_are_told_as_what_they_are(tmp_path: Path) -> None:
    with server(tmp_path, "--save", "") as primary, server(tmp_path, "--save", "") as replica:
        client(primary).set("a", "b")
        client(replica).execute_command("REPLICAOF", LOOPBACK, primary)
        error = refusal(f"redis://{LOOPBACK}:{replica}/0")
        assert "the server is a replica" in error.what
        assert error.transient  # it may become the primary
        assert "of the primary" in error.remedy
        watching = tmp_path / "sentinel.conf"
        watching.write_text(f"sentinel monitor main {LOOPBACK} {primary} 1\n")
        with server(tmp_path, str(watching), "--sentinel") as sentinel:
            client(sentinel)
            error = refusal(f"redis://{LOOPBACK}:{sentinel}/0")
            assert "perhaps it is a Sentinel" in error.what
            assert "of the primary" in error.remedy


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    certificate, key = _self_signed(tmp_path)
    port = free_port()
    tls = ("--tls-port", str(port), "--port", "0", "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
           "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no", "--save", "")  # fmt: skip
    with server(tmp_path, *tls):
        url = f"rediss://{LOOPBACK}:{port}/0"
        redis.Redis(port=port, ssl=True, ssl_cert_reqs="none", retry=Retry(ConstantBackoff(0.1), 100)).ping()
        error = refusal(url)
        assert isinstance(error, ConfigStoreRefused)
        assert "CERTIFICATE_VERIFY_FAILED" in error.what
        assert "?ssl_ca_certs=" in error.remedy
        assert open_config_store(f"{url}?ssl_ca_certs={certificate}").write("acme", {"tenant_id": "acme"}) == 1


def _self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of the tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    ssl.create_default_context(cafile=str(files[0]))  # it can be read
    return files
