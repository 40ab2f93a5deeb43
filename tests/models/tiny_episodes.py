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


def assert_each_alone(model, episode, texts):
    """Two episodes in a batch give what each gives alone; videos are scored against that many texts."""
    both = model(**episode)
    apart = [model(**one(episode, number)) for number in range(2)]
    for number, each in enumerate(apart):
        for key in ("logits", "class_logits", "prototypes", "query_features"):
            torch.testing.assert_close(both[key][number], each[key], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.loss, (apart[0].loss + apart[1].loss) / 2)
    assert both.class_logits.shape == (2, 9, texts)


def assert_order_does_not_matter(model, inputs):
    """Support videos in another order, and classes numbered otherwise, change nothing."""
    expected, order = model(**inputs), torch.tensor([5, 3, 0, 1, 4, 2])
    shuffled = inputs | {key: value[order] for key, value in inputs.items() if key.startswith("support_")}
    torch.testing.assert_close(model(**shuffled).logits, expected.logits)
    swap = torch.tensor([1, 2, 0])
    renamed = model(**inputs | {key: swap[inputs[key]] for key in ("support_labels", "query_labels")})
    torch.testing.assert_close(renamed.logits[:, swap], expected.logits)
    torch.testing.assert_close(renamed.loss, expected.loss)
