"""Claims about addresses: no secret in one is shown or stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from data_prep.common.storage import redact
from pipeline.config.schema import Settings
from pipeline.config.settings_io import load, resolve

SECRETS = [
    "http://u:secret@host:5000",
    "postgresql://u:secret@127.0.0.1:5999/db",
    "s3://AKIA:se/secret+/=@bucket/runs",
    "s3://secret@bucket/runs",
    "https://host/train.tar?X-Amz-Credential=AKIA%2Fx&X-Amz-Signature=secret",
    "https://account.blob.core.windows.net/c/train?sv=2022&sig=secret%3D",
    "s3://bucket/runs?access_key=AKIA&secret_key=secret&region=eu",
]
HARMLESS = [
    "s3://bucket/folder@2x/images",
    "s3://bucket/a:b@c/images",
    "s3://bucket/runs?region=eu&endpoint_override=localhost:9000",
    "http://127.0.0.1:5000",
    "sqlite:////data/runs/mlflow.db",
    "/data/imagenet?secret=1",
]


@pytest.mark.parametrize("address", SECRETS)
def test_secrets_are_removed_from_addresses_and_from_sentences_that_hold_them(address: str) -> None:
    assert "secret" not in redact(address).replace("secret_key=", "")
    sentence = redact(f"{address} and '{address}' cannot be read")
    assert "=secret" not in sentence and ":secret" not in sentence and sentence.endswith(" cannot be read")


@pytest.mark.parametrize("address", HARMLESS)
def test_addresses_without_secrets_stay_as_they_are(address: str) -> None:
    assert redact(address) == address


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("field", ["tracking.uri", "checkpoint.upload", "start.checkpoint", "cluster.address"])
def test_settings_with_secrets_are_refused_without_showing_them(field: str, address: str) -> None:
    section, name = field.split(".")
    content = {"data": {"path": "x"}}
    content.setdefault(section, {})[name] = address
    with pytest.raises(UserError, match=rf"{section}: {name} must not hold a password or key") as error:
        resolve(Settings, content, "run.yaml")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "assignment",
    [
        "tracking.uri={}",
        "tracking={{uri: '{}'}}",
        "tracking.url={}",
        "tracking.uri.x={}",
        "tracking={{uri: '{}'",
        "{}",
        "data.path={}",
        "run.name={}",
        "training.epochs={}",
    ],
)
def test_wrong_overrides_are_named_without_their_secrets(assignment: str, tmp_path: Path) -> None:
    (file := tmp_path / "run.yaml").write_text("data: {path: x}\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        load(file, [assignment.format("http://u:secret@host:5000")])
    assert "secret" not in str(error.value) and "http://host:5000" in str(error.value)


@pytest.mark.parametrize("field", ["data.path", "data.stage", "run.storage"])
def test_an_address_is_no_path(field: str) -> None:
    section, name = field.split(".")
    content: dict[str, dict[str, str]] = {"data": {"path": "x"}}
    content.setdefault(section, {})[name] = "s3://bucket/x"
    with pytest.raises(UserError, match=rf"{field}: must be a path on this machine"):
        resolve(Settings, content, "run.yaml")
