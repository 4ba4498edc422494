"""The settings tree: what a run is, in one immutable, typed place. Every default stands here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.common.parallel import cores
from pipeline.config.model_schema import ModelSettings, ScatteringSettings
from pipeline.config.registered import Registered
from pipeline.config.section import Fraction, Positive, Section


class RunSettings(Section):
    """Which run this is, and where it lives."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Folder of the run under `storage`; by default made of the data set, the network and a digest of the settings."""
    storage: str = "runs"
    """Folder that holds the runs; with several nodes, one that all of them see."""


class DataSettings(Section):
    """The prepared data set and how its images become batches."""

    path: str
    """Folder written by `phasecollapse prepare` (it holds manifest.json)."""
    stage: str | None = None
    """Folder on each node's own disk; the data set is copied into it first, once a node, and checked by its hashes. For
    a `path` on a network file system."""
    image_size: Positive = 64
    """Side, in pixels, of the square images that the network sees."""
    classes: Positive | None = None
    """Number of classes the data set must have; by default, whatever it has."""
    random_crop: bool = True
    """Train on random resized crops; without it, on the central crop used in validation."""
    crop_scale: tuple[float, float] = (0.25, 1.0)
    """Smallest and largest area of a random crop, as a fraction of the image's."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a random crop."""
    flip: bool = True
    """Mirror training images left to right with probability 1/2. Textures forbid it: it changes their class."""
    center_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the central square used in validation, as a fraction of the image's shorter side."""
    evaluate_on: Literal["validation", "holdout"] = "validation"
    """What accuracy is measured on: the validation split, or a part of the training images held out from training."""
    holdout: Fraction = 0.1
    """Fraction of the training images held out when `evaluate_on` is holdout (none are otherwise)."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None = None
    """What the data set's digest must begin with ('phasecollapse inspect' prints it); by default any will do."""
    decode_threads: Positive | None = None
    """Threads that decode images, in each worker; by default one on CPUs, which have to compute as well, and all of the
    worker's CPUs with a GPU."""
    shuffle: Literal["full", "blocks"] = "full"
    """Shuffle training images one by one, or, for data larger than memory, in blocks that are read from the disk in one
    go and mixed with those read at the same time."""
    shuffle_lanes: Positive = 32
    """Streams of blocks, dealt to the workers: no two workers read the same blocks if their number divides this one."""
    on_damage: Literal["stop", "skip"] = "stop"
    """What a damaged image does: stop the run and be named, or be left out and counted in the metrics."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError("crop_scale must satisfy 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio must satisfy 0 < smallest <= largest")
        if self.evaluate_on == "holdout" and self.holdout == 0:
            raise ValueError("evaluate_on is holdout, so holdout must be above 0")
        return self


class StartSettings(Section):
    """Where training starts: from new weights, or from those of a network that was trained before (fine-tuning)."""

    checkpoint: str | None = None
    """Folder of a run, whose last checkpoint is taken, or of one checkpoint. The network must be the one of `model`.
    For other classes, and for another image size where its own depends on it, the classifier's linear map is new."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are in the checkpoint, their running statistics too: paths of modules such as blocks.0 or
    classifier.normalization, or shell patterns of them such as blocks.[0-3]."""

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        if self.freeze and self.checkpoint is None:
            raise ValueError("freeze needs checkpoint: parts with random weights would never be trained")
        return self

    def absolute(self) -> Self:
        """The same with an absolute path: workers and trials run in folders of their own."""
        return self.model_copy(update={"checkpoint": self.checkpoint and str(Path(self.checkpoint).absolute())})


class OptimizerSettings(Section):
    """What moves the weights, how far, and which average of them is kept."""

    kind: Annotated[str, Registered("pipeline.training.optimizers:OPTIMIZERS")] = "sgd"
    """Stochastic gradient descent, or AdamW (whose decay is not part of the gradient; usual rates are about 0.001)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Of the gradient's running mean; AdamW's β₁."""
    nesterov: bool = True
    """Look ahead along the momentum; of no meaning for AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """L2 penalty on projections and the linear classifier; normalization parameters and biases have none."""
    schedule: Annotated[str, Registered("pipeline.training.schedules:SCHEDULES")] = "cosine"
    """Cosine decay to zero, or a division by `step_factor` every `step_epochs`."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Linear warm-up from zero over this many epochs."""
    step_epochs: Positive = 70
    step_factor: Annotated[float, Field(gt=1)] = 10.0

    ema_decay: Fraction = 0.0
    """Keep an exponential moving average of the weights, with this decay a step: the average is what is evaluated,
    stored and exported, with statistics computed anew on training images. 0 keeps none; 0.999 is usual."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Shorten the gradient to this norm where it is longer; by default it is left as it is."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self


class TrainingSettings(Section):
    """How long, in what batches, in which precision."""

    epochs: Positive = 30
    batch_size: Positive = 128
    """Images in one step, over all workers: with more workers, each takes fewer."""
    micro_batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images that a worker passes through the network at a time; gradients of a step are added up over such parts, so
    that a large batch fits into little memory. Standardization has the statistics of a part. By default all at once."""
    label_smoothing: Fraction = 0.0
    initial_image_size: Positive | None = None
    """Progressive resizing: train the first epochs on images of this size, then on larger ones, step by step, and on
    those of data.image_size from `resize_end_fraction` on. Needs a pooled classifier. By default all have that size."""
    resize_end_fraction: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Fraction of the epochs after which progressive resizing has reached data.image_size."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 means autocast: weights, statistics and norms stay in float32."""
    activation_checkpointing: bool = False
    """Activation checkpointing: each block keeps only its input and runs again in the backward pass. That takes about a
    third more time, and leaves room for larger batches."""
    compile: bool = False
    """Compile the training step with torch.compile: minutes at the start, for faster steps on a GPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides the initial weights, the order of the images and their augmentation."""
    callbacks: tuple[Annotated[str, Registered("pipeline.training.callbacks:CALLBACKS")], ...] = ()
    """Callbacks of the trainer that packages outside this one have registered, by name."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: standardization needs more than one image")
        return self


class CheckpointSettings(Section):
    """When the state of a run is saved besides after each epoch, and how much of it is kept."""

    every_minutes: Annotated[float, Field(ge=0)] = 15.0
    """Save within an epoch, so often; 0 does not. Saving changes no result."""
    every_steps: Annotated[int, Field(ge=0)] = 0
    """Save within an epoch after each so many of its steps; 0 does not."""
    keep: Positive = 2
    """How many of the newest checkpoints are kept."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """Besides those, the checkpoints of so many epochs with the highest top-1 accuracy."""
    upload: str | None = None
    """Address such as s3://bucket/runs to which run.yaml and the checkpoints are copied in the background; a run whose
    folder is gone goes on from there. Keys belong into the environment (AWS_ACCESS_KEY_ID, …)."""
    max_save_failures: Annotated[int, Field(ge=0)] = 3
    """How often in a row storage may be full or away when a checkpoint is due: training goes on with a warning, and at
    one failure more the run stops."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a run that is told to stop (Ctrl-C, SIGTERM) may take to finish its step and save, on a cluster."""

    @model_validator(mode="after")
    def _check_upload(self) -> Self:
        if self.upload and "@" in self.upload.partition("://")[2].partition("/")[0]:
            raise ValueError("upload must not hold a key, as settings are stored: put it into the environment")
        return self


class ClusterSettings(Section):
    """Workers and what each of them gets."""

    workers: Annotated[int, Field(ge=0)] = 2
    """Ray Train workers; 0 trains in this process, without a cluster."""
    min_workers: Positive | None = None
    """Elastic training: go on with no fewer workers than these when nodes are lost, and with up to `workers` again when
    they return. By default exactly `workers` train, and wait for each other."""
    wait_minutes: Annotated[float, Field(ge=0)] = 0.0
    """How long to wait for a cluster that is too small to grow: its autoscaler is asked for the nodes."""
    network_interface: str | None = None
    """Network interface of the messages between workers (NCCL, gloo), such as eth1; by default they choose."""
    resize_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How often an elastic run looks whether the cluster has room for more workers."""
    cpus_per_worker: Positive | None = None
    """CPUs that each worker reserves, and threads that torch computes with. By default 1, and without a cluster all
    that this process may use."""
    numa: bool = True
    """On machines whose memory is in several parts (NUMA), keep each worker on the CPUs beside its GPU, or, without
    GPUs, on those of one part."""
    gpu: bool = False
    """One GPU for each worker, with NCCL; otherwise CPU, with gloo."""
    address: str | None = None
    """Address of a running Ray cluster, or auto; by default RAY_ADDRESS if it is set, else a local cluster that ends
    with the command."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """How often workers that die are replaced and training goes on from the last checkpoint; -1 is without limit."""

    @property
    def threads(self) -> int:
        """What `cpus_per_worker` comes to in this process."""
        return self.cpus_per_worker or (1 if self.workers else cores())


class TrackingSettings(Section):
    """MLflow."""

    uri: str | None = None
    """Tracking address; by default SQLite and a folder inside `run.storage`, which needs no server."""
    experiment: str = "phasecollapse"
    every_steps: Annotated[int, Field(ge=0)] = 50
    """Curves within epochs: a point for so many steps, of loss, gradient norm, learning rate and images/s. 0 draws
    none."""


class Settings(Section):
    """Everything that decides a run."""

    data: DataSettings
    run: RunSettings = RunSettings()
    model: ModelSettings = ScatteringSettings()
    start: StartSettings = StartSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.training.batch_size < 2 * max(1, self.cluster.workers):
            raise ValueError(
                f"training.batch_size ({self.training.batch_size}) must be at least twice cluster.workers "
                f"({self.cluster.workers}), so that every worker has images in every step"
            )
        if self.cluster.min_workers is not None and self.cluster.min_workers > self.cluster.workers:
            raise ValueError(
                f"cluster.min_workers ({self.cluster.min_workers}) must not exceed cluster.workers "
                f"({self.cluster.workers})"
            )
        if (first := self.training.initial_image_size) is not None:
            if first > self.data.image_size:
                raise ValueError(
                    f"training.initial_image_size ({first}) must not exceed data.image_size ({self.data.image_size})"
                )
            if isinstance(self.model, ScatteringSettings) and self.model.classifier != "pooled":
                raise ValueError(
                    "training.initial_image_size needs model.classifier=pooled: others are for one image size"
                )
        if self.optimizer.warmup_epochs > self.training.epochs:
            raise ValueError("optimizer.warmup_epochs must not exceed training.epochs")
        return self
