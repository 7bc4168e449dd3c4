"""The typed recipe: every key a run may set, with its unit, default and allowed values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, PrivateAttr

from data_pipeline.stream import ONLY_SOURCE
from ptm_dist.recipe.places import Places


class Section(BaseModel):
    """A group of keys; an unknown key is an error, a value never changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Precision(StrEnum):
    """Number formats of a training step."""

    FP32 = "fp32"
    """Everything in float32."""
    FP64 = "fp64"
    """Everything in float64: for parity proofs."""
    BF16 = "bf16"
    """Compute in bfloat16; float32 master weights, gradient reduction and optimizer state."""
    FP16 = "fp16"
    """Compute in float16 with a loss scale that adapts; the rest as in bf16."""


class Recompute(StrEnum):
    """What is computed again in the backward pass instead of being stored."""

    NONE = "none"
    """Every activation is stored."""
    SELECTIVE = "selective"
    """Results of matrix products and attention are stored, the rest runs again (arXiv 2205.05198)."""
    FULL = "full"
    """Each block stores its input only (Chen et al. 2016, arXiv 1604.06174)."""


class PipelineSchedule(StrEnum):
    """In which order a pipeline's stages compute the micro-batches of a step."""

    GPIPE = "gpipe"
    """All forward passes, then all backward passes (Huang et al. 2018, arXiv 1811.06965)."""
    ONE_F_ONE_B = "1f1b"
    """Forward and backward passes in turn: few micro-batches are stored (Narayanan et al. 2019, arXiv 1806.03377)."""
    LOOPED_BFS = "looped_bfs"
    """Several stages per rank, all micro-batches through one of them first (Lamy-Poirier 2022, arXiv 2211.05953)."""
    INTERLEAVED_1F1B = "interleaved_1f1b"
    """1f1b with several stages per rank (Narayanan et al. 2021, arXiv 2104.04473)."""
    INTERLEAVED_ZERO_BUBBLE = "interleaved_zero_bubble"
    """The same with the gradients of weights put off into the gaps (Qi et al. 2023, arXiv 2401.10241)."""
    ZBV_ZERO_BUBBLE = "zbv_zero_bubble"
    """Two stages per rank, the second ones in reverse order, gradients of weights put off (same paper)."""
    DUALPIPEV = "dualpipev"
    """Stages as in zbv, with forward and backward passes of different stages side by side (DeepSeek-V3, 2412.19437)."""
    FILE = "file"
    """What layout.pipeline_schedule_file says."""


class Family(StrEnum):
    """Model families; each is a small file in ptm_dist/models."""

    GPT1 = "gpt1"
    """Post-LayerNorm decoder (Radford et al. 2018)."""
    GPT2 = "gpt2"
    """Pre-LayerNorm decoder (Radford et al. 2019)."""
    GPT3 = "gpt3"
    """GPT-2 with alternating dense and locally banded attention (Brown et al. 2020)."""
    BERT = "bert"
    """Encoder with segments and a pair head (Devlin et al. 2018)."""
    ROBERTA = "roberta"
    """BERT without pairs (Liu et al. 2019)."""
    ALBERT = "albert"
    """BERT with factorised embeddings and shared layers (Lan et al. 2019)."""


class ModelSection(Section):
    """Architecture: what is learnt."""

    family: Family = Family.GPT2
    """gpt1, gpt2, gpt3, bert, roberta or albert: sets what the keys below leave out."""
    vocab_size: PositiveInt
    """Rows of the token embedding; at least the tokenizer's vocabulary."""
    max_positions: PositiveInt = 1024
    """Rows of the position embedding: the longest sequence the model takes."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    num_layers: PositiveInt
    """Number of transformer blocks."""
    num_heads: PositiveInt
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: PositiveInt | None = None
    """Width of the feed-forward layer; 4 * hidden_size when left out."""
    embedding_size: PositiveInt | None = None
    """Width of the token embedding (bert, roberta, albert); left out: 128 in albert, hidden_size in the others."""
    layer_groups: PositiveInt | None = None
    """Distinct blocks, each used by num_layers / layer_groups layers; left out: 1 in albert, else num_layers."""
    attention_band: NonNegativeInt | None = None
    """Positions that every second layer looks back on, itself included; 0: all; left out: 256 in gpt3, else 0."""
    layer_norm_eps: PositiveFloat | None = None
    """Added to the variance in LayerNorm; left out: 1e-12 in bert and albert, 1e-5 in the others."""
    activation: Literal["gelu_tanh", "gelu_erf"] | None = None
    """GELU by tanh approximation or exact; left out: gelu_erf in roberta, gelu_tanh in the others, as published."""
    tie_embeddings: bool = True
    """The head over the vocabulary is the token embedding."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the embeddings and of what attention and feed-forward layers add that is dropped in training."""
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the attention probabilities that is dropped in training; left out: the same as dropout."""
    initializer_std: PositiveFloat = 0.02
    """Standard deviation of initial weights."""
    position_initializer_std: PositiveFloat | None = None
    """Standard deviation of initial position embeddings; left out: 0.01 in gpt2 and gpt3, else initializer_std."""

    @property
    def ffn_width(self) -> int:
        """Width of the feed-forward layer, default filled in."""
        return self.ffn_hidden_size or 4 * self.hidden_size


class DataSourceSection(Section):
    """One of several data sets that a run mixes."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Tells it apart; its order depends on the name, not on its place in the list."""
    path: str
    """Folder or URL written by `ptm data build`: holds train/ and validation/."""
    weight: NonNegativeFloat
    """Its share of the samples, beside the weights of the others."""
    max_epochs: PositiveFloat | None = None
    """How often it may be repeated; left out: data.max_epochs."""


class WeightChangeSection(Section):
    """New weights in the middle of a run; no sample is skipped or repeated."""

    from_step: Annotated[int, Field(ge=2)]
    """The first step that is mixed with them, as in metrics.jsonl."""
    weights: tuple[NonNegativeFloat, ...]
    """One for each of data.sources, in their order."""


class DataCacheSection(Section):
    """What is kept on each machine: shards of URLs, and where samples begin."""

    directory: str | None = None
    """Folder that all ranks of a machine share; left out: ptm-dist in $XDG_CACHE_HOME or ~/.cache."""
    limit_gb: PositiveFloat = 100.0
    """Gigabytes (10^9 bytes) of shards it may hold; those needed latest give way."""
    retries: NonNegativeInt = 5
    """Times that a failed request is repeated, each after a longer pause."""
    timeout_seconds: PositiveFloat = 60.0
    """Seconds without a byte after which a request has failed."""


class DataSection(Section):
    """Token shards and how samples are cut from them."""

    path: str | None = None
    """Folder or URL (s3://, https://, ...) written by `ptm data build`: holds train/ and validation/."""
    sources: tuple[DataSourceSection, ...] = ()
    """Several data sets in place of data.path."""
    weight_changes: tuple[WeightChangeSection, ...] = ()
    """Other weights of the sources from later steps on."""
    tokenizer: Path
    """Folder written by `ptm tokenizer train`; must be the one that made the shards."""
    sequence_length: PositiveInt
    """Tokens of a sample that the model reads."""
    shuffle: Literal["global", "block", "none"] = "global"
    """Order of the training samples within an epoch; block: shards are permuted, and the samples of shuffle_shards
    of them at a time, so that a run from a URL needs few shards at once."""
    shuffle_shards: PositiveInt = 16
    """Shards that shuffle=block mixes with each other."""
    max_epochs: PositiveFloat = 1.0
    """How often the data may be repeated; a run that needs more is refused at the start."""
    num_workers: NonNegativeInt = 0
    """Loader processes per rank; 0 loads in the training process."""
    prefetch_steps: PositiveInt = 4
    """Steps that each loader process prepares ahead."""
    on_broken: Literal["raise", "replace"] = "raise"
    """What to do about a shard that stays unreadable; replace: read other samples in place of its own, the same on
    every rank and after every restart."""
    broken_limit_ppm: NonNegativeInt = 1000
    """With on_broken=replace, the most tokens (millionths of the data set) that may be replaced."""
    cache: DataCacheSection = DataCacheSection()
    """Local copies of shards that lie elsewhere, and indexes of samples."""

    @property
    def named_sources(self) -> tuple[DataSourceSection, ...]:
        """The data sets; a single one is called train."""
        if self.path is not None:
            return (DataSourceSection(name=ONLY_SOURCE, path=self.path, weight=1.0),)
        return self.sources


class ObjectiveSection(Section):
    """What the model is asked to predict."""

    kind: Literal["causal", "mlm", "mlm_nsp", "mlm_sop"] = "causal"
    """causal: the next token (gpt). mlm: masked tokens of full sentences (roberta). mlm_nsp, mlm_sop: masked tokens
    of two text parts, and whether the second follows the first or is from another document (next sentence
    prediction), or whether the two are swapped (sentence order prediction) (bert, albert)."""
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    """How documents fill samples (causal): one after the other, cut where a sample ends; or whole, each where it fits
    best, with padding (Ding et al. 2024, arXiv 2404.10830)."""
    document_attention: bool = False
    """Tokens see their own document only, and count positions from its start (causal)."""
    mask_fraction: Fraction = 0.15
    """Share of a sequence's tokens to predict."""
    max_predictions: PositiveInt | None = None
    """Most tokens to predict in one sequence; left out: no other limit than mask_fraction."""
    mask_unit: Literal["token", "word", "ngram"] = "token"
    """What is masked together: single tokens, whole words, or spans of 1 to max_ngram whole words."""
    max_ngram: PositiveInt = 3
    """Longest span of mask_unit=ngram, in words; a span of n words is drawn with a probability of about 1/n."""
    mask_share: Fraction = 0.8
    """Share of the predicted tokens that are replaced by the mask."""
    random_share: Fraction = 0.1
    """Share that is replaced by a random token; the rest is left as it is."""
    copies: NonNegativeInt = 0
    """Maskings per sample, repeated epoch after epoch (static masking); 0: a new one in every epoch (dynamic)."""
    short_sequence_probability: Fraction = 0.1
    """Share of the pairs that are cut to a random shorter length."""


class OptimizerSection(Section):
    """Update rule (AdamW: arXiv 1711.05101; LAMB: arXiv 1904.00962)."""

    kind: Literal["adamw", "lamb", "sgd"] = "adamw"
    """adamw, lamb, or sgd with momentum."""
    learning_rate: PositiveFloat
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of the first and second moment (adamw, lamb)."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment (adamw, lamb)."""
    bias_correction: bool = True
    """Correct the moments for their start at zero; the original BERT and ALBERT do not (adamw, lamb)."""
    momentum: Fraction = 0.9
    """Decay rate of the mean gradient (sgd)."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay, decoupled in adamw and lamb; biases and LayerNorm are never decayed."""
    clip_norm: NonNegativeFloat = 1.0
    """Global gradient norm above which gradients are scaled down; 0 never clips."""


class ScheduleSection(Section):
    """Learning rate by step."""

    kind: Literal["constant", "linear", "cosine", "exponential", "inverse_sqrt", "polynomial", "wsd"] = "cosine"
    """Shape of the decay after the warmup; wsd: constant, then a linear decay over the last cooldown_steps."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warmup from 0."""
    decay_steps: PositiveInt | None = None
    """Step at which the decay ends; training.steps when left out."""
    min_ratio: Fraction = 0.1
    """Final learning rate as a fraction of the peak; inverse_sqrt does not know it."""
    power: PositiveFloat = 1.0
    """Exponent of the polynomial decay."""
    cooldown_steps: PositiveInt | None = None
    """Steps of the decay of wsd."""


class BatchRampSection(Section):
    """A batch size that grows linearly during the first samples of a run."""

    start: PositiveInt
    """Samples of the first step."""
    increment: PositiveInt
    """Samples by which it grows at a time; the last growth may be smaller."""
    samples: PositiveInt
    """Samples after which the full batch size is reached."""


class PhaseSection(Section):
    """An earlier part of a run, with shorter sequences."""

    until_step: PositiveInt
    """Step with which the phase ends; the next one, or the recipe's own values, go on from there."""
    sequence_length: PositiveInt
    """In place of data.sequence_length."""
    global_batch_size: PositiveInt | None = None
    """In place of training.global_batch_size."""
    max_predictions: PositiveInt | None = None
    """In place of objective.max_predictions."""


class TrainingSection(Section):
    """How long and with which numbers."""

    steps: PositiveInt
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt
    """Samples per optimizer step, over all ranks."""
    batch_ramp: BatchRampSection | None = None
    """Growth of the batch size at the start of the run (GPT-3): start, increment, samples."""
    phases: tuple[PhaseSection, ...] = ()
    """Earlier phases, in order: until_step, sequence_length, and what else differs (BERT: 128, then 512)."""
    precision: Precision = Precision.BF16
    """Number format of the step."""
    seed: NonNegativeInt = 1234
    """Key of initial weights, sample order and masks."""


class LayoutSection(Section):
    """Where the run is computed; never changes what is learnt."""

    data_parallel: PositiveInt | Literal["auto"] = "auto"
    """Data-parallel ranks; auto: all ranks that tensor parallelism leaves."""
    data_parallel_replicate: PositiveInt = 1
    """HSDP: copies of the ZeRO-sharded state; must divide data_parallel."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """0: replicated (DDP). 1: optimizer state sharded. 2: gradients too. 3: parameters too (FSDP2)."""
    tensor_parallel: PositiveInt = 1
    """Ranks that share each layer's matrices."""
    sequence_parallel: bool = False
    """Split activations outside the matrices along the sequence over the tensor-parallel ranks."""
    pipeline_parallel: PositiveInt = 1
    """Ranks that hold different layers."""
    pipeline_schedule: PipelineSchedule = PipelineSchedule.ONE_F_ONE_B
    """Order of micro-batches in a pipeline."""
    pipeline_stages_per_rank: PositiveInt | None = None
    """Stages on each pipeline rank; left out: 1 for gpipe, 1f1b and file, else 2."""
    pipeline_split: tuple[PositiveInt, ...] | None = None
    """First layer of every stage but the first; left out: stages of about equal cost."""
    pipeline_schedule_file: Path | None = None
    """With pipeline_schedule=file: CSV with a row per rank and an action per cell, such as 0F1 (forward pass of
    micro-batch 1 in stage 0), 0B1 (backward pass), 0I1 and 0W1 (its two halves: of inputs, of weights)."""
    context_parallel: PositiveInt = 1
    """Ranks that share each sequence."""
    context_method: Literal["ring", "ulysses"] = "ring"
    """How they attend to each other's positions: keys and values go round (arXiv 2310.01889), or positions are
    exchanged for heads (arXiv 2309.14509)."""
    micro_batch_size: PositiveInt = 1
    """Samples per forward pass of one data-parallel rank, more of them in a phase of shorter sequences; the rest of
    the batch accumulates."""
    recompute: Recompute = Recompute.NONE
    """Activation checkpointing."""
    recompute_every: PositiveInt = 1
    """Recompute every n-th layer only."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What lies in host memory between its uses: optimizer state, or parameters and gradients as well."""
    offload_activations: bool = False
    """What blocks store for the backward pass lies in host memory until then; on a CPU it stays where it is."""
    compile: bool = False
    """torch.compile of every block."""


class KernelsSection(Section):
    """Which form of an operation computes it: the same numbers up to rounding, at another speed.

    auto: what was measured to be the fastest on the device, torch's own operations where nothing was measured.
    """

    linear_cross_entropy: Literal["auto", "whole", "chunked", "liger"] = "auto"
    """Head and loss. whole: all logits are stored. chunked: some tokens at a time, their gradients at once."""
    cross_entropy: Literal["auto", "reference", "triton", "compile"] = "auto"
    """Loss and gradient of the logits that are there at a time."""
    add_norm: Literal["auto", "reference", "triton", "compile"] = "auto"
    """Dropout, residual addition and LayerNorm."""
    bias_gelu: Literal["auto", "reference", "triton", "compile"] = "auto"
    """Bias and GELU of the feed-forward layer."""
    embedding: Literal["auto", "reference", "triton", "compile"] = "auto"
    """Sum of embeddings, its LayerNorm and dropout."""
    optimizer: Literal["auto", "reference", "triton", "apex"] = "auto"
    """Update of the weights; reference: torch's fused AdamW, or LAMB from its foreach operations."""
    attention: Literal["auto", "reference", "triton"] = "auto"
    """Attention with dropout of its probabilities; without dropout it is always torch's."""


class DeepSpeedSection(Section):
    """What engine=deepspeed does beyond the layout."""

    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where optimizer state lies."""
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """Where parameters lie at ZeRO-3."""
    nvme_path: Path | None = None
    """Folder on a fast local disk, for nvme."""


class EvaluationSection(Section):
    """Validation during the run."""

    every: NonNegativeInt = 0
    """Steps between validations (the last step included); 0 never validates."""
    samples: PositiveInt | None = None
    """Validation samples to use; all of them when left out."""


class CheckpointSection(Section):
    """What is written, and when."""

    every: NonNegativeInt = 0
    """Steps between checkpoints; 0 saves at the end (and at a stop signal) only."""
    asynchronous: bool = True
    """Go on with the steps while a checkpoint is written, from a copy of the state in host memory."""
    memory_every: NonNegativeInt = 0
    """Steps between snapshots in the memory of the nodes, each of them on two nodes, from which a restart goes on
    when they are newer than the last checkpoint; 0: there are none."""
    memory_dir: Path = Path("/dev/shm")
    """Folder on a memory disk for these snapshots, which are removed when the run ends."""
    every_minutes: NonNegativeFloat = 0.0
    """Also save when this many minutes passed since the last checkpoint; 0: only by steps."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept; the best one is kept besides."""
    keep_every: NonNegativeInt = 0
    """Also save at multiples of so many steps, and never delete these checkpoints; 0: there are none of the kind."""
    save_best: bool = True
    """Also save when a validation gives the best figure so far."""
    best_by: str = "loss"
    """Figure of validation rows that says which checkpoint is the best, such as loss or mlm_accuracy."""
    best_is: Literal["auto", "lowest", "highest"] = "auto"
    """auto: the highest of an accuracy, the lowest of anything else."""
    mean_hours_between_failures: PositiveFloat | None = None
    """Of all the machines of the run together; it then says which interval between checkpoints loses least time."""
    load_from: Path | None = None
    """Start a fresh run directory from this checkpoint instead of from initial weights."""


class HealthSection(Section):
    """What a run does about losses that are no numbers or jump, and when it calls a rank a straggler."""

    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """About a loss or gradient norm that is no number. stop: end the run, nothing of the step is saved. skip: consume
    the batch and leave the update out. rollback: take back rollback_steps updates and leave them out, this one too."""
    on_spike: Literal["ignore", "stop", "skip", "rollback"] = "ignore"
    """The same about a loss that is more than spike_deviations above the median of those before it."""
    spike_window: Annotated[int, Field(ge=4)] = 128
    """Losses that the median is of; before there are so many, nothing is a spike."""
    spike_deviations: PositiveFloat = 8.0
    """In units of 1.4826 times the median absolute deviation, the standard deviation of normal numbers."""
    rollback_steps: PositiveInt = 100
    """Updates that a rollback takes back; it starts from the newest checkpoint before them."""
    limit: PositiveInt = 10
    """Skips and rollbacks within limit_steps steps; one more stops the run."""
    limit_steps: PositiveInt = 1000
    """Steps that limit counts in."""
    pulse_seconds: NonNegativeFloat = 30.0
    """Least seconds between two measurements of every rank's speed, a few milliseconds each; 0 never measures."""
    straggler_ratio: Annotated[float, Field(gt=1.0)] = 1.5
    """A rank that takes so many times the median of all ranks, three measurements in a row, is called a straggler."""


class LoggingSection(Section):
    """Metrics on screen and in files."""

    every: PositiveInt = 10
    """Steps between metric rows."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    profile: bool = False
    """Record a few steps with torch.profiler: a trace and a table of operations in the run directory's profile/."""
    profile_start: PositiveInt = 5
    """Steps that a process makes before the ones it records."""
    profile_steps: PositiveInt = 3
    """Steps to record."""
    profile_ranks: tuple[NonNegativeInt, ...] = (0,)
    """Ranks that record; stages of a pipeline do different things."""


class LaunchSection(Section):
    """Process matters."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is a device."""
    deterministic: bool = True
    """Choose algorithms that give the same bits each time, which a bit-exact resume needs; costs speed on CUDA."""
    max_restarts: NonNegativeInt = 3
    """Starts in a row after which no new step was done, until a run that fails again and again is given up."""
    hang_seconds: PositiveFloat = 600.0
    """Seconds in which no process makes progress between its first step and its last, after which all start again."""
    start_seconds: PositiveFloat = 1800.0
    """The same while processes build, load or save."""
    stopped_seconds: PositiveFloat = 60.0
    """Seconds that a process may be stopped by somebody (SIGSTOP, a debugger), after which all start again."""
    silence_seconds: PositiveFloat = 15.0
    """Seconds without a word from a node after which the run goes on without it."""
    gather_seconds: PositiveFloat = 300.0
    """Seconds to wait at the start for all nodes, before the run begins with fewer of them."""
    wait_seconds: PositiveFloat = 600.0
    """Seconds to wait for nodes when there are too few."""
    stop_at_step: PositiveInt | None = None
    """Checkpoint and leave after this step, as if interrupted there."""


class Recipe(Section):
    """A run: everything that is learnt, and where it is computed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run."""
    run_dir: Path | None = None
    """Folder of everything the run writes; runs/<name> when left out."""
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    layout: LayoutSection = LayoutSection()
    engine: Literal["native", "deepspeed", "megatron"] = "native"
    """Which engine computes the step: native does every layout."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    kernels: KernelsSection = KernelsSection()
    evaluation: EvaluationSection = EvaluationSection()
    checkpoint: CheckpointSection = CheckpointSection()
    health: HealthSection = HealthSection()
    logging: LoggingSection = LoggingSection()
    launch: LaunchSection = LaunchSection()
    _places: Places = PrivateAttr(default_factory=Places)

    @property
    def places(self) -> Mapping[str, str]:
        """`file:line`, or an override's text, by key; values that were left out have none."""
        return self._places

    def written_at(self, places: Mapping[str, str]) -> Self:
        """This recipe, which now knows where its values were written."""
        self._places = Places(places)
        return self

    @property
    def directory(self) -> Path:
        """The run directory."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name
