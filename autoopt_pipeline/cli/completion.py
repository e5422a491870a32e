"""What the shell completes: tenants and modules. Where they cannot be read, nothing is, and nothing is said."""

from contextlib import suppress


def complete_tenant(incomplete: str) -> list[str]:
    from autoopt_pipeline.cli.context import connections

    with suppress(Exception):
        return sorted(tenant for tenant in connections().configs.current() if tenant.startswith(incomplete))
    return []


def complete_module(incomplete: str) -> list[str]:
    from autoopt_pipeline.modules.catalog import module_names

    with suppress(Exception):
        return [name for name in module_names() if name.startswith(incomplete)]
    return []
