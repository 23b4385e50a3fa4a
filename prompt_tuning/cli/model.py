"""From the configuration of a model to a PeftModel with its parameters in place."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence

import jax

from prompt_tuning import params as params_lib
from prompt_tuning import partitioning
from prompt_tuning.checkpoints import peft_adapter, prompt_file, restore
from prompt_tuning.checkpoints import shapes as shapes_lib
from prompt_tuning.errors import UserError
from prompt_tuning.models import int8
from prompt_tuning.models.t5 import T5, T5Config
from prompt_tuning.peft import model as peft_model
from prompt_tuning.peft import prompt_init
from prompt_tuning.peft.block_edges import BlockEdges
from prompt_tuning.peft.method import Method
from prompt_tuning.peft.soft_prompt import SoftPrompt
from prompt_tuning.vocabulary import Vocabulary, load_vocabulary

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """A base model and the methods on it.

  Attributes:
    checkpoint: a T5X folder, a Hugging Face folder, 'demo' or 'random'.
    architecture: shape and options; None takes the shape from the checkpoint.
    methods: applied in order; () is the bare base.
    prompt_file: trained leaves to start from, or to evaluate: a prompt file, a T5X checkpoint with
      a prompt, or a PEFT adapter folder.
    allow_mismatch: accept a prompt file that names another base.
    vocabulary: a SentencePiece file or 'bytes'; None takes the one beside the checkpoint.
    param_dtype: of the backbone's parameters, 'float32', 'bfloat16' or 'int8'.
    num_partitions: devices that share one copy of the model.
    model_parallel_submesh: the same as sizes on a TPU torus, in place of num_partitions.
    mesh: sizes of the axes data and model, in place of both; see partitioning.mesh_shape.
    parameter_partitioning_dims: see partitioning.logical_axis_rules.
    activation_partitioning_dims: see partitioning.logical_axis_rules.
    seed: of random parameters and of the methods' first values.
    class_labels: a list of texts, or {value: text}, that prompts start from; None: the task's.
  """

  checkpoint: str
  architecture: T5Config | None = None
  methods: tuple[Method, ...] = ()
  prompt_file: str | None = None
  allow_mismatch: bool = False
  vocabulary: str | None = None
  param_dtype: str = 'float32'
  num_partitions: int = 1
  model_parallel_submesh: tuple[int, ...] | None = None
  mesh: str | tuple[int, int] | None = None
  parameter_partitioning_dims: int = 1
  activation_partitioning_dims: int = 1
  seed: int = 0
  class_labels: Sequence[str] | Mapping | None = None

  def __post_init__(self):
    if self.param_dtype not in restore.PARAM_DTYPES:
      raise UserError(f'PARAM_DTYPE is {self.param_dtype!r}; allowed: '
                      f'{list(restore.PARAM_DTYPES)}.')
    if self.mesh is not None:
      object.__setattr__(self, 'mesh', partitioning.mesh_shape(self.mesh))
    axis_rules(self)
    labels = self.class_labels
    if isinstance(labels, Mapping):
      labels = tuple(dict.fromkeys(labels.values()))
      object.__setattr__(self, 'class_labels', labels)
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
      raise UserError(f"CLASS_LABELS is {labels!r}; give texts in a list, as in ['negative', "
                      "'positive'].")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A PeftModel, its mesh, its vocabulary and all its parameters on their devices."""

  peft: peft_model.PeftModel
  params: dict
  mesh: jax.sharding.Mesh
  vocabulary: Vocabulary
  base_fingerprint: str
  base_step: int

  @property
  def prompt_length(self) -> int:
    """Rows that the methods add to every input."""
    return sum(method.length for method in self.peft.methods if isinstance(method, SoftPrompt))

  def check_base(self, theirs: str, folder, remedy: str):
    """Raises UserError where a run in `folder` was trained on another base, `theirs`."""
    if theirs != self.base_fingerprint:
      raise UserError(f'{folder} was trained on the base {theirs[:16]}... and this one is '
                      f'{self.base_fingerprint[:16]}.... {remedy}')

  def split(self, params=None):
    """(trainable, frozen) trees of `params`, by default of the model's own."""
    return params_lib.split(self.params if params is None else params, self.peft.trainable)


def mesh(config: ModelConfig) -> jax.sharding.Mesh:
  """The mesh of the configuration over all devices."""
  return partitioning.make_mesh(config.num_partitions, config.model_parallel_submesh,
                                shape=config.mesh)


def axis_rules(config: ModelConfig) -> tuple:
  """The logical axis rules of the configuration."""
  return partitioning.logical_axis_rules(config.parameter_partitioning_dims,
                                         config.activation_partitioning_dims)


def on_mesh(model: peft_model.PeftModel, mesh: jax.sharding.Mesh, rules) -> peft_model.PeftModel:
  """The model with its activations bound to the mesh; as it is on one device."""
  return model if mesh.size == 1 else model.clone(edges=BlockEdges(mesh=mesh, rules=rules))


def vocabulary(config: ModelConfig) -> Vocabulary | None:
  """The vocabulary of the configuration without its model; None where it names none.

  Raises:
    UserError: no such file or checkpoint.
  """
  if config.vocabulary is not None:
    return load_vocabulary(config.vocabulary)
  if config.checkpoint in ('', restore.RANDOM):
    return None
  stored = restore.open_model(config.checkpoint)
  return restore.open_vocabulary(None, stored, stored.config)


def module(config: ModelConfig, labels=None) -> peft_model.PeftModel:
  """The PeftModel of the configuration, without parameters.

  Args:
    config: the configuration.
    labels: label texts of the task, for prompts that start from them.

  Raises:
    UserError: no such checkpoint, one that does not fit the architecture, or methods that train
      what PARAM_DTYPE = 'int8' keeps.
  """
  architecture = config.architecture
  if config.checkpoint != restore.RANDOM:
    stored = restore.open_model(config.checkpoint)
    architecture = architecture or stored.config
    shapes_lib.check_config(architecture, stored.config, stored.assumed, stored.source)
  elif architecture is None:
    raise UserError("INITIAL_CHECKPOINT_PATH = 'random' needs a shape: add a --gin_file=models/...")
  labels = config.class_labels or labels
  methods = tuple(_with_labels(method, labels) for method in config.methods)
  model = peft_model.PeftModel(backbone=T5(config=architecture), methods=methods)
  if config.param_dtype == int8.INT8:
    int8.check_frozen(peft_model.abstract_params(model.backbone), model.trainable)
  return model


def method_axes(model: peft_model.PeftModel) -> tuple:
  """The sharding rules of all methods' leaves."""
  return tuple(rule for method in model.methods for rule in method.logical_axes)


def kept_as(param_dtype: str, frozen):
  """Shapes of frozen parameters, a nested dict, under PARAM_DTYPE."""
  if param_dtype == int8.INT8:
    return int8.abstract(frozen)
  return jax.eval_shape(lambda tree: params_lib.cast(tree, param_dtype), frozen)


def abstract_params(config: ModelConfig, model: peft_model.PeftModel):
  """Shapes and dtypes of all parameters as `load` gives them: the methods' own stay float32."""
  backbone = peft_model.abstract_params(model.backbone)
  flat, theirs = (params_lib.flatten(tree) for tree in (
      peft_model.abstract_params(model), backbone))
  own = {path: leaf for path, leaf in flat.items() if path not in theirs}
  return params_lib.merge(kept_as(config.param_dtype, backbone), params_lib.unflatten(own))


def load(config: ModelConfig, labels=None) -> Model:
  """Loads the base, adds the methods' leaves and the values of the prompt file.

  Raises:
    UserError: a checkpoint, vocabulary or prompt file that is not there or does not fit.
  """
  devices, rules = mesh(config), axis_rules(config)
  model = on_mesh(module(config, labels), devices, rules)
  abstract = kept_as(config.param_dtype, restore.abstract_backbone(model.backbone.config))
  shardings = params_lib.flatten(
      partitioning.parameter_shardings(abstract, devices, rules=rules))
  backbone = restore.load_backbone(
      config.checkpoint, config=model.backbone.config, param_dtype=config.param_dtype,
      vocabulary=config.vocabulary, shardings=shardings, seed=config.seed)
  if backbone.vocabulary is None:
    raise UserError(
        f'{config.checkpoint} has no vocabulary beside it. Give --gin.VOCABULARY=..., a '
        "SentencePiece file or 'bytes'.")
  params = peft_model.initialize(
      model, jax.random.key(config.seed), backbone.params, backbone.vocabulary.encode)
  if config.prompt_file is not None:
    params = _with_prompt_file(config, model, params, backbone)
  params = partitioning.shard_params(params, devices, method_axes(model), rules=rules)
  return Model(peft=model, params=params, mesh=devices, vocabulary=backbone.vocabulary,
               base_fingerprint=backbone.fingerprint, base_step=backbone.base_step or 0)


def _with_labels(method: Method, labels) -> Method:
  """Gives the task's labels to a prompt that starts from class labels and names none itself."""
  if not (isinstance(method, SoftPrompt) and isinstance(method.init, prompt_init.ClassLabels)):
    return method
  if method.init.labels:
    return method
  if not labels:
    log.warning('The prompt is to start from class labels and the task has none: all of it '
                'starts from %s.', method.init.fallback)
    return dataclasses.replace(method, init=method.init.fallback)
  return dataclasses.replace(method, init=dataclasses.replace(method.init, labels=tuple(labels)))


def _with_prompt_file(config, model, params, backbone):
  """All parameters, the trained leaves taken from the prompt file."""
  if peft_adapter.is_adapter(config.prompt_file):
    prompt = peft_adapter.read_adapter(config.prompt_file, backbone.config)
  else:
    prompt = prompt_file.load_prompt(config.prompt_file)
  lengths = [method.length for method in model.methods if isinstance(method, SoftPrompt)]
  if not model.methods:
    raise UserError(f'PROMPT_FILE={config.prompt_file} is given and the configuration has no '
                    'method that uses it: add --gin_file=peft/prompt.gin.')
  check = functools.partial(
      prompt.check, base_fingerprint=backbone.fingerprint,
      vocabulary_hash=backbone.vocabulary.hash, methods=model.methods,
      allow_mismatch=config.allow_mismatch)
  if lengths:
    check(emb_dim=backbone.config.emb_dim, length=lengths[0])
  else:
    check()
  trainable, frozen = params_lib.split(params, model.trainable)
  log.info('%s: %s', config.prompt_file, prompt.summary())
  return params_lib.merge(prompt.fill(trainable), frozen)
