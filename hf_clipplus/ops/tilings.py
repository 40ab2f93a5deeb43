"""A picture, or a map of tokens, in tiles and regions: cut, put together again, chosen by what is salient, placed.

Everything here takes maps with channels first, `[..., channels, height, width]`, of pixels and of tokens alike. It is
ours: the papers of this package see a picture at one scale.
"""

import torch
import torch.nn.functional as F

LEVELS = 1024  # of a saliency map; sums of whole numbers do not depend on the order of adding


def cut_tiles(maps: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """`[N, C, H, W]` to `[N rows columns, C, H / rows, W / columns]`: a map's tiles row by row, then the next map's.

    Raises:
        ValueError: the grid does not divide height and width.
    """
    height, width = maps.shape[-2:]
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise ValueError(f"a grid of {rows}x{columns} tiles does not divide {height}x{width}.")
    tiles = maps.unflatten(-1, (columns, -1)).unflatten(-3, (rows, -1))  # [N, C, rows, h, columns, w]
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def stitch_tiles(tiles: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The inverse of `cut_tiles`: `[N rows columns, C, h, w]` to `[N, C, rows h, columns w]`.

    Raises:
        ValueError: the number of tiles is no multiple of the grid's.
    """
    if rows < 1 or columns < 1 or len(tiles) % (rows * columns):
        raise ValueError(f"{len(tiles)} tiles do not fill grids of {rows}x{columns}.")
    grids = tiles.unflatten(0, (-1, rows, columns)).permute(0, 3, 1, 4, 2, 5)  # [N, C, rows, h, columns, w]
    return grids.flatten(-2).flatten(-3, -2)


def resize_pictures(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[N, C, H, W]` at another size, bicubic with antialiasing, in float32 at least; as it is if the size is equal.

    That is Pillow's filter, but values are neither rounded nor clipped.
    """
    if tuple(pictures.shape[-2:]) == tuple(size):
        return pictures
    wide = pictures.to(torch.promote_types(pictures.dtype, torch.float32))
    resized = F.interpolate(wide, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
    return resized.to(pictures.dtype)


def resample_map(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map of tokens `[N, C, h, w]` on another grid: means of what falls into a cell, or bilinear between centres.

    Args:
        size: (rows, columns), both at most, or both at least, those of the map.
    """
    height, width = maps.shape[-2:]
    if (height, width) == tuple(size):
        return maps
    if size[0] <= height and size[1] <= width:
        return F.interpolate(maps, size=tuple(size), mode="area")
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def region_count(grid: tuple[int, int], window: tuple[int, int]) -> int:
    """Places that a window of `window` cells has on a grid; 0 where it is larger."""
    return max(grid[0] - window[0] + 1, 0) * max(grid[1] - window[1] + 1, 0)


@torch.no_grad()
def choose_regions(saliency: torch.Tensor, window: tuple[int, int], count: int) -> torch.Tensor:
    """Where the most salient regions are, without a random choice.

    The first window is the one with the largest sum; each further one has the largest sum of what no earlier one
    covers (a greedy cover), and is another window. Saliency is taken from least (0) to most (1) of each map in
    `LEVELS` steps; of equal windows the first, row by row, is taken.

    Args:
        saliency: `[N, H, W]`, in any unit.
        window: (rows, columns) of a region.
        count: regions of each map.

    Returns:
        `[N, count, 2]` int64, (row, column) of the regions' upper left cells, in the order of choice.

    Raises:
        ValueError: saliency is not finite, or there are fewer windows than `count`.
    """
    maps, height, width = saliency.shape
    available = region_count((height, width), window)
    if not 1 <= count <= available:
        raise ValueError(
            f"expected 1 to {available} regions of {window[0]}x{window[1]} cells on a grid of {height}x{width}, "
            f"got {count}."
        )
    if not torch.isfinite(saliency).all():
        raise ValueError("regions cannot be chosen: the saliency of some picture is NaN or infinite.")
    low, high = saliency.amin((1, 2), keepdim=True), saliency.amax((1, 2), keepdim=True)
    share = (saliency - low).double() / (high - low).double().clamp_min(1e-12)
    left = (share * LEVELS).round().long()  # what no window covers yet
    places = (height - window[0] + 1, width - window[1] + 1)
    taken = torch.zeros(maps, places[0] * places[1], dtype=torch.bool, device=saliency.device)
    row, column = (torch.arange(length, device=saliency.device) for length in (height, width))
    corners = []
    for _ in range(count):
        sums = _window_sums(left, window).flatten(1).masked_fill(taken, -1)
        best = sums.argmax(1)
        taken[torch.arange(maps, device=best.device), best] = True
        corner = torch.stack([best // places[1], best % places[1]], dim=1)
        corners.append(corner)
        inside_rows, inside_columns = (
            (line >= corner[:, axis, None]) & (line < corner[:, axis, None] + window[axis])
            for axis, line in enumerate((row, column))
        )
        left = left.masked_fill(inside_rows[:, :, None] & inside_columns[:, None, :], 0)
    return torch.stack(corners, dim=1)


def _window_sums(values: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Sums over every window of `[N, H, W]` whole numbers, `[N, H - h + 1, W - w + 1]`."""
    table = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))
    height, width = window
    return (
        table[:, height:, width:]
        - table[:, :-height, width:]
        - table[:, height:, :-width]
        + table[:, :-height, :-width]
    )


def take_regions(maps: torch.Tensor, corners: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Regions of maps: `[N, C, H, W]` and corners `[N, K, 2]` to `[N K, C, h, w]`, picture by picture."""
    rows, columns = _cells(corners, size)
    picture = torch.arange(len(maps), device=maps.device)[:, None, None, None]
    return maps.permute(0, 2, 3, 1)[picture, rows, columns].flatten(0, 1).permute(0, 3, 1, 2).contiguous()


def place_regions(
    regions: torch.Tensor, corners: torch.Tensor, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of `take_regions`: means of the regions on a grid, and where there is any.

    Args:
        regions: `[N K, C, h, w]`.
        corners: `[N, K, 2]`, inside the grid.
        grid: (rows, columns) of the map.

    Returns:
        `[N, C, *grid]`, 0 where there is no region, and `[N, 1, *grid]`, 1 where there is one and 0 elsewhere.
    """
    rows, columns = _cells(corners, tuple(regions.shape[-2:]))
    values = regions.unflatten(0, corners.shape[:2]).permute(0, 1, 3, 4, 2)  # [N, K, h, w, C]
    picture = torch.arange(len(corners), device=regions.device)[:, None, None]
    total = regions.new_zeros(len(corners), *grid, values.shape[-1])
    counts = regions.new_zeros(len(corners), *grid, 1)
    for k in range(corners.shape[1]):  # one region of each picture at a time: no cell is written twice
        place = (picture, rows[:, k], columns[:, k])
        total = total + torch.zeros_like(total).index_put(place, values[:, k])
        counts = counts + torch.zeros_like(counts).index_put(place, torch.ones_like(values[:, k, ..., :1]))
    found = (total / counts.clamp_min(1)).permute(0, 3, 1, 2)
    return found, counts.clamp_max(1).permute(0, 3, 1, 2)


def _cells(corners: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `[N, K, h, 1]` and columns `[N, K, 1, w]` of regions."""
    row, column = (torch.arange(length, device=corners.device) for length in size)
    return corners[..., 0, None, None] + row[:, None], corners[..., 1, None, None] + column
