"""Names of models and runs in MLflow, where the folder of a run or a checkpoint could be named, too."""

REFERENCES = ("models:/", "runs:/")
"""How they begin."""
