"""Shell completion of tenants and modules. Offers nothing, without a message, if they cannot be read."""

from contextlib import suppress


def complete_tenant(incomplete: str) -> list[str]:
    from autoopt_pipeline.cli.context import open_connections

    with suppress(Exception):
        return sorted(tenant for tenant in open_connections().configs.current() if tenant.startswith(incomplete))
    return []


def complete_module(incomplete: str) -> list[str]:
    from autoopt_pipeline.modules.catalog import module_names

    with suppress(Exception):
        return [name for name in module_names() if name.startswith(incomplete)]
    return []
