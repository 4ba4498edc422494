"""Breaks the code on purpose and shows that a test notices: python -m tests.mutation."""
