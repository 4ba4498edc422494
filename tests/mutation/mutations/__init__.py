"""The ways in which `python -m tests.mutation` breaks the code, listed by package."""

from tests.mutation.mutation import Mutation
from tests.mutation.mutations import codec, data_prep, models, runs, training, tuning

MUTATIONS: tuple[Mutation, ...] = (
    *codec.MUTATIONS,
    *data_prep.MUTATIONS,
    *models.MUTATIONS,
    *training.MUTATIONS,
    *runs.MUTATIONS,
    *tuning.MUTATIONS,
)

__all__ = ["MUTATIONS", "Mutation"]
