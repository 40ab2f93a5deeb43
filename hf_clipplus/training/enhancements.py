"""Arguments of what any contrastive training can add: labels that images bring along, and adversarial batches."""

from dataclasses import dataclass, field

from .self_labels import CLUSTER_FEATURES, SELF_LABELS, parse_self_labels

ADVERSARIES = ("pixel", "embedding")


@dataclass
class EnhancementArguments:
    """Everything is off by default, and off changes no number."""

    self_labels: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Further objectives on the image embedding and their weights, e.g. colour=0.1 texture=0.1 "
            f"clusters=0.5. Known: {', '.join(SELF_LABELS)}."
        },
    )
    label_clusters: int = field(default=64, metadata={"help": "How many clusters the label 'clusters' has."})
    label_cluster_steps: int = field(
        default=100, metadata={"help": "Steps from one k-means to the next; before the first there is no such label."}
    )
    label_cluster_features: str = field(
        default="own",
        metadata={
            "help": "What is clustered: 'own' (the image embeddings in training), or 'frozen_model' (those of the "
            "model that mines, or the column mining_image_features)."
        },
    )
    adversarial: str | None = field(
        default=None,
        metadata={
            "help": "Train on batches that were changed against the model: 'pixel' (the images, maximum norm), "
            "'embedding' (patches and tokens after their embedding, 2-norm), or none."
        },
    )
    adversarial_radius: float | None = field(
        default=None,
        metadata={
            "help": "How far a batch may be changed: grey levels of 255 for 'pixel' (None: 2), a share of the norm of "
            "an image's or text's embeddings for 'embedding' (None: 0.05)."
        },
    )
    adversarial_steps: int = field(
        default=2, metadata={"help": "Gradients for one adversarial batch, each a forward and a backward pass more."}
    )
    adversarial_share: float = field(
        default=0.5, metadata={"help": "Weight of the adversarial batch's loss; the clean one's is the rest."}
    )
    eval_attack_radius: float | None = field(
        default=None,
        metadata={"help": "Zero-shot accuracy also on images attacked within so many grey levels of 255; None: not."},
    )

    def __post_init__(self):
        self.self_label_weights = parse_self_labels(self.self_labels)
        for name, value, choices in (
            ("label_cluster_features", self.label_cluster_features, CLUSTER_FEATURES),
            ("adversarial", self.adversarial, (None, *ADVERSARIES)),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is unknown: choose one of {choices}.")
        for name, least in (("label_clusters", 2), ("label_cluster_steps", 1), ("adversarial_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}.")
        if self.adversarial is None and self.adversarial_radius is not None:
            raise ValueError("adversarial_radius without adversarial: say 'pixel' or 'embedding'.")
        if self.adversarial_radius is None:
            self.adversarial_radius = {"pixel": 2.0, "embedding": 0.05, None: None}[self.adversarial]
        for name in ("adversarial_radius", "eval_attack_radius"):
            radius = getattr(self, name)
            if radius is not None and not 0 < radius < 256:
                raise ValueError(f"{name}={radius}: expected a positive radius (below 256).")
        if not 0 < self.adversarial_share <= 1:
            raise ValueError(f"adversarial_share={self.adversarial_share}: expected more than 0 and at most 1.")
