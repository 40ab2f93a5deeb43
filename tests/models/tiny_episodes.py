"""Two episodes of random videos, for the tests of few-shot video models."""

import torch


def two_episodes(processor, names, classes):
    """3 ways, 2 shots, 1 query, 3 frames of 24 pixels, with the texts of all classes.

    Args:
        processor: of the model.
        names: of the classes.
        classes: `[2][3]`, those of each episode.
    """
    torch.manual_seed(1)
    texts, classes = processor(text=processor.class_texts(names), return_tensors="pt"), torch.tensor(classes)
    support, query = torch.tensor([[2, 0, 1, 0, 2, 1], [0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 1, 2], [2, 0, 1]])
    return {
        "support_pixel_values": torch.randn(2, 6, 3, 3, 24, 24),
        "support_labels": support,
        "query_pixel_values": torch.randn(2, 3, 3, 3, 24, 24),
        "query_labels": query,
        "class_input_ids": texts["input_ids"],
        "class_attention_mask": texts["attention_mask"],
        "support_class_ids": classes.gather(1, support),
        "query_class_ids": classes.gather(1, query),
    }


def one(episode, number=0):
    """One of two episodes."""
    shared = ("class_input_ids", "class_attention_mask")
    return {key: value if key in shared else value[number] for key, value in episode.items()}
