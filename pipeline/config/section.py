"""What all sections of the settings tree have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from data_prep.common.errors import redact


class Section(BaseModel):
    """A part of the settings tree: immutable, every field documented, unknown fields forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        """Settings are stored with every run, shown, and sent to MLflow."""
        for name, value in self.__dict__.items():
            if isinstance(value, str | list | tuple | dict) and any(redact(text) != text for text in _texts(value)):
                raise ValueError(
                    f"{name} must not hold a password or key, as settings are stored and shown: put it into the "
                    "environment (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD, …)"
                )
        return self


@dataclass(frozen=True)
class MayChange:
    """Annotates a setting that may change when a run is resumed, such as ``Annotated[int, MAY_CHANGE]``."""


MAY_CHANGE = MayChange()
"""For settings that decide where and how fast a run computes, and where it is tracked, but not what it is trained on.

With another number of workers, sums are rounded differently and, unless batch statistics are synchronized, each worker
standardizes with those of another part of a batch; the history records the number of workers.
"""


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts(part))


def _check_local(path: str) -> str:
    if "://" in path:
        raise ValueError(
            "must be a path on this machine or a mounted one, not an address: 'phasecollapse stage' fetches data sets, "
            "and checkpoint.upload copies runs"
        )
    return path


LocalPath = Annotated[str, AfterValidator(_check_local)]
"""A path, and not an address such as s3://bucket/x, which would become a folder ``s3:``."""
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)]
"""A name for a folder, as long as file systems allow."""
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
