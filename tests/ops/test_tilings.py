"""Tiles and regions: what is cut comes together again, cell by cell, and regions lie where saliency is."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipplus.ops.tilings import (
    choose_regions,
    cut_tiles,
    place_regions,
    resample_map,
    resize_pictures,
    stitch_tiles,
    take_regions,
)


def numbered(maps: int, height: int, width: int) -> torch.Tensor:
    """`[N, 3, H, W]`: every cell holds its map, row and column."""
    parts = torch.meshgrid(*(torch.arange(length) for length in (maps, height, width)), indexing="ij")
    return torch.stack(parts, dim=1).float()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 2), (3, 3), (2, 3), (6, 1), (1, 4), (12, 12)])
def test_a_square_in_tiles_comes_together_again(rows, columns):
    maps = numbered(2, 12, 12)
    tiles = cut_tiles(maps, rows, columns)
    height, width = 12 // rows, 12 // columns
    assert tiles.shape == (2 * rows * columns, 3, height, width)
    for number, tile in enumerate(tiles):
        picture, place = divmod(number, rows * columns)
        first = [picture, place // columns * height, place % columns * width]
        assert tile[:, 0, 0].tolist() == first
        assert tile[:, -1, -1].tolist() == [picture, first[1] + height - 1, first[2] + width - 1]
    assert torch.equal(stitch_tiles(tiles, rows, columns), maps)


def test_a_map_that_is_not_square():
    maps = numbered(3, 4, 10)
    assert torch.equal(stitch_tiles(cut_tiles(maps, 2, 5), 2, 5), maps)


@pytest.mark.parametrize(("rows", "columns"), [(5, 2), (2, 5), (0, 1), (24, 1)])
def test_a_grid_that_does_not_divide_is_refused(rows, columns):
    with pytest.raises(ValueError, match=f"{rows}x{columns} tiles does not divide 12x12"):
        cut_tiles(numbered(1, 12, 12), rows, columns)


def test_too_few_tiles_are_refused():
    with pytest.raises(ValueError, match="5 tiles do not fill grids of 2x2"):
        stitch_tiles(torch.zeros(5, 3, 4, 4), 2, 2)


@pytest.mark.parametrize("size", [(8, 8), (18, 12), (36, 48)])
def test_pictures_are_resized_as_by_pillow(size):
    picture = np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32)
    expected = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))
    found = resize_pictures(torch.from_numpy(picture)[None, None], size)[0, 0]
    torch.testing.assert_close(found, torch.from_numpy(expected.copy()), rtol=0, atol=2e-5)


def test_a_picture_of_the_size_stays_as_it_is():
    picture = torch.randn(1, 3, 6, 6, dtype=torch.bfloat16)
    assert resize_pictures(picture, (6, 6)) is picture
    assert resize_pictures(picture, (3, 3)).dtype == torch.bfloat16


def test_maps_are_averaged_downwards_and_interpolated_upwards():
    maps = numbered(1, 4, 4)
    assert resample_map(maps, (2, 2))[0, 1:, 1, 0].tolist() == [2.5, 0.5]
    assert resample_map(maps, (8, 8))[0, 1, :, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert resample_map(maps, (4, 4)) is maps


def test_regions_cover_what_is_salient_in_turn():
    saliency = torch.zeros(2, 6, 6)
    saliency[0, 0, 0], saliency[0, 4:, 4:] = 0.9, 1.0
    saliency[1, 2, 2] = 5
    corners = choose_regions(saliency, (2, 2), 3)
    assert corners[0, :2].tolist() == [[4, 4], [0, 0]]
    assert corners[1, 0].tolist() == [1, 1]  # the first window, row by row, that holds the cell
    for own in corners.tolist():
        assert len(set(map(tuple, own))) == 3
    assert torch.equal(choose_regions(100 * saliency - 7, (2, 2), 3), corners)


def test_every_place_can_be_a_region_once():
    corners = choose_regions(torch.rand(1, 4, 5), (3, 2), 8)[0]
    assert sorted(map(tuple, corners.tolist())) == [(row, column) for row in range(2) for column in range(4)]


@pytest.mark.parametrize("count", [0, 9])
def test_more_regions_than_places_are_refused(count):
    with pytest.raises(ValueError, match=f"1 to 8 regions of 3x2 cells on a grid of 4x5, got {count}"):
        choose_regions(torch.rand(1, 4, 5), (3, 2), count)


def test_a_saliency_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="NaN or infinite"):
        choose_regions(torch.full((1, 4, 4), torch.nan), (2, 2), 1)


def test_regions_are_taken_and_placed_where_they_are():
    maps, corners = numbered(2, 6, 5), torch.tensor([[[0, 0], [3, 2]], [[1, 1], [2, 2]]])
    regions = take_regions(maps, corners, (2, 3))
    assert regions.shape == (4, 3, 2, 3)
    for region, corner, picture in zip(regions, corners.flatten(0, 1), (0, 0, 1, 1), strict=True):
        assert region[:, 0, 0].tolist() == [picture, *corner.tolist()]
    found, covered = place_regions(regions, corners, (6, 5))
    expected = torch.zeros(2, 6, 5)
    expected[0, :2, :3] = expected[0, 3:5, 2:5] = expected[1, 1:3, 1:4] = expected[1, 2:4, 2:5] = 1
    assert torch.equal(covered[:, 0], expected)
    assert torch.equal(found, maps * covered)


def test_where_regions_overlap_their_mean_is_placed():
    regions = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 4.0)])
    found, covered = place_regions(regions, torch.tensor([[[0, 0], [0, 1]]]), (2, 4))
    assert found[0, 0].tolist() == [[1, 2.5, 4, 0]] * 2
    assert covered[0, 0].tolist() == [[1, 1, 1, 0]] * 2
