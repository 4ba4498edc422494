"""One self-contained HTML page about a run, several runs, or a search: figures inside, no script, no network."""
