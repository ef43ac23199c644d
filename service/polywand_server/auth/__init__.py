"""Authentication: from a call's token or certificate to its principal."""
