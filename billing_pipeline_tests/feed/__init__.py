"""Tests of the live billing activity feed, on a real PostgreSQL and a Redis of the tests' own."""
