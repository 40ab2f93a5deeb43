"""Longer tables of positions from short ones, the well-trained first rows left alone (Long-CLIP, 2403.15378)."""

import torch

KEPT, RATIO = 20, 4


def rows_to_keep(rows: int, context: int, *, ratio: int = RATIO) -> int:
    """How many rows `stretch_positions` must keep so that `rows` become `context`: 20 for 77 and 248.

    Raises:
        ValueError: no number of them does.
    """
    kept, rest = divmod(ratio * rows - context, ratio - 1)
    if rest or not 0 <= kept < rows:
        raise ValueError(f"{rows} positions cannot become {context} by stretching {ratio} times what is not kept.")
    return kept


def stretch_positions(table: torch.Tensor, *, kept: int = KEPT, ratio: int = RATIO) -> torch.Tensor:
    """Knowledge-preserved stretching: `[L, d]` to `[kept + ratio (L - kept), d]`; 77 rows become 248.

    Row `kept + ratio q + r` is `(1 - r/ratio) PE[kept + q] + (r/ratio) PE[kept + q + 1]`; behind the last row the
    table goes on in a straight line. Computed in float32 at least (the published loader does it in float16).

    Args:
        table: position embeddings.
        kept: first rows that stay as they are.
        ratio: how many rows one of the others becomes.

    Returns:
        In the dtype of the table.

    Raises:
        ValueError: `kept` or `ratio` is out of range.
    """
    rows = len(table)
    if not 0 <= kept < rows or rows < 2 or ratio < 1:
        raise ValueError(
            f"expected 0 <= kept < {rows} (rows of the table, two or more) and ratio >= 1, got {kept} and {ratio}."
        )
    source = table.to(torch.promote_types(table.dtype, torch.float32))
    source = torch.cat([source, 2 * source[-1:] - source[-2:-1]])
    step = torch.arange(ratio * (rows - kept), device=table.device)
    low, share = kept + step // ratio, (step % ratio).to(source.dtype)[:, None] / ratio
    stretched = (1 - share) * source[low] + share * source[low + 1]
    return torch.cat([source[:kept], stretched]).to(table.dtype)
