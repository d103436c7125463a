"""The demo world: photographs in miniature of the 20 Pascal VOC classes, with exact masks."""

from data.demo.grounds import GROUNDS
from data.demo.scene import SIZE_PX, Instance, Scene, draw_scene

__all__ = ["GROUNDS", "SIZE_PX", "Instance", "Scene", "draw_scene"]
