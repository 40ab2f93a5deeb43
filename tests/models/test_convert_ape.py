"""Importers of published caches and checkpoints: right orientation, and no code of a file ever runs."""

import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_clipplus.models.ape.convert_ape import read_ape_t_checkpoint, read_official_cache, read_tensor

C, K, D, Q = 3, 2, 8, 5


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    keys, text = F.normalize(torch.randn(C * K, D), dim=1), F.normalize(torch.randn(C, D), dim=1)
    torch.save(keys.T.half(), tmp_path / f"keys_{K}shots.pt")
    torch.save(F.one_hot(torch.arange(C).repeat_interleave(K)).half(), tmp_path / f"values_{K}shots.pt")
    torch.save(text.T.half(), tmp_path / "text_weights_cupl_t.pt")
    torch.save(keys[:4].half(), tmp_path / "val_f.pt")
    torch.save(torch.tensor([0, 0, 1, 1]), tmp_path / "val_l.pt")
    return tmp_path, keys, text


def test_official_cache(folder):
    path, keys, text = folder
    found = read_official_cache(path, K)
    torch.testing.assert_close(found.keys, keys, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.text_weight, text, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.keys.norm(dim=1), torch.ones(C * K))
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.validation[1].tolist() == [0, 0, 1, 1]
    assert found.test is None


def test_official_cache_that_does_not_fit(folder):
    path, *_ = folder
    with pytest.raises(FileNotFoundError, match=r"keys_16shots.pt is not there; the folder has .*keys_2shots"):
        read_official_cache(path, 16)
    torch.save(torch.ones(C * K, C), path / f"values_{K}shots.pt")
    with pytest.raises(ValueError, match="no one-hot labels"):
        read_official_cache(path, K)
    torch.save(torch.ones(C * K + 1, C), path / f"values_{K}shots.pt")
    with pytest.raises(ValueError, match="do not fit"):
        read_official_cache(path, K)


def test_pickled_module_is_read_without_its_code(tmp_path):
    module = types.ModuleType("published_utils")
    source = """
from torch import nn
import torch
class APE_Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.value_weights = nn.Parameter(torch.ones(6, 1).half())
        self.res = nn.Parameter(torch.arange(15.).view(3, 5).half())
        self.indices = torch.tensor([4, 0, 7, 2, 1])
        self.loss = nn.CrossEntropyLoss()
        self.alpha = 2.0
"""
    sys.modules["published_utils"] = module
    exec(source, module.__dict__)
    file = tmp_path / "APE-T_2shots.pt"
    torch.save(module.APE_Training(), file)
    del sys.modules["published_utils"]
    found = read_ape_t_checkpoint(file)
    assert found["indices"].tolist() == [4, 0, 7, 2, 1]
    assert torch.equal(found["res"], torch.arange(15.0).view(3, 5))
    assert found["value_weights"].shape == (6, 1)


def leave_mark(path):
    Path(path).touch()


class Malicious:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def test_code_in_a_file_does_not_run(tmp_path):
    victim, file = tmp_path / "victim", tmp_path / "bad.pt"
    torch.save({"res": torch.zeros(1), "bad": Malicious(leave_mark, str(victim))}, file)
    with pytest.raises(ValueError, match="has no value_weights, indices"):
        read_ape_t_checkpoint(file)
    with pytest.raises(pickle.UnpicklingError):
        read_tensor(file)
    torch.save(Malicious(os.system, f"touch {victim}"), file)
    with pytest.raises(ValueError, match=r"refused.*system"):
        read_ape_t_checkpoint(file)
    assert not victim.exists()


def test_tip_adapter_f_weight(tmp_path):
    torch.save(nn.Parameter(torch.ones(6, 8).half()), tmp_path / "best_F_2shots.pt")
    assert read_tensor(tmp_path / "best_F_2shots.pt").dtype == torch.float32
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        read_tensor(tmp_path / "list.pt")
