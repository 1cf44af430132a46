"""Weights by name: a folder of weights, configuration and model card, on this machine or on the Hugging Face Hub."""

from tdn_bench.hub.folder import ModelConfig, read_folder
from tdn_bench.hub.names import local_checkpoint

__all__ = ["ModelConfig", "local_checkpoint", "read_folder"]
