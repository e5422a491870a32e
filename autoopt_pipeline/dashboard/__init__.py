"""`autoopt dashboard`: pages that show how tenants' modules stand, and let people decide about them."""
