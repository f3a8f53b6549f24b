"""A baseline that is trained where it is not yet."""

import shutil

import gin
import pytest

from seqrec_jax.errors import InputError
from seqrec_jax.tasks import child
from seqrec_jax.tasks.pretrain import pretrain
from seqrec_jax.tasks.trained_baseline import trained_baseline


class FakeChild:
    """A run that lies there already and is copied, or that fails."""

    made, begun = None, []

    def __init__(self, command, run_dir, cpus=None):
        FakeChild.begun.append(command)
        if FakeChild.made is not None:
            shutil.copytree(FakeChild.made, run_dir, dirs_exist_ok=True)

    def status(self):
        return 2 if FakeChild.made is None else 0

    def stop(self):
        pass

    def last_line(self):
        return "error: DATASET has no interactions"


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(child, "Child", FakeChild)
    monkeypatch.setattr(child, "SECONDS_BETWEEN_LOOKS", 0.0)
    FakeChild.made, FakeChild.begun = None, []
    gin.parse_config("Tracker.uri = None")


def test_it_is_trained_once_on_the_split_that_is_bound(shop_folder, tmp_path):
    made = tmp_path / "made"
    gin.parse_config("Architecture.item_encoder = 'id'\nArchitecture.hidden_size = 8\nsampled_softmax.n_negatives = 9")
    pretrain(dataset=str(shop_folder), run_dir=str(made), epochs=1, valid_metric="ndcg_at_10", train_batch_size=400)
    FakeChild.made = made
    for _ in range(2):
        opened = trained_baseline(str(tmp_path / "sasrec"), str(shop_folder))
        assert opened.restored.record.architecture.item_encoder == "id"
    (command,) = FakeChild.begun
    assert "--gin_file=gin/sasrec.gin" in command
    for bound in (f"DATASET = {str(shop_folder)!r}", "SPLIT = @leave_one_out", "Tracker.uri = None"):
        assert f"--gin_bindings={bound}" in command


def test_what_it_cannot_be_trained_on_is_told(tmp_path):
    with pytest.raises(InputError, match="SASRec: DATASET has no interactions"):
        trained_baseline(str(tmp_path / "sasrec"), "nothing")
