"""Tenants' configurations in Redis.

`autoopt:configs` is a hash of every tenant's newest version, so that one request reads thousands,
`autoopt:config-history:{tenant}` is a list of all versions, and `autoopt:config-changes` lists the effect of each
version in the order of time, without the configuration itself. All three change in one transaction.
"""

import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import AskError, ClusterCrossSlotError, ClusterError
from redis.retry import Retry

from autoopt_pipeline.errors import ConfigStoreRefused, ConfigStoreUnavailable
from autoopt_pipeline.secrets import protect_address
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.stores.base import (
    NEVER,
    ConfigChange,
    Risk,
    StoredConfig,
    change_between,
    check_version,
    moment_of,
)

_CURRENT = "autoopt:configs"
_CHANGES = "autoopt:config-changes"
_PROBE = "_doctor"  # not a valid tenant id

# Characters that would end a password in an address, or change its meaning.
_NEEDS_QUOTING = re.compile(r"[/?#\[\]@]|%(?![0-9A-Fa-f]{2})")

_CORRECT = "correct the user and the password in AUTOOPT_CONFIG_STORE_URL (redis://user:password@host:port/db)"
_SET = "set AUTOOPT_CONFIG_STORE_URL to redis://[user:password@]host:port/db"

# The server's refusals, by the class of the error or words in it, with our message and what to do.
_REFUSALS = (
    ((redis.AuthenticationError, "NOAUTH", "HELLO must be called"), "the user or the password is wrong", _CORRECT),
    (("no permissions",), "{error}", "allow its user what docs/install.md lists (ACL SETUSER)"),
    (
        (AskError, ClusterError, ClusterCrossSlotError, "not allowed in cluster mode"),
        "the server is a node of a Redis Cluster, which would spread the data over several nodes",
        "use one Redis server, with replicas if you like",
    ),
    (
        ("unknown command",),
        "the server does not store data, perhaps it is a Sentinel: {error}",
        f"{_SET} of the primary",
    ),
    ((redis.ReadOnlyError,), "the server is a replica: {error}", f"{_SET} of the primary"),
    (
        ("CERTIFICATE_VERIFY_FAILED",),
        "{error}",
        "name your certificate authority: rediss://...?ssl_ca_certs=/path/ca.pem",
    ),
)


class RedisConfigStore:
    """See `TenantConfigStore`."""

    def __init__(self, url: str) -> None:
        protect_address(url)
        self._shown = _shown(url)
        try:
            self._redis = redis.Redis.from_url(
                url,
                decode_responses=True,
                encoding_errors="replace",  # invalid UTF-8 in one tenant's entry must not hide the others
                socket_timeout=10,
                socket_connect_timeout=5,
                retry=Retry(ExponentialBackoff(cap=1, base=0.1), retries=2),
            )
            pool = self._redis.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # checks the options after the "?" without connecting
        except (ValueError, TypeError):
            # Their text may quote the URL with its password.
            raise ConfigStoreRefused(
                f"configuration store {self._shown}: the address is not a Redis URL", _SET
            ) from None

    @property
    def name(self) -> str:
        return self._shown

    def current(self) -> Mapping[str, StoredConfig]:
        with self._errors():
            entries = dict(self._redis.hgetall(_CURRENT))
        return {str(tenant): _stored(tenant, entry) for tenant, entry in entries.items()}

    def history(self, tenant_id: str) -> list[StoredConfig]:
        # No transaction, because a server out of memory refuses transactions but still answers reads.
        with self._errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.lrange(_history_key(tenant_id), 0, -1)
            pipe.hget(_CURRENT, tenant_id)
            entries, current = pipe.execute()
        versions = [_stored(tenant_id, entry) for entry in entries]
        newest = _stored(tenant_id, current) if current else None
        # A server that evicts keys may have dropped the history alone.
        return [*versions, newest] if newest and not versions else versions

    def changes(self, before: datetime | None, limit: int) -> list[ConfigChange]:
        latest = f"({before.timestamp()!r}" if before else "+inf"
        with self._errors():
            entries = list(self._redis.zrevrangebyscore(_CHANGES, latest, "-inf", start=0, num=limit))
        return [change for entry in entries if (change := _change(str(entry)))]

    def write(
        self,
        tenant_id: str,
        document: object | None,
        *,
        actor: str = "",
        expected_version: int | None = None,
        since: datetime | None = None,
    ) -> int:
        validate_tenant_id(tenant_id)
        key = _history_key(tenant_id)
        with self._errors(), self._redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)
                    last = pipe.lindex(key, -1) or pipe.hget(_CURRENT, tenant_id)
                    newest = _stored(tenant_id, str(last)) if last else None
                    version = newest.version + 1 if newest else 1
                    check_version(tenant_id, version - 1, expected_version)
                    begins = since or (newest.since if newest else None)
                    text = None if document is None else json.dumps(document, sort_keys=True)
                    written = StoredConfig(tenant_id, version, datetime.now(UTC), text, actor, begins)
                    change = change_between(newest, written)
                    entry = _entry(written)
                    pipe.multi()
                    pipe.rpush(key, entry)
                    pipe.zadd(_CHANGES, {_encoded_change(change): change.at.timestamp()})
                    if document is None:
                        pipe.hdel(_CURRENT, tenant_id)
                    else:
                        pipe.hset(_CURRENT, tenant_id, entry)
                    pipe.execute()
                    return version
                except redis.WatchError:
                    continue  # somebody else wrote in between: read again, and let expected_version decide

    def check_writable(self) -> None:
        # One transaction, so that nobody sees the temporary entries.
        with self._errors(), self._redis.pipeline() as pipe:
            pipe.rpush(_history_key(_PROBE), "")
            pipe.hset(_CURRENT, _PROBE, "")
            pipe.hdel(_CURRENT, _PROBE)
            pipe.lpop(_history_key(_PROBE))
            pipe.zadd(_CHANGES, {_PROBE: 0}, xx=True)  # only changes existing entries
            pipe.execute()

    def risks(self) -> list[Risk]:
        """Eviction and persistence, as far as the server tells them; managed ones often do not."""
        risks = []
        with self._errors():
            try:
                policy = str(self._redis.info("memory").get("maxmemory_policy"))
                append_only = self._redis.info("persistence").get("aof_enabled")
                snapshots = self._redis.config_get("save").get("save")
            except redis.ResponseError as e:
                return [
                    Risk(
                        f"eviction and persistence are unknown: {e}",
                        "check that the server evicts nothing and stores data on disk",
                    )
                ]
        if policy.startswith("allkeys"):
            risks.append(
                Risk(
                    f"maxmemory-policy is {policy}: tenants are deleted when the memory is full",
                    "set maxmemory-policy to noeviction",
                )
            )
        if not append_only and not snapshots:
            risks.append(
                Risk("the server keeps nothing on disk: a restart loses all tenants", "set 'appendonly yes', or 'save'")
            )
        return risks

    @contextmanager
    def _errors(self) -> Generator[None, None, None]:
        try:
            yield
        except (redis.RedisError, OSError) as e:
            # An error of a pipeline quotes the command, which contains the configuration.
            message = re.sub(r"^Command # \d+ \(.*?\) of pipeline caused error: ", "", str(e), flags=re.DOTALL)
            for signs, what, remedy in _REFUSALS:
                if any(sign in message if isinstance(sign, str) else isinstance(e, sign) for sign in signs):
                    # Transient, because a replica may become the primary.
                    kind = ConfigStoreUnavailable if isinstance(e, redis.ReadOnlyError) else ConfigStoreRefused
                    raise kind(f"configuration store {self._shown}: {what.format(error=message)}", remedy) from None
            raise ConfigStoreUnavailable(
                f"configuration store {self._shown}: {message}", "check AUTOOPT_CONFIG_STORE_URL and that Redis is up"
            ) from None


def _shown(url: str) -> str:
    """The address without user and password. Raises `ConfigStoreRefused` if it is not a Redis URL."""
    rest = url.partition("://")[2]
    if "#" in rest or _NEEDS_QUOTING.search(rest.rpartition("@")[0]):
        # Otherwise a part of the password would count as the host, which errors quote.
        raise ConfigStoreRefused(
            "configuration store redis://...: the password in the address has to be quoted",
            "write its / ? # [ ] @ % as %2F %3F %23 %5B %5D %40 %25 in AUTOOPT_CONFIG_STORE_URL",
        )
    try:
        address = urlsplit(url)
        where = f"{address.hostname}:{address.port or 6379}" if address.hostname else "..."
        if address.path.strip("/").isdigit() or not address.path.strip("/"):
            return f"{address.scheme}://{where}{address.path}"
    except ValueError:
        pass
    raise ConfigStoreRefused("configuration store redis://...: the address is not a Redis URL", _SET) from None


def _history_key(tenant_id: str) -> str:
    return f"autoopt:config-history:{tenant_id}"


def _entry(config: StoredConfig) -> str:
    return json.dumps(
        {
            "version": config.version,
            "written_at": config.written_at.isoformat(),
            "document": config.text,
            "actor": config.actor,
            "since": config.since.isoformat() if config.since else None,
        }
    )


def _encoded_change(change: ConfigChange) -> str:
    return json.dumps(asdict(change) | {"at": change.at.isoformat()})


def _change(entry: str) -> ConfigChange | None:
    """Parse an entry; None if another program wrote it."""
    try:
        fields = json.loads(entry)
        at = datetime.fromisoformat(fields["at"])
        texts = (str(fields[name]) for name in ("actor", "what"))
        return ConfigChange(str(fields["tenant_id"]), int(fields["version"]), at, *texts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _stored(tenant_id: str | bytes, entry: str | bytes) -> StoredConfig:
    try:
        fields = json.loads(entry)
        return StoredConfig(
            str(tenant_id),
            int(fields["version"]),
            datetime.fromisoformat(fields["written_at"]),
            None if fields["document"] is None else str(fields["document"]),
            str(fields.get("actor", "")),
            moment_of(fields.get("since")),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return StoredConfig(str(tenant_id), 0, NEVER, f"not written by this system: {str(entry)[:80]}")
