"""`autoopt dashboard`: pages that show the state of tenants' modules and let people decide about them."""
