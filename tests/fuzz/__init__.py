"""Damaged files for the decoder and the shard reader: python -m tests.fuzz."""
