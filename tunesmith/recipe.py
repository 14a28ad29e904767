"""Recipe: what the user asks. YAML, command-line flags and JSON Schema all come from these classes.

A recipe is validated once and never changed afterwards. Each field is defined once: its type, default and docstring
here become its flag, its help and its entry in the schema.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, InitErrorDetails

from tunesmith import recipe_errors, recipe_text
from tunesmith.errors import UserError
from tunesmith.registry import Registry

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


# How much a form shows at once: the fields that most users decide on, those of many, or all.
ESSENTIAL = Field(json_schema_extra={"level": "essential"})
MORE = Field(json_schema_extra={"level": "more"})


class Problem(NamedTuple):
    """A mistake in a recipe."""

    key: str
    """The dotted key; empty if the mistake is in no single one."""
    message: str
    """One line."""


def _as_loss_ratio(value: float) -> float:
    if 0 < value <= 1:
        raise ValueError("a ratio of 1 or less would stop a run that learns; 0 switches the check off")
    return value


LossRatio = Annotated[float, Field(ge=0), AfterValidator(_as_loss_ratio)]


def _as_switch(value: Any) -> Any:
    """YAML 1.1 reads on and off as true and false."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_as_switch)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class Model(Section):
    """The base model."""

    path: Annotated[str, ESSENTIAL]
    """Folder or hub id of the base model (safetensors), or a GGUF file, which is unpacked first."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], MORE] = "auto"
    """Precision of weights and computation. auto: bfloat16 where the device computes it fast; float16 on GPUs that have
    no bfloat16 (compute capability 6.0 to 7.5); else float32. In float16 the loss is scaled."""
    quantize: Annotated[Literal["none", "nf4", "int8"], ESSENTIAL] = "none"
    """Precision of the frozen weights under LoRA. nf4: 4 bits, doubly quantised (QLoRA). int8: LLM.int8."""
    chat_template: Annotated[str, MORE] = "auto"
    """auto: the model's own, or `plain` if it has none. Else `plain`, `chatml`, or the path of a Jinja file."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables for the chat template, e.g. `{enable_thinking: true}`. By default what switches reasoning follows the
    data: on if a row has reasoning, else off."""
    initialize: Literal["pretrained", "random"] = "pretrained"
    """random: only the folder's config is used and the weights are drawn at random, to pretrain from scratch."""
    new_tokens: list[str] = []
    """Tokens to add to the vocabulary; their embeddings are trained and saved."""


class Source(Section):
    """One source of rows. A plain string means its path."""

    path: str
    """File, folder, glob, or `hub:org/name`."""
    format: Annotated[str, MORE] = "auto"
    """auto, or messages, sharegpt, alpaca, prompt_completion, question_answer, text."""
    columns: Annotated[dict[str, str], MORE] = {}
    """Which of the file's columns to read as which, e.g. `{question: q, answer: reply}`."""
    weight: Annotated[float, Field(gt=0), MORE] = 1.0
    """How often its rows are seen per epoch: 0.5 half of them, 2 each twice."""
    subset: Annotated[str | None, MORE] = None
    """Subset (configuration) of a hub dataset or a folder."""
    split: Annotated[str | None, MORE] = None
    """Split of a hub dataset or a folder; train if there is one."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset. The recipe that a run keeps names the commit."""

    @model_validator(mode="after")
    def _is_of_the_hub(self) -> "Source":
        if self.revision and not self.path.startswith("hub:"):
            raise ValueError("revision is for hub datasets")
        return self


def as_sources(value: Any) -> Any:
    """One path, one mapping, or a list of either."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


Sources = Annotated[list[Source], BeforeValidator(as_sources)]


class Data(Section):
    """Where rows come from and how they become token sequences."""

    train: Annotated[Sources, Field(min_length=1), ESSENTIAL]
    """Sources to learn from: a path, or a list of paths or sources."""
    eval: Annotated[Sources, ESSENTIAL] = []
    """Held-out sources. If empty, `eval_share` of the training rows is set aside."""
    eval_share: Annotated[Share, ESSENTIAL] = 0.05
    """Share of the rows set aside for evaluation, chosen by the hash of their prompt, where `eval` is empty."""
    eval_limit: Annotated[Positive, MORE] = 500
    """Most held-out rows that are evaluated."""
    sequence_length: Annotated[Annotated[int, Field(ge=8)] | Literal["max"], ESSENTIAL] = 2048
    """Longest example, in tokens. max: as long as fits in memory and the model has positions for, by measuring."""
    too_long: Annotated[Literal["drop", "truncate", "refuse"], MORE] = "drop"
    """The treatment of a longer example; each one is in the ledger. Text for cpt is split, not lost."""
    packing: Annotated[bool, MORE] = True
    """Lay examples end to end without attending to each other, instead of padding. Same result, less work."""


class MethodSettings(Section):  # each method has a subclass with a `name` and settings of its own
    """The training method."""

    name: Annotated[str, ESSENTIAL] = "sft"
    """Name of the method."""
    router_loss: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the load-balancing loss of a mixture of experts (Fedus et al. 2021)."""

    has_answers: ClassVar[bool] = True
    """Whether rows have a prompt and an answer, so that the model's own answers can be compared with it."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The section `method` is one of the installed methods' settings."""
        if cls is MethodSettings:
            return {"oneOf": [settings.model_json_schema() for settings in method_settings().values()]}
        return handler(schema)


METHODS = Registry("tunesmith.methods", "tunesmith.methods")


def method_settings() -> dict[str, type[MethodSettings]]:
    """By name: the settings of each method that is installed."""
    return {name: module.Settings for name, module in METHODS.items()}


def _as_method(value: Any) -> Any:
    """The settings of the method that `name` says, by default sft."""
    if not isinstance(value, dict):
        return value
    name, known = value.get("name", "sft"), method_settings()
    if not isinstance(name, str) or name not in known:
        problem = InitErrorDetails(
            type="literal_error", loc=("name",), input=name, ctx={"expected": ", ".join(map(repr, known))}
        )
        raise ValidationError.from_exception_data("method", [problem])
    own = known[name].model_fields
    # Recipes of runs from before methods had settings of their own hold the keys of all.
    others = {key: field.default for other in known.values() for key, field in other.model_fields.items()}
    return known[name].model_validate(
        {key: v for key, v in value.items() if key in own or key not in others or v != others[key]}
    )


class Adapter(Section):
    """The trained weights: a low-rank adapter, or the whole model."""

    kind: Annotated[Literal["lora", "full"], ESSENTIAL] = "lora"
    """lora: a low-rank adapter (Hu et al. 2021). full: every weight."""
    rank: Annotated[Positive, ESSENTIAL] = 16
    """LoRA rank."""
    alpha: Annotated[float, Field(gt=0), MORE] = 32
    """LoRA alpha: the update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1), MORE] = 0.0
    """LoRA dropout."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""
    dora: bool = False
    """Weight-decomposed LoRA (Liu et al. 2024)."""
    targets: Annotated[str | list[str], MORE] = "all-linear"
    """Modules that get an adapter: `all-linear` or their names."""
    experts: bool = True
    """all-linear reaches the stacked experts of a mixture of experts too."""
    router: bool = False
    """all-linear reaches the routers of a mixture of experts too; else they stay as they are."""
    modules_to_save: list[str] = []
    """Further modules trained and saved whole, e.g. lm_head."""


class Train(Section):
    """The optimisation."""

    epochs: Annotated[float, Field(gt=0), ESSENTIAL] = 3
    """Passes over the training rows."""
    max_steps: Annotated[Positive | None, ESSENTIAL] = None
    """Stop after so many optimizer steps; the schedule ends there."""
    max_minutes: Annotated[Annotated[float, Field(gt=0)] | None, MORE] = None
    """Stop after so long, saving what there is."""
    max_tokens: Positive | None = None
    """Stop after so many trained tokens."""
    batch: Annotated[Positive, ESSENTIAL] = 32
    """Examples per optimizer step, over all processes: the effective batch."""
    micro_batch: Positive | Literal["auto"] | None = None
    """Examples of full sequence length in one forward pass. auto: as many as fit, found by measuring. By default the
    planner chooses without measuring."""
    optimizer: Annotated[Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "muon"], MORE] = "adamw"
    """The 8-bit ones need bitsandbytes. muon: of hidden matrices, AdamW of the rest (Jordan et al. 2024)."""
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision in which weights are kept. auto: float32 for full fine-tuning, else that of the computation.
    Updates of bfloat16 weights are rounded stochastically."""
    learning_rate: Annotated[float, Field(gt=0), ESSENTIAL] = 2e-4
    """Peak learning rate. It means the same with every optimizer."""
    schedule: Annotated[Literal["cosine", "linear", "constant", "wsd"], MORE] = "cosine"
    """How the learning rate falls after warmup. wsd: constant, then linear over the last fifth."""
    warmup_ratio: Annotated[Share, MORE] = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0), MORE] = 0.01
    """Weight decay; never on norms and biases."""
    beta1: Decay = 0.9
    """AdamW first-moment decay."""
    beta2: Decay = 0.95
    """AdamW second-moment decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off."""
    gradient_checkpointing: Annotated[
        Literal["auto", "on", "off", "selective"] | Share, BeforeValidator(_as_switch), MORE
    ] = "auto"
    """Recompute activations in the backward pass: on in every layer, selective all but matrix products, or a share of
    the layers such as 0.5. Less memory, up to a third more work."""
    activation_offload: bool = False
    """Keep what checkpointing keeps in host memory instead of the GPU's."""
    tiled_mlp: Switch = "auto"
    """Run each MLP over pieces of the sequence, so that its wide activations are never whole."""
    compile: Switch = "auto"
    """Compile the decoder layers with torch.compile. auto: off, as no gain was seen on a CPU."""
    processes: Positive | None = None
    """Data-parallel processes. By default one per GPU, or one."""
    shares: Literal["auto", "equal", "measured"] = "auto"
    """How the tokens of a step are divided among processes. measured: in proportion to the speed of each, so that
    unlike GPUs finish together. auto: measured on GPUs, equal on a CPU, where a repeated run is the same to the bit."""
    network: Literal["gloo", "nccl"] = "gloo"
    """The way of gradients between the machines of a cluster: gloo over TCP, or NCCL where the network has it. One
    machine uses neither."""
    kept_layers: Annotated[int, Field(ge=0)] | Literal["auto", "all"] = "auto"
    """Decoder layers that each GPU keeps. The weights of the others stay in host memory, once for all GPUs, and are
    brought to a GPU twice a step; they are recomputed in the backward pass. With adapter.kind: full, host memory also
    holds gradients and moments, and each GPU updates a part of the weights. auto: as many as fit, by an estimate that
    rather keeps too few. all: nothing of the model waits in host memory."""
    eval_every: Annotated[Positive | None, MORE] = None
    """Steps between evaluations. By default ten times in a run."""
    sample_every: Annotated[Positive | None, MORE] = None
    """Steps between sample answers. By default only before and after."""
    save_every: Annotated[Positive | None, MORE] = None
    """Steps between checkpoints. By default at each evaluation."""
    keep_checkpoints: Positive = 2
    """How many of the last checkpoints stay, beside the best."""
    result: Annotated[Literal["last", "best"], MORE] = "last"
    """Which weights become the result: the last, or those with the lowest held-out loss, be it that before
    training."""
    patience: Annotated[Positive | None, MORE] = None
    """Stop early after so many evaluations in a row without a lower held-out loss than any before, also than that
    before training."""
    max_loss_ratio: LossRatio = 3.0
    """Stop, as diverged, once the held-out loss is more than so many times that before training; 0 never stops. A
    training loss that stays so far above that of the first step stops a run too."""

    def steps_between_evaluations(self, steps: int) -> int:
        """Returns that of a run of so many steps."""
        return self.eval_every or max(1, round(steps / 10))

    def steps_between_checkpoints(self, steps: int) -> int:
        """Returns that of a run of so many steps. The last step's and, with `result: best`, the best are saved too."""
        return self.save_every or self.steps_between_evaluations(steps)


class Evaluate(Section):
    """How before and after are compared."""

    exact_match: Annotated[bool, MORE] = False
    """Also generate an answer for each held-out row and count those equal to the reference."""
    samples: Annotated[int, Field(ge=0), MORE] = 3
    """Held-out prompts whose answers are shown side by side."""
    max_new_tokens: Annotated[Positive, MORE] = 128
    """Longest generated answer, in tokens."""


class Power(Section):
    """The energy of a run, planned and measured, beside that of the GPUs."""

    host_watts: Annotated[float, Field(ge=0)] = 100.0
    """Power of the machine without its GPUs."""
    price_per_kwh: Annotated[Annotated[float, Field(ge=0)] | None, MORE] = None
    """The price of a kilowatt-hour, in any currency."""


class Recipe(Section):
    """A whole fine-tuning job."""

    model: Model
    data: Data
    method: Annotated[SerializeAsAny[MethodSettings], BeforeValidator(_as_method)] = Field(
        default_factory=lambda: METHODS["sft"].Settings()
    )
    adapter: Adapter = Adapter()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    power: Power = Power()
    trackers: Annotated[list[str], MORE] = []
    """Experiment trackers that get the numbers of the run: tensorboard, wandb, mlflow, trackio. Each is a package that
    you install."""
    seed: Annotated[int, Field(ge=0, lt=2**32), MORE] = 0
    """Everything random follows from it."""
    name: Annotated[str | None, ESSENTIAL] = None
    """Name of the run's folder. By default the date and the first data source."""
    output: Annotated[Path, MORE] = Path("runs")
    """Folder in which the run's folder is made."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if conflicts := [recipe_errors.conflict(key, message) for key, message in self._conflicts()]:
            raise ValidationError.from_exception_data("recipe", conflicts)
        return self

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """The keys whose values do not go with others, and why."""
        if self.adapter.kind == "full" and self.adapter.modules_to_save:
            yield (
                "adapter.modules_to_save",
                "adapter.modules_to_save only means something with adapter.kind: lora",
            )
        if self.adapter.kind == "full" and self.model.quantize != "none":
            yield "model.quantize", "model.quantize freezes the weights, so it needs adapter.kind: lora"
        if self.adapter.kind == "lora" and self.model.initialize == "random":
            yield (
                "model.initialize",
                "an adapter needs a base that others can have: adapter.kind: full with random weights",
            )
        if self.train.weights == "bfloat16" and self.model.dtype in ("float32", "float16"):
            yield "train.weights", "train.weights: bfloat16 is computed in bfloat16: leave model.dtype at auto"
        if self.evaluate.exact_match and not self.method.has_answers:
            yield (
                "evaluate.exact_match",
                f"evaluate.exact_match needs answers to compare, which method.name: {self.method.name} does not have",
            )
        yield from self._evaluation_conflicts()
        if self.name is not None and (not self.name.strip() or Path(self.name).name != self.name):
            yield "name", "name must be a plain folder name"

    def _evaluation_conflicts(self) -> Iterator[tuple[str, str]]:
        data, train = self.data, self.train
        if data.eval and data.eval_share not in (0, Data.model_fields["eval_share"].default):
            yield (
                "data.eval_share",
                "data.eval gives the held-out rows, so data.eval_share has no effect; say one of them",
            )
        if not (data.eval or data.eval_share) and (key := self.needs_held_out_rows):
            yield key.partition(":")[0], f"{key} needs held-out rows: give data.eval, or data.eval_share above 0"
        if train.sample_every and not (self.method.has_answers and self.evaluate.samples):
            needs = "evaluate.samples above 0 and a method.name whose rows have answers, such as sft"
            yield "train.sample_every", f"train.sample_every shows sample answers: it needs {needs}"

    @property
    def needs_held_out_rows(self) -> str | None:
        """The first key that asks for what only held-out rows can give."""
        train = self.train
        asked = {
            "evaluate.exact_match": self.evaluate.exact_match,
            "train.result: best": train.result == "best",
            "train.patience": train.patience,
            "train.eval_every": train.eval_every,
            "train.sample_every": train.sample_every,
        }
        return next((key for key, value in asked.items() if value), None)

    @classmethod
    def build(cls, values: dict[str, Any], where: str = "recipe", defaults: dict[str, Any] | None = None) -> "Recipe":
        """Validates plain values; `defaults` (nested like the recipe) has those of missing keys. Raises
        UserError naming the first wrong key and the nearest known one."""
        try:
            return cls._validated(values, defaults)
        except ValidationError as error:
            raise UserError(f"{where}: {first_problem(error)}") from None

    @classmethod
    def problems(cls, values: dict[str, Any], defaults: dict[str, Any] | None = None) -> list[Problem]:
        """Returns every mistake in plain values, or an empty list if `build` accepts them. Values that do not go
        together are looked for once each is valid."""
        try:
            cls._validated(values, defaults)
        except ValidationError as error:
            return problems_of(error)
        return []

    @classmethod
    def _validated(cls, values: dict[str, Any], defaults: dict[str, Any] | None) -> "Recipe":
        return cls.model_validate(merge({"model": {}, "data": {}} | (defaults or {}), cls.in_full(values)))

    @staticmethod
    def in_full(values: dict[str, Any]) -> dict[str, Any]:
        """Values without short forms: `model: X` means its path, `data: X` its training rows, `method: X` its name,
        an empty section its defaults."""
        full = {key: {} if value is None and _section(Recipe, key) else value for key, value in values.items()}
        if isinstance(full.get("model"), str):
            full["model"] = {"path": full["model"]}
        if isinstance(full.get("data"), str | list):
            full["data"] = {"train": full["data"]}
        if isinstance(full.get("method"), str):
            full["method"] = {"name": full["method"]}
        return full

    @classmethod
    def load(
        cls, path: str | Path, overrides: dict[str, Any] | None = None, defaults: dict[str, Any] | None = None
    ) -> "Recipe":
        """Reads a YAML file; `overrides` (nested like the recipe) win over it, and it wins over `defaults`. Raises
        UserError."""
        values = recipe_text.read(Path(path))
        return cls.build(merge(cls.in_full(values), overrides or {}), str(path), defaults)

    def changed(self, change: dict[str, Any]) -> "Recipe":
        """Returns the recipe with other values for some keys, such as `{"adapter.rank": 8}`. Raises UserError where
        they do not go together."""
        values = self.model_dump(mode="json")
        for key, value in change.items():
            for section in reversed(key.split(".")):
                value = {section: value}
            values = merge(values, value)
        return self.build(values)

    def dump(self) -> str:
        """The complete recipe as YAML, defaults written out."""
        return recipe_text.dump(self.model_dump(mode="json"))

    def set_values(self) -> dict[str, Any]:
        """Returns the plain values of the keys that were set, in full and in the recipe's order."""
        return self.model_dump(mode="json", exclude_unset=True)

    def own_values(self) -> dict[str, Any]:
        """Returns the plain values that differ from the defaults, in full and in the recipe's order."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        if "method" in values:  # a method's name is a default of its own settings
            values["method"] = {"name": self.method.name} | values["method"]
        return values


def _section(owner: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of a field that is a section, else None."""
    kind = owner.model_fields[name].annotation if name in owner.model_fields else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Returns the fields of a section. The section `method` has the fields of all methods; the description of one that
    some methods lack begins with the names of those that have it."""
    if section is not MethodSettings:
        return section.model_fields
    methods = method_settings()
    common = dict(MethodSettings.model_fields)
    names = " ".join(each.__doc__ or "" for each in methods.values())
    common["name"] = FieldInfo.merge_field_infos(common["name"], description=names)
    own = {key: field for each in methods.values() for key, field in each.model_fields.items() if key not in common}
    for key, field in own.items():
        users = ", ".join(name for name, each in methods.items() if key in each.model_fields)
        own[key] = FieldInfo.merge_field_infos(field, description=f"{users}: {field.description}")
    return common | own


def known_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Dotted names of every field below a section."""
    keys = []
    for name in fields_of(section):
        keys.append(prefix + name)
        if inner := _section(section, name):
            keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def first_problem(error: ValidationError, parent: str = "") -> str:
    """The message of the first of `problems_of`."""
    return problems_of(error, parent)[0].message


def problems_of(error: ValidationError, parent: str = "") -> list[Problem]:
    """The mistakes that pydantic found, one for each key, which stands under `parent`. Unknown keys come first, as they
    explain what is missing."""
    above = [*filter(None, parent.split("."))]
    by_key: dict[str, list[dict[str, Any]]] = {}
    unknown = []
    for found in error.errors():
        details: dict[str, Any] = {**found, "loc": (*above, *found["loc"])}
        if details["type"] == "extra_forbidden":
            unknown.append(".".join(map(str, details["loc"])))
        else:
            by_key.setdefault(recipe_errors.key_of(details), []).append(details)
    foreign = recipe_errors.foreign(unknown) if len(unknown) > 1 else None
    problems = [Problem(unknown[0], foreign)] if foreign else [Problem(key, _unknown_key(key)) for key in unknown]
    return problems + [Problem(key, recipe_errors.wrong_value(key, all_of)) for key, all_of in by_key.items()]


def _unknown_key(key: str) -> str:
    parent, _, name = key.rpartition(".")
    if name in Source.model_fields and parent in ("data", ""):
        return f"unknown key `{key}`; it is a source's: `data.train: [{{path: …, {name}: …}}]`"
    of_source = [f"{parent}.{field}" for field in Source.model_fields] if parent[-1:].isdigit() else []
    near = difflib.get_close_matches(key, known_keys() + of_source, 1, 0.0)[0]
    return f"unknown key `{key}`; did you mean `{near}`?"
