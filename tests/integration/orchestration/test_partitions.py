"""Tenants become partitions once, whoever makes them so."""

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import dagster as dg

from autoopt_pipeline.orchestration.partitions import register_tenant, registered_tenants


def test_a_tenant_that_somebody_else_makes_a_partition_at_the_same_moment_is_one(instance: dg.DagsterInstance) -> None:
    (database,) = Path(instance.root_directory).glob("**/index.db")
    with ThreadPoolExecutor() as pool, closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO dynamic_partitions (partitions_def_name, partition) VALUES ('tenants', 'acme')")
        registering = pool.submit(register_tenant, instance, "acme")
        time.sleep(1)  # it has found no such partition, and waits until it may write
        assert not registering.done()
        other.execute("COMMIT")
        registering.result(timeout=60)
    assert registered_tenants(instance) == {"acme"}
