"""Tests of what deploys the service."""
