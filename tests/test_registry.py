"""What Gin files may name, what reaches the library, and what became of the names of version 0.1."""

import functools
import re

import gin
import pytest

from seqrec_jax.describe import describe
from seqrec_jax.errors import InputError
from seqrec_jax.launcher import configure
from seqrec_jax.losses.negatives import shared
from seqrec_jax.losses.sampled_softmax import sampled_softmax
from seqrec_jax.runs.settings import RunSettings
from seqrec_jax.tasks import registry
from seqrec_jax.training.config import TrainConfig
from seqrec_jax.training.schedules import one_cycle

FILE = ["gin/beauty.gin"]
PLACES = ["DATASET='d'", "RUN_DIR='r'"]


def make(name):
    """The settings that Gin makes of what is bound."""
    return gin.get_configurable(name)()


def test_a_function_reaches_the_library_as_itself_or_as_a_partial_of_itself():
    configure(FILE, PLACES)
    config = make("TrainConfig")
    assert type(config) is TrainConfig
    assert config.schedule is one_cycle
    assert isinstance(config.loss, functools.partial)
    assert config.loss.func is sampled_softmax
    assert config.loss.keywords == {"negatives": shared, "n_negatives": 1024}
    described = describe(config)
    assert described["loss"] == {
        "name": "sampled_softmax", "n_negatives": 1024, "negatives": {"name": "shared"}, "temperature": 1.0,
        "label_smoothing": 0.0, "correct_positive": True, "history_negatives": False,
    }  # fmt: skip
    assert described["ranking"]["ks"] == [5, 10]


def test_the_text_of_a_configuration_is_a_gin_file_again():
    configure(FILE, [*PLACES, "EPOCHS = 3"])
    settings = make("RunSettings")
    assert type(settings) is RunSettings
    assert settings.tracker.uri == "sqlite:///mlruns.sqlite"
    described = describe(make("TrainConfig"))
    gin.clear_config()
    gin.parse_config(settings.config_text)
    assert describe(make("TrainConfig")) == described
    assert described["epochs"] == 3


def test_what_is_bound_to_nothing_is_named():
    gin.parse_config("run.task = @pretrain")
    with pytest.raises(InputError, match=r"^pretrain.corpus has no value; bind it"):
        make("pretrain")


@pytest.mark.parametrize(
    ("binding", "line"),
    [
        ("pretrain.epochs = 3", "pretrain.epochs is now TrainConfig.epochs"),
        ("finetune.epochs = 3", "unknown Gin binding 'finetune.epochs'"),
        ("pretrain.dataset_shares = [1, 2]", "pretrain.dataset_shares is now Corpus.shares"),
        ("one_cycle.learning_rate = 1e-3", "one_cycle.learning_rate is now TrainConfig.learning_rate"),
        ("Guards.max_hours = 3", "Guards.max_hours is now RunSettings.max_hours"),
        ("Guards.skip_nonfinite = 3", "Guards.skip_nonfinite is now TrainConfig.skip_nonfinite"),
        ("finetune.loss = @bce", "finetune.loss is now TrainConfig.loss"),
        ("finetune.method = @full", "finetune.method is now FinetuneConfig.method"),
        ("evaluate.split = @by_ratio", "evaluate.split is now Corpus.split"),
        ("adamw.rates = @layerwise", "adamw.rates is now TrainConfig.group_rates"),
        ("sweep.trials = 3", "sweep.trials is now Sweep.trials"),
        ("scaling_study.held = 3", "scaling_study.held is now ScalingStudy.holdout"),
        ("TrainConfig.optimizer = @lion", "lion is gone; see CHANGELOG.md"),
        ("pretrain.learning_rate_scaling = 'linear'", "pretrain.learning_rate_scaling is gone; see CHANGELOG.md"),
    ],
)
def test_bindings_that_moved_are_refused_with_their_new_names(binding, line):
    with pytest.raises(InputError) as caught:
        configure(FILE, [*PLACES, binding], registry.MOVED)
    assert str(caught.value).startswith(line)


def test_every_name_that_moved_is_refused_and_its_new_name_is_there():
    for old, new in registry.MOVED.items():
        if new is not None:
            gin.parse_config(f"{new} = None")
        binding = f"{old} = None" if "." in old else f"TrainConfig.loss = @{old}"
        with pytest.raises(InputError, match=rf"^{re.escape(old)} is "):
            configure(FILE, [*PLACES, binding], registry.MOVED)
        gin.clear_config()


def test_a_moved_binding_in_a_file_is_refused_as_well(tmp_path):
    (tmp_path / "old.gin").write_text("include 'gin/base.gin'\nGuards.memory_limit = '8GB'\n")
    with pytest.raises(InputError, match=r"^Guards.memory_limit is now RunSettings.memory_limit$"):
        configure([str(tmp_path / "old.gin")], [], registry.MOVED)
