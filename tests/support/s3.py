"""S3, as moto plays it."""

from collections.abc import Generator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_bucket() -> Generator[str]:
    """The address of an S3 server with an empty bucket, for this process."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    import fsspec

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # they may speak to another test's server
    fsspec.core.url_to_fs("s3://bucket")[0].makedirs("bucket", exist_ok=True)  # moto has one store in a process
    yield "s3://bucket"
    server.stop()
    patch.undo()
