"""Policies that see: from an image's file to what a model takes, and from there into a row of tokens."""

from safeladder.policies.vision.families import FAMILIES, Picture, tower
from safeladder.policies.vision.gallery import Gallery
from safeladder.policies.vision.layout import Layout
from safeladder.policies.vision.processor import Processor, VisionError

__all__ = ["FAMILIES", "Gallery", "Layout", "Picture", "Processor", "VisionError", "tower"]
