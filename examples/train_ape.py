"""Few-shot classification on frozen CLIP features: APE, APE-T, Tip-Adapter(-F), GDA, ProKeR, zero-shot in one table.

Without arguments it compares them on the embedded drawings with the embedded encoder. The encoder has seen the
drawings that shots and validation are drawn from (with captions, not classes), never the test drawings.

    python examples/train_ape.py
    python examples/train_ape.py --dataset my/folders --model openai/clip-vit-base-patch32 --shots 16 --save ape
    python examples/train_ape.py --dataset coop:dtd --root data --prompts CuPL_dtd.json --protocol paper

A data set is a folder with class folders (perhaps below train, val and test), `coop:NAME` for one of CoOp's 11 splits
under --root, or a Hub id with a ClassLabel column.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import normalize
from transformers.utils import logging

from hf_clipplus.data.clipart import EMBEDDED
from hf_clipplus.data.few_shot_sources import open_images, read_class_sentences
from hf_clipplus.evaluation.clipart import CLIPART_TEMPLATES
from hf_clipplus.evaluation.plot import line_plot
from hf_clipplus.models.ape import APEForImageClassification, APEProcessor
from hf_clipplus.models.ape.processing_ape import DEFAULT_TEMPLATES
from hf_clipplus.training import parse_arguments
from hf_clipplus.training.few_shot import CacheAugmentation, draw_episode, encode_with_cache
from hf_clipplus.training.few_shot_card import push_few_shot, save_few_shot
from hf_clipplus.training.few_shot_compare import (
    ALL_HEADS,
    TITLES,
    FewShotData,
    as_records,
    compare_heads,
    comparison_table,
)
from hf_clipplus.training.few_shot_recipes import RECIPES, grids_of, settings_of


@dataclass
class Arguments:
    """What to compare, on what, and where to."""

    model: str = field(default="examples/checkpoints/clipart-clip", metadata={"help": "CLIP-like folder or Hub id."})
    dataset: str = field(default=EMBEDDED, metadata={"help": "Folder, coop:NAME, Hub id, or the embedded drawings."})
    root: str = field(default="data", metadata={"help": "Where CoOp's data sets are."})
    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "Images per class."})
    seeds: int = field(default=3, metadata={"help": "Episodes; each draws its own images."})
    heads: list[str] = field(default_factory=lambda: list(ALL_HEADS), metadata={"help": "Heads to compare."})
    templates: list[str] = field(default_factory=list, metadata={"help": "Prompts with {}; default: the data set's."})
    prompts: str | None = field(default=None, metadata={"help": "CuPL-like JSON file {class name: [sentence]}."})
    protocol: str = field(default="honest", metadata={"help": "'honest', or 'paper': the whole val split chooses."})
    search: bool = field(default=True, metadata={"help": "False: alpha, beta, gamma stay where training has them."})
    views: int = field(default=10, metadata={"help": "Augmented views per support image."})
    cache_dir: str | None = field(default=None, metadata={"help": "Features on disk; default: output_dir/features."})
    save: str | None = field(default=None, metadata={"help": "Save this head (most shots, seed 0) under output_dir."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Push the saved head there: owner/name."})
    output_dir: str = field(default="outputs/ape", metadata={"help": "Table, plot, JSON, saved head."})


def main(argv: list[str] | None = None) -> dict[int, list]:
    (args,) = parse_arguments((Arguments,), __doc__, argv)
    if (args.save or args.hub_model_id) and args.save not in args.heads:
        raise ValueError(f"--save is {args.save}, expected one of {args.heads}; it is what --hub_model_id pushes.")
    logging.set_verbosity_error()  # what fit warns of is kept in the JSON
    output = Path(args.output_dir)
    base = APEForImageClassification.from_clip(args.model, dtype=torch.float32)
    processor = APEProcessor.from_pretrained(args.model)
    side = base.config.backbone_config.vision_config.image_size
    images = open_images(args.dataset, root=args.root, image_size=side)
    recipe = RECIPES.get(args.dataset.removeprefix("coop:"))
    own = CLIPART_TEMPLATES if args.dataset == EMBEDDED else recipe.templates if recipe else DEFAULT_TEMPLATES
    sentences = read_class_sentences(args.prompts, images.class_names) if args.prompts else None
    base.set_classes(images.class_names, processor, templates=args.templates or own, prompts=sentences)

    pool, labels = list(images.images["train"]), list(images.labels["train"])
    own_validation = args.protocol == "paper" and "val" in images.images
    start = len(pool)
    pool, labels = pool + list(images.images.get("test", [])), labels + list(images.labels.get("test", []))
    test = list(range(start, len(pool))) or None
    options = {"cache_dir": args.cache_dir or output / "features"}
    plain = normalize(encode_with_cache(base, processor, pool, **options)[0], dim=-1)
    classes = torch.tensor(labels)
    if own_validation:
        val = normalize(encode_with_cache(base, processor, images.images["val"], **options)[0], dim=-1)
        val = val, torch.tensor(images.labels["val"])
    results, grids = {}, grids_of(recipe, args.heads, args.protocol, search=args.search)
    for shots in args.shots:
        for seed in range(args.seeds):
            episode = draw_episode(labels, shots, seed=seed, test=test, allow_fewer=True)
            support = [pool[i] for i in episode.support]
            views = encode_with_cache(
                base, processor, support, views=args.views, augment=CacheAugmentation(seed + 1), **options
            )
            chosen_on = val if own_validation else (plain[episode.validation], classes[episode.validation])
            tested_on = plain[episode.test], classes[episode.test]
            data = FewShotData(views, classes[episode.support], chosen_on, tested_on)
            rows, models = compare_heads(
                base, data, heads=tuple(args.heads), settings=settings_of(recipe, plain.shape[1], seed),
                protocol=args.protocol, grids=grids,
            )  # fmt: skip
            results.setdefault(shots, []).append(rows)
            if args.save and shots == max(args.shots) and seed == 0:
                row = next(row for row in rows if row.head == args.save)
                facts = {"dataset": Path(args.dataset).name, "seed": seed, "repo_id": args.hub_model_id}
                save_few_shot(models[row.head], base, processor, output / row.head, row, **facts)
    if args.save and args.hub_model_id:
        push_few_shot(output / args.save, args.hub_model_id)
    table = comparison_table(results)
    output.mkdir(parents=True, exist_ok=True)
    (output / "table.md").write_text(table)
    (output / "results.json").write_text(json.dumps(as_records(results), indent=1))
    lines = {
        TITLES[head]: [100 * sum(rows[i].accuracy for rows in results[k]) / args.seeds for k in sorted(results)]
        for i, head in enumerate(args.heads)
    }
    line_plot(lines, sorted(results), title="test accuracy, percent", x_label="shots").save(output / "accuracy.png")
    print(table + f"\ntable, plot and JSON are in {output}")
    return results


if __name__ == "__main__":
    main()
