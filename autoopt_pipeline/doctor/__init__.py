"""Health checks of settings, stores, servers, packages and programs, each with a remedy."""
