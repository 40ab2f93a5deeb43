"""mine_positives with features of its own for the image-image branch."""

import torch

from hf_clipplus.ops.positives import mine_positives


def test_image_image_branch_uses_its_own_features():
    image, text = torch.eye(4, 8), torch.eye(4, 8)  # no two images look alike to the image-text model
    look = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0.01, 0], [0, 0, 1]])  # 0 and 2 do
    options = {"p1": 2.0, "p1_gate": -1.0, "p2": 0.9, "p3": 2.0}
    owner = torch.arange(4)
    plain, counts = mine_positives(image, text, owner, **options)
    assert len(plain) == 4
    assert counts["total"] == 0
    for rows in (None, (1, 3)):
        found, counts = mine_positives(image, text, owner, image_image_features=look, rows=rows, **options)
        first, last = rows or (0, 4)
        expected = torch.eye(4, dtype=torch.bool)
        expected[0, 2] = expected[2, 0] = True
        assert torch.equal(found.to_mask(), expected[first:last])
        assert counts["image_image"] == (2 if rows is None else 1)


def test_gate_still_asks_the_image_text_features():
    look = torch.ones(2, 3)
    options = {"p1": 2.0, "p1_gate": 0.5, "p2": 0.9, "p3": 2.0}
    text = torch.tensor([[1.0, 0.0], [0.8, 0.6]])  # image 0 fits caption 1 (0.8); image 1 does not fit caption 0 (0)
    image = torch.eye(2)
    found, _ = mine_positives(image, text, torch.arange(2), image_image_features=look, **options)
    assert found.to_mask().tolist() == [[True, True], [False, True]]
