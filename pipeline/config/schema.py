"""The settings tree of a run: typed, immutable, and the only place of every default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.common.parallel import cores
from pipeline.config.model_schema import ModelSettings, ScatteringSettings
from pipeline.config.references import REFERENCES
from pipeline.config.registered import Registered
from pipeline.config.section import MAY_CHANGE, FolderName, Fraction, LocalPath, Positive, Section


class RunSettings(Section):
    """The name of the run, and where it is stored."""

    name: Annotated[FolderName | None, MAY_CHANGE] = None
    """Folder of the run, inside `storage`; by default composed of the data set, the network and a digest of the
    settings."""
    storage: Annotated[LocalPath, MAY_CHANGE] = "runs"
    """Folder that holds the runs; with several nodes, a folder that all of them share."""


class DataSettings(Section):
    """The prepared data set, and how its images become batches."""

    path: Annotated[LocalPath, MAY_CHANGE]
    """Folder written by `phasecollapse prepare` (it holds manifest.json)."""
    stage: Annotated[LocalPath | None, MAY_CHANGE] = None
    """Folder on a local disk of each node, for a `path` on a network file system: the data set is copied into it, once
    per node, and verified by its hashes before training."""
    image_size: Annotated[int, Field(ge=1, le=2048)] = 64
    """Side, in pixels, of the square images that the network is given."""
    classes: Positive | None = None
    """Number of classes that the data set must have; by default any number."""
    random_crop: bool = True
    """Train on random resized crops; if false, on the central crop used in validation."""
    crop_scale: tuple[float, float] = (0.25, 1.0)
    """Smallest and largest area of a random crop, as fractions of the image's area."""
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    """Smallest and largest aspect ratio (width / height) of a random crop."""
    flip: bool = True
    """Flip training images horizontally with probability 1/2. Set it to false where that changes the class, as for
    textures."""
    augmentations: tuple[Annotated[str, Registered("data_prep.loading.transforms:AUGMENTATIONS")], ...] = ()
    """Names of further augmentations of training images, applied in this order after cropping and flipping."""
    center_crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the central square crop used in validation, as a fraction of the image's shorter side."""
    evaluate_on: Literal["validation", "holdout"] = "validation"
    """Images on which accuracy is measured: the validation split, or training images held out from training."""
    holdout: Fraction = 0.1
    """Fraction of the training images that is held out if `evaluate_on` is holdout; otherwise none are."""
    digest: Annotated[Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")] | None, MAY_CHANGE] = None
    """First digits of the digest that the data set must have ('phasecollapse inspect' prints it); by default any
    digest."""
    decode_threads: Annotated[Positive | None, MAY_CHANGE] = None
    """Threads that decode images, per worker; by default 1 on CPUs, which also compute, and all CPUs of the worker if
    it has a GPU."""
    shuffle: Literal["full", "blocks"] = "full"
    """Shuffle training images one by one (full), or, for data larger than memory, in blocks, each read sequentially
    from disk and mixed with those read at the same time."""
    shuffle_lanes: Positive = 32
    """Number of block streams, divided among the workers; no two workers read the same blocks if it is a multiple of
    their number."""
    on_damage: Literal["stop", "skip"] = "stop"
    """At a damaged image: stop the run and name the image, or skip it and count it in the metrics."""

    reader: Literal["native", "ffcv"] = "native"
    """What loads training images: this package's loader, or stock FFCV's, which needs the extra ffcv and a merged data
    set. FFCV does not check what it decodes and does not seed its augmentation: a resumed run gives other bits.
    Evaluation always uses the native reader."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError("crop_scale must satisfy 0 < smallest <= largest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError("crop_ratio must satisfy 0 < smallest <= largest")
        if self.evaluate_on == "holdout" and self.holdout == 0:
            raise ValueError("evaluate_on is holdout, so holdout must be above 0")
        if self.reader == "ffcv":
            for name, only in (("on_damage", "stop"), ("shuffle", "full"), ("augmentations", ())):
                if getattr(self, name) != only:
                    raise ValueError(f"reader is ffcv, which does not support {name}={getattr(self, name)}: unset it")
        return self


class StartSettings(Section):
    """The initial weights: new ones, or those of a network that was trained before (fine-tuning)."""

    checkpoint: Annotated[str | None, MAY_CHANGE] = None
    """Folder of a run, whose latest checkpoint is used, or of one checkpoint; or a model in the tracking store, such as
    models:/NAME@champion or runs:/ID/best. Its network must be the one of `model`. The linear classifier gets new
    weights if the classes differ, or if the image size differs and its shape depends on it."""
    freeze: tuple[str, ...] = ()
    """Parts that keep the weights and running statistics of the checkpoint: module paths such as blocks.0 or
    classifier.normalization, or shell patterns of them such as blocks.[0-3]."""

    @model_validator(mode="after")
    def _check_freeze(self) -> Self:
        if self.freeze and self.checkpoint is None:
            raise ValueError("freeze needs checkpoint: parts with random weights would never be trained")
        return self

    def absolute(self) -> Self:
        """The same settings with an absolute path, for workers and trials, which run in other folders."""
        if self.checkpoint is None or self.checkpoint.startswith(REFERENCES):
            return self
        return self.model_copy(update={"checkpoint": str(Path(self.checkpoint).absolute())})


class OptimizerSettings(Section):
    """The optimizer, its learning rate schedule, and the moving average of the weights."""

    kind: Annotated[str, Registered("pipeline.training.optimizers:OPTIMIZERS")] = "sgd"
    """Stochastic gradient descent, or AdamW (decoupled weight decay; usual learning rates are about 0.001)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """Momentum for SGD, β₁ for AdamW."""
    nesterov: bool = True
    """Nesterov momentum for SGD; AdamW ignores it."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Weight decay of projections and the linear classifier; normalization parameters and biases have none."""
    schedule: Annotated[str, Registered("pipeline.training.schedules:SCHEDULES")] = "cosine"
    """Cosine decay to zero, or division by `step_factor` every `step_epochs` epochs."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from zero."""
    step_epochs: Positive = 70
    """Epochs between two divisions, for the schedule `step`."""
    step_factor: Annotated[float, Field(gt=1)] = 10.0
    """Divisor of the learning rate, for the schedule `step`."""
    ema_decay: Fraction = 0.0
    """Decay per step of an exponential moving average of the weights. The average is evaluated, stored and exported,
    with running statistics recomputed on training images. 0 keeps no average; 0.999 is usual."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum gradient norm; larger gradients are scaled down. By default there is no maximum."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> Self:
        if self.kind == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self


class TrainingSettings(Section):
    """Duration, batches and precision of training."""

    epochs: Positive = 30
    """Number of passes over the training images."""
    batch_size: Positive = 128
    """Images per step, over all workers: with more workers, each gets fewer."""
    micro_batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images that a worker passes through the network at a time (gradient accumulation), so that a large batch fits
    into little memory. Batch statistics are those of each micro-batch. By default all images of the worker."""
    label_smoothing: Fraction = 0.0
    """Probability mass of the targets that is spread evenly over all classes."""
    initial_image_size: Positive | None = None
    """Progressive resizing: image size, in pixels, of the first epochs; it grows in steps to data.image_size, which it
    reaches after `resize_end_fraction` of the epochs. Needs a pooled classifier. By default every epoch uses
    data.image_size."""
    resize_end_fraction: Annotated[float, Field(gt=0, le=1)] = 0.7
    """Fraction of the epochs after which progressive resizing has reached data.image_size."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is mixed precision by autocast: weights, statistics and norms stay in float32."""
    activation_checkpointing: Annotated[bool, MAY_CHANGE] = False
    """Keep only the input of each block for the backward pass, and compute the block again there: about a third more
    time per step, for less memory."""
    compile: bool = False
    """Compile the training step with torch.compile: minutes at the start, for faster steps on a GPU."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    callbacks: tuple[Annotated[str, Registered("pipeline.training.callbacks:CALLBACKS")], ...] = ()
    """Callbacks of the trainer that packages outside this one have registered, by name."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size < 2:
            raise ValueError("batch_size must be at least 2: standardization needs more than one image")
        return self


class CheckpointSettings(Section):
    """When checkpoints are saved besides after each epoch, and which are kept."""

    every_minutes: Annotated[float, Field(ge=0), MAY_CHANGE] = 15.0
    """Minutes between two checkpoints within an epoch; 0 saves none. Saving changes no result."""
    every_steps: Annotated[int, Field(ge=0), MAY_CHANGE] = 0
    """Steps between two checkpoints within an epoch; 0 saves none."""
    keep: Annotated[Positive, MAY_CHANGE] = 2
    """Number of latest checkpoints to keep."""
    keep_best: Annotated[int, Field(ge=0), MAY_CHANGE] = 1
    """Number of further checkpoints to keep: those of the epochs with the highest top-1 accuracy."""
    upload: Annotated[str | None, MAY_CHANGE] = None
    """Address such as s3://bucket/runs to which run.yaml and the checkpoints are copied in the background; a run whose
    folder is missing resumes from there. Credentials belong in the environment (AWS_ACCESS_KEY_ID, …)."""
    max_save_failures: Annotated[int, Field(ge=0), MAY_CHANGE] = 3
    """Number of consecutive checkpoints that may fail to be saved because storage is full or unreachable: each is a
    warning, and one more ends the run."""
    grace_seconds: Annotated[float, Field(ge=0), MAY_CHANGE] = 60.0
    """Seconds that a run on a cluster has, after Ctrl-C or SIGTERM, to finish its step and save."""


class ClusterSettings(Section):
    """The workers, and the resources of each."""

    workers: Annotated[int, Field(ge=0), MAY_CHANGE] = 2
    """Number of Ray Train workers; 0 trains in this process, without a cluster."""
    min_workers: Annotated[Positive | None, MAY_CHANGE] = None
    """Elastic training: the smallest number of workers to train with when nodes are lost; when they return, up to
    `workers` train again. By default training needs exactly `workers`."""
    wait_minutes: Annotated[float, Field(ge=0), MAY_CHANGE] = 0.0
    """Minutes to wait for a cluster that is too small to grow; its autoscaler is asked for the nodes."""
    network_interface: Annotated[str | None, MAY_CHANGE] = None
    """Network interface for the traffic between workers (NCCL, gloo), such as eth1; by default NCCL and gloo choose."""
    resize_seconds: Annotated[float, Field(gt=0), MAY_CHANGE] = 60.0
    """Seconds between two checks of an elastic run whether the cluster has room for more workers."""
    cpus_per_worker: Annotated[Positive | None, MAY_CHANGE] = None
    """CPUs that each worker reserves, and threads that torch uses in it; by default 1, and without a cluster all CPUs
    of this process."""
    numa: Annotated[bool, MAY_CHANGE] = True
    """On machines with several NUMA nodes, bind each worker to the CPUs of one node: the one of its GPU, if it has
    one."""
    gpu: Annotated[bool, MAY_CHANGE] = False
    """One GPU per worker, with NCCL; otherwise CPUs, with gloo."""
    address: Annotated[str | None, MAY_CHANGE] = None
    """Address of a running Ray cluster, or auto; by default RAY_ADDRESS if it is set, otherwise a local cluster that is
    started for this command."""
    max_failures: Annotated[int, Field(ge=-1), MAY_CHANGE] = 3
    """How often failed workers are replaced and training resumes from the latest checkpoint; -1 sets no limit."""

    @property
    def threads(self) -> int:
        """Threads per worker: `cpus_per_worker`, or its default in this process."""
        return self.cpus_per_worker or (1 if self.workers else cores())


class TrackingSettings(Section):
    """Experiment tracking with MLflow."""

    uri: Annotated[str | None, MAY_CHANGE] = None
    """Tracking URI; by default MLFLOW_TRACKING_URI or, without it, an SQLite database and a folder inside
    `run.storage`, which need no server. A server's password belongs in the environment (MLFLOW_TRACKING_USERNAME,
    MLFLOW_TRACKING_PASSWORD; PGUSER, PGPASSWORD)."""
    experiment: Annotated[str, MAY_CHANGE] = "phasecollapse"
    """Name of the MLflow experiment; MLFLOW_EXPERIMENT_NAME is used if it is not set."""
    every_steps: Annotated[int, Field(ge=0), MAY_CHANGE] = 50
    """Steps per point of the curves within epochs: loss, gradient norm, learning rate and images/s. 0 records none."""
    system_seconds: Annotated[float, Field(ge=0), MAY_CHANGE] = 15
    """Seconds per point of the load of each machine: CPU, memory, network, and each GPU. 0 records none."""
    pictures: Annotated[bool, MAY_CHANGE] = True
    """Draw pictures into the folder of the run: samples of its input before training; learning curves, confusion
    matrix, worst mistakes, filters and spectra of the weights after the last evaluation."""
    tensorboard: Annotated[bool, MAY_CHANGE] = False
    """Write event files for TensorBoard, too, into the folder `tensorboard` of the run."""


class Settings(Section):
    """All settings of a run."""

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
                    "training.initial_image_size needs model.classifier=pooled: the others fit one image size only"
                )
        if self.data.reader == "ffcv" and self.cluster.min_workers is not None:
            raise ValueError(
                "cluster.min_workers must stay unset where data.reader is ffcv: an epoch cannot continue with another "
                "number of workers"
            )
        if self.data.reader == "ffcv" and self.training.initial_image_size is not None:
            raise ValueError(
                "training.initial_image_size must stay unset where data.reader is ffcv, which compiles for one size"
            )
        if self.data.reader == "ffcv" and self.checkpoint.every_steps:
            raise ValueError(
                "checkpoint.every_steps must be 0 where data.reader is ffcv: an epoch cannot be resumed exactly"
            )
        if self.optimizer.warmup_epochs > self.training.epochs:
            raise ValueError("optimizer.warmup_epochs must not exceed training.epochs")
        return self
