"""Evaluation of dual encoders: one file per protocol, pure metrics in metrics.py, measured numbers in results.py."""

from hf_clipplus.evaluation.clipart import clipart_evaluators
from hf_clipplus.evaluation.encode import encode_images, encode_texts
from hf_clipplus.evaluation.gallery import retrieval_gallery
from hf_clipplus.evaluation.loading import load_dual_encoder
from hf_clipplus.evaluation.results import Result, Results, describe_hardware
from hf_clipplus.evaluation.retrieval import RetrievalEvaluator
from hf_clipplus.evaluation.zero_shot import ZeroShotClassification, read_class_texts, zero_shot_classifier

__all__ = [
    "Result",
    "Results",
    "RetrievalEvaluator",
    "ZeroShotClassification",
    "clipart_evaluators",
    "describe_hardware",
    "encode_images",
    "encode_texts",
    "load_dual_encoder",
    "read_class_texts",
    "retrieval_gallery",
    "zero_shot_classifier",
]
